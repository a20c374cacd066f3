"""Decoupled knowledge distillation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.losses.base import OUTSIDE, Divergence, register, weighed


@register("dkd")
@dataclass(frozen=True)
class DecoupledKD(Divergence):
    """Forward KL split in two: alpha KL of target against the rest, plus beta KL among the rest.

    Forward KL is the first KL plus the teacher's non-target mass times the second. The defaults are the paper's for
    most of its CIFAR-100 pairs; MGSR does not state its own.

    Attributes:
        alpha: weight of the binary KL (target class or not), 0 or more.
        beta: weight of the KL among the other classes, 0 or more.
    """

    source = "Zhao et al. 2022 (DKD) eq. 7; MGSR table 7"
    formula = "alpha KL(b_p || b_q) + beta KL(p' || q'), b = (target, rest), ' = renormalised on the rest"
    at_limits = "fkl is the first, plus the teacher's mass on the rest times the second"
    reads_targets = True
    alpha: float = 1.0
    beta: float = 8.0

    def __post_init__(self) -> None:
        if self.alpha < 0 or self.beta < 0 or self.alpha + self.beta == 0:
            raise ValueError(f"alpha={self.alpha} and beta={self.beta} must be 0 or more, and one positive")

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base class."""
        assert targets is not None
        index = targets.unsqueeze(-1)
        (q_t, q_rest, q_others), (p_t, p_rest, p_others) = (_split(x, index) for x in (student, teacher))
        both = torch.stack([p_t, p_rest], -1)
        _, binary = weighed(both.exp(), both - torch.stack([q_t, q_rest], -1))
        p, q = p_others.exp(), q_others.exp()
        beta = torch.full_like(p_rest, self.beta)
        if (no_rest := p_rest < OUTSIDE / 2).any():  # all of the teacher's mass is on the target
            beta, p = beta.masked_fill(no_rest, 0), p.masked_fill_(no_rest.unsqueeze(-1), 0)
        _, among = weighed(p, (p_others - q_others).scatter_(-1, index, 0))
        # By log q: -p_t at the target; elsewhere, with q' the student's share among the others,
        # -alpha (1 - p_t) q' + beta (q' - p')
        slope = q.mul_((beta - self.alpha * p_rest.exp()).unsqueeze(-1)).sub_(p, alpha=self.beta)
        slope.scatter_(-1, index, -self.alpha * p_t.exp().unsqueeze(-1))
        parts = ((self.alpha, binary), (self.beta, among))  # a part of weight 0 is left out, as it may be infinite
        return torch.stack([weight * part for weight, part in parts if weight]).sum(0), slope


def _split(log_probs: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of the target `[N]`, of all others together `[N]`, and of each among the others `[N, V]`."""
    others = log_probs.scatter(-1, index, -torch.inf)
    rest = others.logsumexp(-1)
    return log_probs.gather(-1, index).squeeze(-1), rest, others.sub_(rest.clamp_min(OUTSIDE).unsqueeze(-1))
