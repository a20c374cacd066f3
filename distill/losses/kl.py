"""Forward and reverse Kullback-Leibler divergence, and weighted sums of the two."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from distill.base.registry import SWITCH
from distill.losses.base import Divergence, register, weighed


def forward_kl(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p || q) `[N]` from log-probabilities `[N, V]`, and its derivative by log q `[N, V]`; 0 at p = q."""
    p = teacher.exp()
    _, value = weighed(p, teacher - student)
    return value, p.neg_()


def reverse_kl(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """KL(q || p) `[N]` from log-probabilities `[N, V]`, and its derivative by log q `[N, V]`; 0 at p = q."""
    q = student.exp()
    product, value = weighed(q, student - teacher)
    return value, product.add_(q)


def weighted_kl(student: Tensor, teacher: Tensor, forward: Tensor, reverse: Tensor) -> tuple[Tensor, Tensor]:
    """`forward * KL(p || q) + reverse * KL(q || p)` `[N]`, and its derivative by log q `[N, V]`.

    A KL of weight 0 adds 0, even if it is infinite.

    Args:
        student: log-probabilities `[N, V]`.
        teacher: log-probabilities `[N, V]`.
        forward: weights `[N]`, treated as constants.
        reverse: weights `[N]`, treated as constants.
    """
    (f, f_slope), (r, r_slope) = forward_kl(student, teacher), reverse_kl(student, teacher)
    if (unused := reverse == 0).any():
        r, r_slope = r.masked_fill(unused, 0), r_slope.masked_fill_(unused.unsqueeze(-1), 0)
    if (unused := forward == 0).any():
        f = f.masked_fill(unused, 0)
    slope = f_slope.mul_(forward.unsqueeze(-1)).addcmul_(r_slope, reverse.unsqueeze(-1))
    return forward * f + reverse * r, slope


@register("fkl")
@dataclass(frozen=True)
class ForwardKL(Divergence):
    """Forward KL(p || q): the student covers every mode of the teacher p.

    Infinite if the student gives no mass to a class of the teacher. Public code of this name often leaves out the
    teacher's entropy and logs a cross-entropy; this is the divergence.

    Attributes:
        entropy: whether the teacher's entropy is part of the value; the gradient is the same.
    """

    source = "Hinton et al. 2015; AKL eq. 1"
    formula = "sum p (log p - log q)"
    at_limits = "ab(1, 0); skl as mix -> 0; top_p_clip at mass 1"
    elsewhere = "often without the teacher's entropy, which is a cross-entropy: same gradient, other value"

    entropy: bool = field(default=True, metadata=SWITCH)

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base class."""
        value, slope = forward_kl(student, teacher)
        return (value if self.entropy else value - weighed(teacher.exp(), teacher)[1]), slope


@register("rkl")
@dataclass(frozen=True)
class ReverseKL(Divergence):
    """Reverse KL(q || p): the student q keeps to the teacher's modes.

    Infinite if the teacher gives no mass to a class of the student.
    """

    source = "Gu et al. 2024 (MiniLLM); AKL eq. 2"
    formula = "sum q (log q - log p)"
    at_limits = "ab(0, 1); srkl as mix -> 0"

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base class."""
        return reverse_kl(student, teacher)


@register("weighted")
@dataclass(frozen=True)
class Weighted(Divergence):
    """Weighted sum `forward` KL(p || q) + `reverse` KL(q || p): WSD, FKL+RKL.

    Attributes:
        forward: weight of the forward KL, 0 or more.
        reverse: weight of the reverse KL, 0 or more.
    """

    source = "AKL eq. 15 with fixed weights and table 4; WSD row of ABKD"
    formula = "forward KL(p || q) + reverse KL(q || p)"
    at_limits = "fkl at reverse = 0, rkl at forward = 0"
    forward: float = 0.5
    reverse: float = 0.5

    def __post_init__(self) -> None:
        if self.forward < 0 or self.reverse < 0 or self.forward + self.reverse == 0:
            raise ValueError(f"forward={self.forward} and reverse={self.reverse} must be 0 or more, and one positive")

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base class."""
        ones = student.new_ones(student.shape[0])
        return weighted_kl(student, teacher, self.forward * ones, self.reverse * ones)
