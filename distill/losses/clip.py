"""Forward KL to a clipped teacher: its distribution on some of its classes, renormalised."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.losses.base import Divergence, register, weighed
from distill.losses.head import head_mask


def clipped_kl(student: Tensor, teacher: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p' || q) `[N]` and its derivative by log q `[N, V]`; p' is the teacher renormalised on the classes of `mask`.

    Args:
        student: log-probabilities `[N, V]`.
        teacher: log-probabilities `[N, V]`.
        mask: True at the classes that p' has mass on, `[N, V]`.
    """
    clipped = teacher.masked_fill(~mask, -torch.inf)
    log_mass = clipped.logsumexp(-1, keepdim=True)
    p = clipped.sub_(log_mass).exp_()
    _, value = weighed(p, (teacher - student).sub_(log_mass))
    return value, p.neg_()


@register("fixed_clip")
@dataclass(frozen=True)
class FixedClip(Divergence):
    """Forward KL(p' || q): p' is the teacher on its classes of probability >= `threshold`, and always the top class.

    At p = q it is -log of the teacher's mass on these classes. The paper states neither its threshold nor whether it
    renormalises: 0.001 and renormalising are this project's choice.

    Attributes:
        threshold: smallest probability of a class that is not clipped, in (0, 1).
    """

    source = "MGSR table 7, fixed clipping threshold"
    formula = "KL(p' || q), p' = p where p >= threshold, renormalised"
    at_limits = "fkl as threshold -> 0"
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
    """Forward KL(p' || q): p' is the teacher on its fewest top classes that together have the probability `mass`.

    At p = q it is -log of the teacher's mass on these classes.

    Attributes:
        mass: teacher mass that is not clipped, in (0, 1]; at 1 it is fkl.
    """

    source = "Raman et al. 2023; MGSR table 7 (cumulative threshold 0.95)"
    formula = "KL(p' || q), p' = p on its fewest top classes that hold mass, renormalised"
    at_limits = "fkl at mass = 1"
    mass: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.mass <= 1:
            raise ValueError(f"mass={self.mass} must be in (0, 1]")

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base class."""
        return clipped_kl(student, teacher, head_mask(teacher, teacher.exp(), self.mass))
