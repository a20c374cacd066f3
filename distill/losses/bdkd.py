"""Bidirectional KL weighted by entropy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.losses.base import Divergence, register, weighed
from distill.losses.kl import weighted_kl


def entropy(log_probs: Tensor) -> Tensor:
    """Entropy in nats `[N]` of log-probabilities `[N, V]`."""
    return -weighed(log_probs.exp(), log_probs)[1]


@register("bdkd")
@dataclass(frozen=True)
class BidirectionalKD(Divergence):
    """Forward KL, weighted where the teacher's entropy is larger, plus reverse KL, weighted where the student's is.

    The other weight is 1, and so are both where the entropies are equal. The weights carry no gradient.

    Attributes:
        weight: the larger weight, 1 or more.
    """

    source = "Amara et al. 2022 (BD-KD); AKL section 5.1; BDKD rows of ABKD"
    formula = "u KL(p || q) + v KL(q || p), u = weight where H(p) > H(q), v = weight where H(q) > H(p), else 1"
    at_limits = "weighted(1, 1) at weight 1"
    elsewhere = "in ABKD's repository the name trains AlphaNet"
    weight: float = 3.0

    def __post_init__(self) -> None:
        if self.weight < 1:
            raise ValueError(f"weight={self.weight} must be 1 or more")

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base class."""
        excess = entropy(teacher) - entropy(student)
        ones = torch.ones_like(excess)
        forward, reverse = torch.where(excess > 0, self.weight, ones), torch.where(excess < 0, self.weight, ones)
        return weighted_kl(student, teacher, forward, reverse)
