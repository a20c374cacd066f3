"""Forward and reverse Kullback-Leibler divergence."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from distill.losses.base import Divergence, expectation, log_ratio, register


def forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(p || q) per token from log-probabilities `[..., V]`, with the teacher's entropy, so 0 at p = q."""
    return expectation(teacher, log_ratio(teacher, student))


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(q || p) per token from log-probabilities `[..., V]`."""
    return expectation(student, log_ratio(student, teacher))


@register("fkl")
@dataclass(frozen=True)
class ForwardKL(Divergence):
    """Forward KL(p || q): the student covers every mode of the teacher p.

    Infinite where the student gives no mass to a class of the teacher. Public code of this name often leaves the
    teacher's entropy out and logs a cross-entropy; this is the divergence.
    """

    source = "Hinton et al. 2015; AKL eq. 2"

    def from_log_probs(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> Tensor:
        """See the base class."""
        return forward_kl(student, teacher)


@register("rkl")
@dataclass(frozen=True)
class ReverseKL(Divergence):
    """Reverse KL(q || p): the student q keeps to the teacher's modes.

    Infinite where the teacher gives no mass to a class of the student.
    """

    source = "Gu et al. 2024 (MiniLLM); AKL eq. 3"

    def from_log_probs(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> Tensor:
        """See the base class."""
        return reverse_kl(student, teacher)
