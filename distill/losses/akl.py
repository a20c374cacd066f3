"""Adaptive KL: forward and reverse KL weighted per token by where teacher and student differ."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from distill.base.registry import SWITCH
from distill.losses.base import Divergence, register
from distill.losses.head import head_mask
from distill.losses.kl import weighted_kl


def head_share(student: Tensor, teacher: Tensor, mu: float, crossing: bool = True) -> Tensor:
    """The head's share `[N]` of the gap `sum |p - q|` (AKL eq. 12 to 14), 1/2 where the gap is 0.

    Args:
        student: log-probabilities `[N, V]`.
        teacher: log-probabilities `[N, V]`.
        mu: teacher mass of the head.
        crossing: whether the class with which `mu` is reached belongs to the head.
    """
    p = teacher.exp()
    gap = student.exp().sub_(p).abs_()
    whole = gap.sum(-1)
    head = torch.linalg.vecdot(gap, head_mask(teacher, p, mu, crossing).to(gap.dtype))
    share = head / whole.clamp_min(torch.finfo(p.dtype).tiny)
    return torch.where(whole > 0, share, 0.5).clamp_(0, 1)


@register("akl")
@dataclass(frozen=True)
class AdaptiveKL(Divergence):
    """Adaptive KL: a KL(p || q) + (1 - a) KL(q || p), a = the head's share of the gap |p - q|, without gradient.

    The head is the fewest top teacher classes whose mass reaches `mu`. The class with which `mu` is reached belongs to
    the head, as in the paper's equation 12; in the published file it belongs to the tail.

    Attributes:
        mu: teacher mass of the head, in (0, 1].
        crossing: whether the class that crosses `mu` belongs to the head, or to the tail as in the published file.
    """

    source = "Wu et al. 2024 (AKL) eq. 12 to 15"
    formula = "a KL(p || q) + (1 - a) KL(q || p), a = gap over the head / gap over all classes, gap = |p - q|"
    at_limits = "fkl at mu = 1"
    elsewhere = (
        "the official file counts the class that crosses mu as tail; in ABKD's repository the name trains AlphaNet"
    )
    mu: float = 0.5
    crossing: str = field(default="head", metadata=SWITCH)

    def __post_init__(self) -> None:
        if self.crossing not in ("head", "tail"):
            raise ValueError(f"crossing={self.crossing} must be head or tail")
        if not 0 < self.mu <= 1:
            raise ValueError(f"mu={self.mu} must be in (0, 1]")

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base class."""
        share = head_share(student, teacher, self.mu, self.crossing == "head")
        return weighted_kl(student, teacher, share, 1 - share)


@register("akl_r")
@dataclass(frozen=True)
class FlippedAdaptiveKL(AdaptiveKL):
    """Adaptive KL with its two weights exchanged, the paper's ablation."""

    source = "Wu et al. 2024 (AKL) eq. 16"
    formula = "(1 - a) KL(p || q) + a KL(q || p), a as in akl"
    at_limits = "rkl at mu = 1"

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base class."""
        share = head_share(student, teacher, self.mu, self.crossing == "head")
        return weighted_kl(student, teacher, 1 - share, share)
