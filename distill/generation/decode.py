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

# numpy's fp32 exponentials are 0 once in about 2**24 draws, where the true ones are this on average; the logarithm of 0
# would let its token win whatever its score, in one of two hundred draws from a vocabulary of 50,000
LEAST = 2.0**-25
WIDE = 2**13  # classes from which on a row's numbers take longer to draw than to hand to another thread
TIE = 1e-4  # scores that differ by less may change places with another batch size's rounding in fp32


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="noise")


def row_digest(seed: int, set_name: str, example_id: str) -> bytes:
    """What a row's random stream is seeded from: 32 bytes."""
    return hashlib.sha256(f"{seed}/{set_name}/{example_id}".encode()).digest()


class RowStream:
    """The random stream of one response row, a function of (seed, set name, example id) and the kind of device alone.

    Sampling takes the argmax of `logits - log(e)` with `e` exponential (the Gumbel trick). Unlike inverting a
    cumulative sum, whose every boundary moves with rounding, the choice changes only where two classes tie.
    """

    def __init__(self, seed: int, set_name: str, example_id: str, device: torch.device | str = "cpu"):
        digest = row_digest(seed, set_name, example_id)
        self._bits: np.random.Generator | torch.Generator
        if torch.device(device).type == "cpu":
            self._bits = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
        else:  # drawn where they are used: a vocabulary's numbers a row and step are too many to send
            self._bits = torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def fill(self, numbers: Tensor) -> None:
        """Overwrite an fp32 vector on the stream's device with the next standard exponentials."""
        if isinstance(self._bits, torch.Generator):
            numbers.exponential_(generator=self._bits)
        else:
            self._bits.standard_exponential(dtype=np.float32, out=numbers.numpy())


class NgramBan:
    """The tokens that would repeat an n-gram of a row's prompt and response, as transformers' processor counts them."""

    def __init__(self, size: int, prompt: Sequence[int]):
        self.size = size
        self.followers: dict[tuple[int, ...], set[int]] = defaultdict(set)
        self.tokens: list[int] = []
        for token in prompt:
            self.add(token)

    def add(self, token: int) -> None:
        """Take note of the row's next token."""
        self.tokens.append(token)
        if len(self.tokens) >= self.size:
            *before, last = self.tokens[-self.size :]
            self.followers[tuple(before)].add(last)

    def banned(self) -> list[int]:
        """What may not come next."""
        if len(self.tokens) + 1 < self.size:
            return []
        return sorted(self.followers.get(tuple(self.tokens[len(self.tokens) - self.size + 1 :]), ()))


class Chooser:
    """The next token of each row, from logits and the row's own stream."""

    def __init__(self, decode: EvalConfig):
        self.sampled = decode.do_sample
        self._noise: Tensor | None = None
        self.warpers = LogitsProcessorList()  # temperature, top-k and top-p as transformers does them
        if decode.temperature != 1.0:
            self.warpers.append(TemperatureLogitsWarper(decode.temperature))
        if decode.top_k:
            self.warpers.append(TopKLogitsWarper(decode.top_k))
        if decode.top_p < 1.0:
            self.warpers.append(TopPLogitsWarper(decode.top_p))

    def __call__(
        self, logits: Tensor, streams: Sequence[RowStream | None], bans: Sequence[NgramBan | None]
    ) -> tuple[Tensor, Tensor]:
        """The next token of each line `[lines]`, and whether another was as good within `TIE` `[lines]`.

        A line without a stream (a finished row) draws nothing.

        Args:
            logits: `[lines, V]` in fp32; overwritten.
            bans: a line's n-grams, or None where they may repeat.
        """
        for line, ban in enumerate(bans):
            if ban is not None and (tokens := ban.banned()):
                logits[line, tokens] = -torch.inf
        if not self.sampled:
            return _largest(logits)
        scores: Tensor = self.warpers(None, logits)  # type: ignore[arg-type]
        noise = self._room(scores)
        drawn = [(stream, noise[line]) for line, stream in enumerate(streams) if stream is not None]
        if noise.is_cuda or noise.shape[1] < WIDE:
            for stream, numbers in drawn:
                stream.fill(numbers)
        else:  # numpy draws without the interpreter's lock
            list(_threads().map(lambda one: one[0].fill(one[1]), drawn))
        return _largest(torch.sub(scores, noise.clamp_min_(LEAST).log_(), out=noise))

    def _room(self, scores: Tensor) -> Tensor:
        """Ones in the shape of `scores`, in a buffer that stays: fresh pages cost more than the draw."""
        if self._noise is None or self._noise.numel() < scores.numel():
            self._noise = torch.empty(scores.numel(), device=scores.device)
        return self._noise[: scores.numel()].view(scores.shape).fill_(1)


def _largest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The largest score's class `[lines]`, and whether the second comes within `TIE`; overwrites the largest."""
    best, chosen = scores.max(-1)
    second = scores.scatter_(-1, chosen.unsqueeze(-1), -torch.inf).amax(-1)
    return chosen, second > best - TIE
