"""Forward KL to a clipped teacher: some of its classes, renormalised."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.losses.base import Divergence, register, weighed
from distill.losses.head import head_mask


def clipped_kl(student: Tensor, teacher: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p' || q) `[N]` with p' the teacher renormalised on the classes `kept` `[N, V]`, and its slope."""
    clipped = teacher.masked_fill(~kept, -torch.inf)
    held = clipped.logsumexp(-1, keepdim=True)
    p = clipped.sub_(held).exp_()
    _, value = weighed(p, (teacher - student).sub_(held))
    return value, p.neg_()


@register("fixed_clip")
@dataclass(frozen=True)
class FixedClip(Divergence):
    """Forward KL(p' || q) to the teacher's classes of probability `threshold` and more, the top class always.

    At p = q it is -log of the mass kept. The paper gives neither its threshold nor whether it renormalises: 0.001 and
    yes are this project's own choice.

    Attributes:
        threshold: smallest probability that is kept, in (0, 1).
    """

    source = "MGSR table 7, fixed clipping threshold"
    formula = "KL(p' || q), p' = p where p >= threshold, renormalised"
    limits = "fkl as threshold -> 0"
    threshold: float = 0.001

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold={self.threshold} must be between 0 and 1")

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base class."""
        least = teacher.amax(-1, keepdim=True).clamp_(max=math.log(self.threshold))
        return clipped_kl(student, teacher, teacher >= least)


@register("top_p_clip")
@dataclass(frozen=True)
class TopPClip(Divergence):
    """Forward KL(p' || q) to the fewest top classes of the teacher that hold `mass`.

    At p = q it is -log of the mass kept.

    Attributes:
        mass: teacher mass that is kept, in (0, 1]; at 1 it is fkl.
    """

    source = "Raman et al. 2023; MGSR table 7 (cumulative threshold 0.95)"
    formula = "KL(p' || q), p' = p on its fewest top classes that hold mass, renormalised"
    limits = "fkl at mass = 1"
    mass: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.mass <= 1:
            raise ValueError(f"mass={self.mass} must be in (0, 1]")

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base class."""
        return clipped_kl(student, teacher, head_mask(teacher, teacher.exp(), self.mass))
