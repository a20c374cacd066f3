"""Divergences from a mixture of teacher and student, which are always finite: skew KL and Jensen-Shannon."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.losses.base import Divergence, register, weighed


def log_mixture(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Log-probabilities of `weight * a + (1 - weight) * b` from log-probabilities a and b; the weight is in (0, 1)."""
    return torch.logaddexp(a + math.log(weight), b + math.log1p(-weight))


def _check(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name}={value} must be between 0 and 1, both excluded (at the ends it is fkl, rkl or 0)")


@register("skl")
@dataclass(frozen=True)
class SkewForwardKL(Divergence):
    """Skew forward KL(p || mix p + (1 - mix) q): forward KL that stays finite where the student gives no mass.

    Attributes:
        mix: the teacher's share of the mixture, in (0, 1); at 0 it is fkl.
    """

    source = "Ko et al. 2024 (DistiLLM); AKL section 5.1; MGSR table 3c"
    formula = "KL(p || m), m = mix p + (1 - mix) q"
    at_limits = "fkl as mix -> 0, 0 as mix -> 1; at most -log mix"
    mix: float = 0.1

    def __post_init__(self) -> None:
        _check("mix", self.mix)

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base class."""
        p, mixed = teacher.exp(), log_mixture(teacher, student, self.mix)
        _, value = weighed(p, teacher - mixed)
        # d/d log q = -p (1 - mix) q / m, and (1 - mix) q / m = exp(log q + log(1 - mix) - log m) is at most 1
        return value, p.neg_().mul_((student - mixed).add_(math.log1p(-self.mix)).exp_())


@register("srkl")
@dataclass(frozen=True)
class SkewReverseKL(Divergence):
    """Skew reverse KL(q || (1 - mix) p + mix q): reverse KL that stays finite where the teacher gives no mass.

    Attributes:
        mix: the student's share of the mixture, in (0, 1); at 0 it is rkl.
    """

    source = "Ko et al. 2024 (DistiLLM); AKL section 5.1; MGSR table 3c"
    formula = "KL(q || m), m = (1 - mix) p + mix q"
    at_limits = "rkl as mix -> 0, 0 as mix -> 1; at most -log mix"
    mix: float = 0.1

    def __post_init__(self) -> None:
        _check("mix", self.mix)

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base class."""
        q = student.exp()
        gap = student - log_mixture(student, teacher, self.mix)
        product, value = weighed(q, gap)
        # d/d log q = q (log q - log m + 1 - mix q / m)
        share = gap.add_(math.log(self.mix)).exp_()
        return value, product.add_(q).addcmul_(q, share, value=-1)


@register("jsd")
@dataclass(frozen=True)
class JensenShannon(Divergence):
    """Generalised Jensen-Shannon w KL(p || m) + (1 - w) KL(q || m) with m = w p + (1 - w) q.

    Public implementations disagree on whether their weight is the teacher's or the student's; the key here says so.

    Attributes:
        teacher_weight: w, the teacher's weight and its share of the mixture, in (0, 1).
    """

    source = "Agarwal et al. 2024 (GKD) eq. 1; Jensen's KL rows of ABKD"
    formula = "w KL(p || m) + (1 - w) KL(q || m), m = w p + (1 - w) q, w = teacher_weight"
    at_limits = "symmetric at 1/2; divided by w it is fkl as w -> 0, by 1 - w rkl as w -> 1"
    elsewhere = "the one number weights the teacher by 0.1 in DistiLLM and by 0.9 in ABKD, both called jsd"
    teacher_weight: float = 0.5

    def __post_init__(self) -> None:
        _check("teacher_weight", self.teacher_weight)

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base class."""
        w = self.teacher_weight
        mixed = log_mixture(teacher, student, w)
        _, forward = weighed(teacher.exp(), teacher - mixed)
        product, reverse = weighed(student.exp(), student - mixed)
        # The terms from the derivative of log m cancel: d/d log q = (1 - w) q (log q - log m)
        return w * forward + (1 - w) * reverse, product.mul_(1 - w)
