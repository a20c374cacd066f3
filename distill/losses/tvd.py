"""Total variation distance."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from distill.losses.base import Divergence, register


@register("tvd")
@dataclass(frozen=True)
class TotalVariation(Divergence):
    """Total variation: half the L1 distance of p and q, between 0 and 1; symmetric."""

    source = "Wen et al. 2023 (f-distill); MGSR table 3c"
    formula = "1/2 sum |p - q|"
    at_limits = "between 0 and 1"

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base class."""
        q = student.exp()
        gap = q - teacher.exp()
        value = gap.abs().sum(-1) / 2
        return value, q.mul_(gap.sign_()).div_(2)
