"""ToDi: forward and reverse KL weighted class by class."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from distill.losses.base import Divergence, register, weighed


@register("todi")
@dataclass(frozen=True)
class ToDi(Divergence):
    """Each class's part of forward KL weighted by a, and its part of reverse KL by 1 - a, without gradient to a.

    Forward KL leads where the student gives a class too little, reverse KL where it gives too much. The value is
    KL(p || q) + KL(q || p), since a p - (1 - a) q = p - q; the gradient is another one, because a is held still.
    """

    source = "Jung et al. 2025 (ToDi), arXiv 2505.16297"
    formula = "sum a p log(p / q) + (1 - a) q log(q / p), a = p / (p + q) per class"
    at_limits = "its value is weighted(1, 1)'s"

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base class."""
        p, q, ratio = teacher.exp(), student.exp(), teacher - student
        a = ratio.sigmoid()
        forward, reverse = a * p, (1 - a).mul_(q)
        _, value = weighed(p - q, ratio)
        product, _ = weighed(reverse, ratio)
        return value, reverse.sub_(forward).sub_(product)  # d/dlog q of a p (-log q) and of (1 - a) q (log q - log p)
