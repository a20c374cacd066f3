"""Concrete score distillation: the differences between classes' logits, matched."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from distill.losses.base import Divergence, register, weighed


@register("csd")
@dataclass(frozen=True)
class ConcreteScore(Divergence):
    """Half the variance of log q - log p under the student, whose probabilities as weights carry no gradient.

    It is the squared error of all differences between two logits, student against teacher, each pair weighted by
    the student's probabilities of both classes: the paper's (S, S) form, which its tables use.
    """

    source = "Kim et al. 2025 (CSD), arXiv 2509.25837, weights (S, S)"
    formula = "1/2 sum q (d - sum q d)^2, d = log q - log p, the weights q without gradient"
    at_limits = "0 at p = q"
    elsewhere = "the public file's value is another one with the same gradient"

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base class."""
        q, d = student.exp(), student - teacher
        _, mean = weighed(q, d)
        d -= mean.unsqueeze(-1)
        slope, _ = weighed(q, d)
        return weighed(slope, d)[1] / 2, slope
