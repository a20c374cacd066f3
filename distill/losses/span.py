"""MGSR's span loss: how the predictions at neighbouring tokens of a phrase go together, in teacher and student."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

Spans = Sequence[tuple[int, int]]  # (first token, behind the last)
PER = ("tokens", "pairs")


def pair_weights(spans: Iterable[tuple[int, int]], length: int, per: str = "tokens") -> list[float]:
    """The weight of each pair of neighbouring tokens in a text's span loss (MGSR equation 10).

    The loss of a text is the sum of weight times distance: the mean over its spans of the distances inside a span over
    the span's tokens. Spans may overlap.

    Args:
        spans: the text's spans. Those of one token have no pair, and count in the mean as printed.
        length: the text's tokens.
        per: `tokens` divides by a span's tokens, as printed; `pairs` by its pairs, which are one fewer, and leaves out
            spans of one token.

    Returns:
        `length` numbers; the last, and those of pairs outside of spans, are 0.

    Raises:
        ValueError: a span is empty or lies outside of the text.
    """
    weights = [0.0] * length
    counted = [(first, end) for first, end in spans if per == "tokens" or end - first > 1]
    for first, end in counted:
        if not 0 <= first < end <= length:
            raise ValueError(f"span ({first}, {end}) does not lie in a text of {length} tokens")
        for token in range(first, end - 1):
            weights[token] += 1 / (end - first if per == "tokens" else end - first - 1) / len(counted)
    return weights


def pair_distances(q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """The distances of neighbours' products `||q_j q_j+1 - p_j p_j+1||` `[n - 1]`, and the differences `[n - 1, V]`.

    Args:
        q: the student's probabilities `[n, V]`.
        p: the teacher's probabilities `[n, V]`.
    """
    difference = (q[:-1] * q[1:]).addcmul_(p[:-1], p[1:], value=-1)
    return torch.linalg.vector_norm(difference, dim=-1), difference


def pair_gradient(q: Tensor, p: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of weight times distance over n - 1 pairs, and its gradient by the student's logits `[n, V]`.

    Args:
        q: the student's probabilities `[n, V]`.
        p: the teacher's probabilities `[n, V]`.
        weights: of the pairs `[n - 1]`.
    """
    distance, difference = pair_distances(q, p)
    # A distance of 0 has no slope, and one of rounding error no direction
    slope = (weights / distance.clamp_min(torch.finfo(distance.dtype).tiny)).masked_fill(
        distance <= torch.finfo(distance.dtype).eps, 0.0
    )
    difference *= slope.unsqueeze(-1)
    by_q = torch.zeros_like(q)
    by_q[:-1] = difference * q[1:]
    by_q[1:].addcmul_(difference, q[:-1])
    by_q -= torch.linalg.vecdot(by_q, q).unsqueeze(-1)
    return torch.dot(weights, distance), by_q.mul_(q)


class SpanPass:
    """The span loss of a chunk, block by block, from the logits that the other terms read.

    Args:
        student: the chunk's logits `[n, V]`, which are overwritten by the gradient block by block.
        teacher: likewise `[n, V']`.
        pairs: the weight of each token's pair with the next one `[n]`; the last is 0.
    """

    def __init__(self, student: Tensor, teacher: Tensor, pairs: Tensor):
        self.student, self.teacher, self.pairs = student, teacher, pairs
        self.needed = pairs != 0
        self.needed[1:] |= pairs[:-1] != 0
        self.rows: Tensor | None = None
        self.kept: tuple[Tensor, Tensor] | None = None  # probabilities of the last token that was read

    def read(self, block: slice) -> None:
        """Take the probabilities of a block, before its logits are overwritten."""
        width = min(self.student.shape[1], self.teacher.shape[1])
        first = block.start - 1 if self.kept is not None and self.pairs[block.start - 1] != 0 else block.start
        self.rows = None
        if not self.needed[block].any():
            self.kept = None
            return
        q, p = (logits[block, :width].softmax(-1) for logits in (self.student, self.teacher))
        if first < block.start and self.kept is not None:
            q, p = (torch.cat((last, x)) for last, x in zip(self.kept, (q, p), strict=True))
        self.kept = (q[-1:].clone(), p[-1:].clone())
        self.first, self.q, self.p, self.rows = first, q, p, self.pairs[first : block.stop - 1]

    def add_gradient(self, weight: float) -> Tensor:
        """Add the gradient of the pairs that end in the block that was read last, times `weight`; their sum."""
        if self.rows is None or not len(self.rows):
            return self.student.new_zeros(())
        total, gradient = pair_gradient(self.q, self.p, self.rows.to(self.q.dtype))
        rows = self.student[self.first : self.first + len(self.q), : gradient.shape[1]]
        rows.add_(gradient, alpha=weight)
        return total


class _Relation(torch.autograd.Function):
    """The weighted distances of whole logits; the gradient is computed in the forward pass."""

    @staticmethod
    def forward(ctx: object, student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
        total, gradient = pair_gradient(student.softmax(-1), teacher.softmax(-1), weights)
        ctx.gradient = gradient.to(student.dtype)  # type: ignore[attr-defined]
        return total

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.gradient * grads[0], None, None  # type: ignore[attr-defined]


def span_relation(student_logits: Tensor, teacher_logits: Tensor, spans: Spans, per: str = "tokens") -> Tensor:
    """MGSR's span loss of one text (equation 10), a scalar; 0 without spans.

    Args:
        student_logits: `[T, V]`, differentiated.
        teacher_logits: `[T, V]`, not differentiated.
        spans: (first token, behind the last) of each phrase.
        per: see `pair_weights`.

    Raises:
        ValueError: a span is empty or lies outside of the text, or `per` is no word that it may be.
    """
    if per not in PER:
        raise ValueError(f"per={per} must be one of {', '.join(PER)}")
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    weights = torch.tensor(pair_weights(spans, len(student_logits), per)[:-1], dtype=dtype).to(student_logits.device)
    student, teacher = student_logits.to(dtype), teacher_logits.detach().to(dtype)
    value: Tensor = _Relation.apply(student, teacher, weights)
    return value
