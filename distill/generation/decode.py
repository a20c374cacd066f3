"""Choosing the next token of every row: temperature, top-k and top-p, random streams per row, n-gram bans."""

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

# The smallest exponential that is used. About one of ten million of numpy's fp32 exponentials is rounded to 0; before
# rounding it is about this large on average. With a 0 the logarithm is -inf, and the token wins whatever its score is.
# With a vocabulary of 50,000 this would happen at one of two hundred tokens.
MIN_EXPONENTIAL = 2.0**-25
THREADED_CLASSES = 2**13  # from this vocabulary size on, drawing the rows' numbers in several threads is faster
TIE = 1e-4  # scores that differ by less may change order in fp32, since another batch size rounds differently


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="noise")


def row_digest(stream: str) -> bytes:
    """The 32 bytes that seed the random stream of this name."""
    return hashlib.sha256(stream.encode()).digest()


class RowStream:
    """The random stream of one response row, which depends only on its name and the device type.

    Sampling takes the argmax of `logits - log(e)` with `e` exponential (the Gumbel trick). Unlike inverting a
    cumulative sum, all of whose boundaries move with rounding, rounding changes the choice only if two classes tie.

    Args:
        name: see `distill.generation.requests.stream_name`.
        device: where the numbers are drawn. The streams of a CPU and of a GPU differ.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu"):
        digest = row_digest(name)
        self._generator: np.random.Generator | torch.Generator
        if torch.device(device).type == "cpu":
            self._generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
        else:  # drawn on the device, since copying a number per class for each row and step would be slow
            self._generator = torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def fill(self, numbers: Tensor) -> None:
        """Overwrite an fp32 vector on the stream's device with the next standard exponentials."""
        if isinstance(self._generator, torch.Generator):
            numbers.exponential_(generator=self._generator)
        else:
            self._generator.standard_exponential(dtype=np.float32, out=numbers.numpy())


class NgramBan:
    """The tokens that would repeat an n-gram of a row's prefix and response, as in NoRepeatNGramLogitsProcessor.

    Args:
        size: length of the n-grams.
        prefix: token ids before the response.
    """

    def __init__(self, size: int, prefix: Sequence[int]):
        self.size = size
        self.followers: dict[tuple[int, ...], set[int]] = defaultdict(set)
        self.tokens: list[int] = []
        for token in prefix:
            self.add(token)

    def add(self, token: int) -> None:
        """Append a token and record the n-gram that it completes."""
        self.tokens.append(token)
        if len(self.tokens) >= self.size:
            *context, last = self.tokens[-self.size :]
            self.followers[tuple(context)].add(last)

    def banned(self) -> list[int]:
        """The tokens that may not come next, in ascending order."""
        if len(self.tokens) + 1 < self.size:
            return []
        return sorted(self.followers.get(tuple(self.tokens[len(self.tokens) - self.size + 1 :]), ()))


class Chooser:
    """Chooses the next token of each row from its logits and its random stream."""

    def __init__(self, settings: EvalConfig):
        self.sampled = settings.do_sample
        self._noise: Tensor | None = None
        self.warpers = LogitsProcessorList()  # in the order of transformers' `generate`
        if settings.temperature != 1.0:
            self.warpers.append(TemperatureLogitsWarper(settings.temperature))
        if settings.top_k:
            self.warpers.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p < 1.0:
            self.warpers.append(TopPLogitsWarper(settings.top_p))

    def __call__(
        self, logits: Tensor, streams: Sequence[RowStream | None], bans: Sequence[NgramBan | None]
    ) -> tuple[Tensor, Tensor]:
        """The next token of each row `[rows]`, and whether the second best score was within `TIE` of the best `[rows]`.

        Args:
            logits: `[rows, V]` in fp32; overwritten.
            streams: of each row; None for a finished row, whose token is not used.
            bans: of each row; None where n-grams may repeat.
        """
        for row, ban in enumerate(bans):
            if ban is not None and (tokens := ban.banned()):
                logits[row, tokens] = -torch.inf
        if not self.sampled:
            return _argmax(logits)
        scores: Tensor = self.warpers(None, logits)  # type: ignore[arg-type]
        noise = self._ones_like(scores)
        to_fill = [(stream, noise[row]) for row, stream in enumerate(streams) if stream is not None]
        if noise.is_cuda or noise.shape[1] < THREADED_CLASSES:
            for stream, numbers in to_fill:
                stream.fill(numbers)
        else:  # numpy releases the interpreter's lock while it draws
            list(_threads().map(lambda pair: pair[0].fill(pair[1]), to_fill))
        return _argmax(torch.sub(scores, noise.clamp_min_(MIN_EXPONENTIAL).log_(), out=noise))

    def _ones_like(self, scores: Tensor) -> Tensor:
        """Ones in the shape of `scores`.

        The buffer is reused: page faults of new memory would cost more time than the draws.
        """
        if self._noise is None or self._noise.numel() < scores.numel():
            self._noise = torch.empty(scores.numel(), device=scores.device)
        return self._noise[: scores.numel()].view(scores.shape).fill_(1)


def _argmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The class of the largest score `[rows]`, and whether the second largest is within `TIE` of it.

    Overwrites the largest score of each row.
    """
    best, chosen = scores.max(-1)
    second = scores.scatter_(-1, chosen.unsqueeze(-1), -torch.inf).amax(-1)
    return chosen, second > best - TIE
