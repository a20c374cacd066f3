"""Choosing the next token of every row: warped scores, each row's own random stream, n-grams that may not repeat."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from distill.config.evaluation import EvalConfig

# numpy's fp32 exponentials are 0 once in about 2**24 draws, where the true ones are this on average. The logarithm of 0
# would let its token win whatever its score, in one of two hundred draws from a vocabulary of 50,000.
LEAST = 2.0**-25
WIDE = 2**13  # classes from which on it pays to draw a row's numbers in another thread
TIE = 1e-4  # scores that differ by less may change order with the rounding of another batch size in fp32


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="noise")


def row_digest(stream: str) -> bytes:
    """The 32 bytes that the random stream of this name is seeded from."""
    return hashlib.sha256(stream.encode()).digest()


class RowStream:
    """The random stream of one response row, a function of its name and the kind of device alone.

    Sampling takes the argmax of `logits - log(e)` with `e` exponential (the Gumbel trick). Unlike inverting a
    cumulative sum, whose every boundary moves with rounding, the choice changes only where two classes tie.

    Args:
        name: see `distill.generation.requests.stream_name`.
        device: where the numbers are drawn; a CPU's and a GPU's streams differ.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu"):
        digest = row_digest(name)
        self._bits: np.random.Generator | torch.Generator
        if torch.device(device).type == "cpu":
            self._bits = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
        else:  # drawn on the device: copying a whole vocabulary's numbers for each row and step would be slow
            self._bits = torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def fill(self, numbers: Tensor) -> None:
        """Overwrite an fp32 vector on the stream's device with the next standard exponentials."""
        if isinstance(self._bits, torch.Generator):
            numbers.exponential_(generator=self._bits)
        else:
            self._bits.standard_exponential(dtype=np.float32, out=numbers.numpy())


class NgramBan:
    """The tokens that would repeat an n-gram of a row's prefix and response, as transformers' processor counts them."""

    def __init__(self, size: int, prefix: Sequence[int]):
        self.size = size
        self.followers: dict[tuple[int, ...], set[int]] = defaultdict(set)
        self.tokens: list[int] = []
        for token in prefix:
            self.add(token)

    def add(self, token: int) -> None:
        """Count the n-gram that this token completes."""
        self.tokens.append(token)
        if len(self.tokens) >= self.size:
            *before, last = self.tokens[-self.size :]
            self.followers[tuple(before)].add(last)

    def banned(self) -> list[int]:
        """The tokens that may not come next, in ascending order."""
        if len(self.tokens) + 1 < self.size:
            return []
        return sorted(self.followers.get(tuple(self.tokens[len(self.tokens) - self.size + 1 :]), ()))


class Chooser:
    """Chooses the next token of each row, from logits and the row's own stream."""

    def __init__(self, settings: EvalConfig):
        self.sampled = settings.do_sample
        self._noise: Tensor | None = None
        self.warpers = LogitsProcessorList()  # temperature, top-k and top-p as transformers does them
        if settings.temperature != 1.0:
            self.warpers.append(TemperatureLogitsWarper(settings.temperature))
        if settings.top_k:
            self.warpers.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p < 1.0:
            self.warpers.append(TopPLogitsWarper(settings.top_p))

    def __call__(
        self, logits: Tensor, streams: Sequence[RowStream | None], bans: Sequence[NgramBan | None]
    ) -> tuple[Tensor, Tensor]:
        """The next token of each row `[rows]`, and whether another scored the same within `TIE` `[rows]`.

        Args:
            logits: `[rows, V]` in fp32; overwritten.
            streams: None for a row that is finished: nothing is drawn for it and its token means nothing.
            bans: the n-grams of each row, or None where they may repeat.
        """
        for row, ban in enumerate(bans):
            if ban is not None and (tokens := ban.banned()):
                logits[row, tokens] = -torch.inf
        if not self.sampled:
            return _largest(logits)
        scores: Tensor = self.warpers(None, logits)  # type: ignore[arg-type]
        noise = self._ones_like(scores)
        to_fill = [(stream, noise[row]) for row, stream in enumerate(streams) if stream is not None]
        if noise.is_cuda or noise.shape[1] < WIDE:
            for stream, numbers in to_fill:
                stream.fill(numbers)
        else:  # numpy draws without the interpreter's lock
            list(_threads().map(lambda pair: pair[0].fill(pair[1]), to_fill))
        return _largest(torch.sub(scores, noise.clamp_min_(LEAST).log_(), out=noise))

    def _ones_like(self, scores: Tensor) -> Tensor:
        """Ones in the shape of `scores`. The buffer is used again at each step: fresh pages cost more than the draw."""
        if self._noise is None or self._noise.numel() < scores.numel():
            self._noise = torch.empty(scores.numel(), device=scores.device)
        return self._noise[: scores.numel()].view(scores.shape).fill_(1)


def _largest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The class of the largest score `[rows]`, and whether the second largest is within `TIE` of it.

    Overwrites the largest score of each row.
    """
    best, chosen = scores.max(-1)
    second = scores.scatter_(-1, chosen.unsqueeze(-1), -torch.inf).amax(-1)
    return chosen, second > best - TIE
