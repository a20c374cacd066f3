"""Adaptive KL: forward and reverse KL weighted per token by where teacher and student differ."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.losses.base import Divergence, register
from distill.losses.kl import forward_kl, reverse_kl

FIRST_TRY = 16  # classes that hold half of a language model's mass nearly always; few enough for a partial sort


def head_gap(gap: Tensor, probs: Tensor, mu: float) -> Tensor:
    """Sum of `gap` over the head: the fewest top classes of `probs` whose mass reaches `mu`, the crossing one included.

    `gap` and `probs` are `[N, V]`, the result `[N]`. A partial sort is enough where the head is short; rows it does
    not settle are done again with more classes, the last time with all.
    """
    result = torch.zeros(probs.shape[0], dtype=probs.dtype, device=probs.device)
    rows, size = torch.arange(probs.shape[0], device=probs.device), min(FIRST_TRY, probs.shape[-1])
    while rows.numel():
        top, classes = probs[rows].topk(size, dim=-1)
        mass = top.double().cumsum(-1)
        in_head = (mass - top) < mu  # the mass before a class has not reached mu
        result[rows] = (gap[rows].gather(-1, classes) * in_head).sum(-1)
        if size == probs.shape[-1]:
            break
        rows = rows[mass[:, -1] < mu]
        size = min(size * 16, probs.shape[-1])
    return result


def head_share(student: Tensor, teacher: Tensor, mu: float) -> Tensor:
    """The head's share of the whole gap `sum |p - q|` per token (AKL eq. 12 to 14), 1/2 where there is no gap.

    Carries no gradient.
    """
    with torch.no_grad():
        p, q = (x.exp().reshape(-1, x.shape[-1]) for x in (teacher, student))
        gap = (p - q).abs()
        whole = gap.sum(-1)
        share = torch.where(whole > 0, head_gap(gap, p, mu) / whole.clamp_min(torch.finfo(p.dtype).tiny), 0.5)
        return share.clamp(0, 1).view(teacher.shape[:-1])


@register("akl")
@dataclass(frozen=True)
class AdaptiveKL(Divergence):
    """Adaptive KL: a KL(p || q) + (1 - a) KL(q || p), a = the head's share of the gap |p - q|.

    The head is the fewest top teacher classes whose mass reaches `mu`. The published file counts the class that
    crosses `mu` as tail; the paper's equation 12, and this, as head.

    Attributes:
        mu: teacher mass of the head, in (0, 1].
    """

    source = "Wu et al. 2024 (AKL) eq. 11 to 15"
    mu: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.mu <= 1:
            raise ValueError(f"mu={self.mu} must be in (0, 1]")

    def from_log_probs(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> Tensor:
        """See the base class."""
        share = head_share(student, teacher, self.mu)
        return share * forward_kl(student, teacher) + (1 - share) * reverse_kl(student, teacher)
