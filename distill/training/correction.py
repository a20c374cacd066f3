"""Where the teacher corrects a student's text (MGSR 4.1, equation 3), and what a correction changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.generation.decode import MIN_EXPONENTIAL, RowStream
from distill.losses import Head
from distill.losses.logits import chunk_size


@dataclass(frozen=True)
class Error:
    """The token of a text that is to be corrected.

    Attributes:
        place: its index in the response.
        token: the teacher's token for this place.
        kl: KL(student || teacher) there, in nats.
    """

    place: int
    token: int
    kl: float


@dataclass(frozen=True)
class Correction:
    """What a correction did to a text, for the log.

    Attributes:
        place: the error's index as a share of the text's tokens, in [0, 1).
        kl: KL(student || teacher) there, in nats.
        changed: the share of the new text's tokens that are not those of the old text at the same place.
    """

    place: float
    kl: float
    changed: float

    @staticmethod
    def of(error: Error, old: Sequence[int], new: Sequence[int]) -> Correction:
        """The correction of an error that made `new` of the tokens `old`."""
        same = sum(a == b for a, b in zip(old, new, strict=False))
        return Correction(error.place / len(old), error.kl, 1 - same / max(1, len(new)))


@torch.no_grad()
def errors(
    hidden: tuple[Tensor, Tensor],
    heads: tuple[Head, Head],
    tokens: Tensor,
    lengths: Sequence[int],
    names: Sequence[str],
    greedy: bool,
    vocabulary: int | None = None,
) -> list[Error | None]:
    """The error of each text: of the places where the teacher's token is another one, that of the largest KL.

    The teacher's token at a place is drawn from its distribution there, or its likeliest one. Places are tried
    in descending order of their KL until one differs, which finds the same place as drawing a token everywhere.

    Args:
        hidden: last hidden states `[N, d]` of student and teacher at the response positions, text by text.
        heads: of student and teacher. Vocabularies are cut to the common width.
        tokens: the student's tokens `[N]`, EOS included.
        lengths: of the texts; their sum is N.
        names: of each text's random stream. The draw at a place has a stream of its own.
        greedy: whether the teacher's token is its likeliest one.
        vocabulary: see `Decoding`.

    Returns:
        The error of each text; None if teacher and student agree everywhere.
    """
    width = min(head.weight.shape[0] for head in heads)
    width = width if vocabulary is None else min(width, vocabulary)
    kl = _kl(hidden, heads, width)
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    order = [k.argsort(descending=True, stable=True).tolist() for k in kl.split(list(lengths))]
    result: list[Error | None] = [None] * len(lengths)
    tried = [0] * len(lengths)
    open_texts = [i for i, length in enumerate(lengths) if length]
    while open_texts:
        places = [order[i][tried[i]] for i in open_texts]
        rows = torch.tensor([starts[i] + place for i, place in zip(open_texts, places, strict=True)])
        logits = heads[1](hidden[1][rows.to(hidden[1].device)])[:, :width].float()
        if not greedy:
            streams = [f"{names[i]}/{place}" for i, place in zip(open_texts, places, strict=True)]
            logits = _with_noise(logits, streams)
        chosen, still_open = logits.argmax(-1).tolist(), []
        for i, place, row, token in zip(open_texts, places, rows.tolist(), chosen, strict=True):
            tried[i] += 1
            if token != int(tokens[row]):
                result[i] = Error(place, token, float(kl[row]))
            elif tried[i] < lengths[i]:
                still_open.append(i)
        open_texts = still_open
    return result


def _kl(hidden: tuple[Tensor, Tensor], heads: tuple[Head, Head], width: int) -> Tensor:
    """KL(student || teacher) `[N]` in nats, chunk by chunk."""
    chunks = [hidden[0].new_zeros(0, dtype=torch.float32)]
    step = chunk_size(max(head.weight.shape[0] for head in heads), hidden[0].device)
    for begin in range(0, len(hidden[0]), step):
        part = slice(begin, begin + step)
        q, p = (h(x[part])[:, :width].float().log_softmax(-1) for h, x in zip(heads, hidden, strict=True))
        chunks.append(torch.linalg.vecdot(q.exp(), q - p))
    return torch.cat(chunks)


def _with_noise(logits: Tensor, streams: Sequence[str]) -> Tensor:
    """The logits, plus for each row the Gumbel noise of its stream: the largest is a draw from the softmax."""
    noise = torch.ones_like(logits)
    for row, name in enumerate(streams):
        RowStream(name, logits.device).fill(noise[row])
    return logits - noise.clamp_min_(MIN_EXPONENTIAL).log_()
