"""The alpha-beta divergence on the whole plane, its three lines included.

With x = log(q/p) and s = alpha + beta, the divergence of equation (ABKD) is the sum over classes of

    p^s [E(s, x) - E(beta, x)] / alpha,     E(c, x) = (exp(c x) - 1) / c,  E(0, x) = x,

which has no singularity at beta = 0 or s = 0. Exchanging (p, alpha) with (q, beta) gives the same divergence, so the
larger of alpha and beta in size is taken as the divisor, and alpha = 0 is no special case either; at alpha = beta = 0
the sum is x^2 / 2. Where that divisor is small the two E differ by little near x = 0; there the term is written with
h(z) = (exp(z) - 1 - z) / z^2, whose parts have one sign, so nothing cancels:

    p^s x^2 [s h(s x) - beta h(beta x)] / alpha.

The derivative of a class's term by log q is, in the original alpha and beta, q^beta (q^alpha - p^alpha) / alpha.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill.losses.base import Divergence, register

SMALL = 0.25  # below it, fp32 differences near x = 0 lose digits that a training log would show


def _power_difference(start: Tensor, end: Tensor, x: Tensor, c: float) -> Tensor:
    """`(exp(end) - exp(start)) / c` where `end = start + c x`, exact near x = 0, and `exp(start) x` at c = 0.

    The two exponents are given apart: their sum would lose digits at extreme logits.
    """
    if c == 0:
        return (start.exp() * x).masked_fill(start.isneginf(), 0)
    step = c * x
    size = torch.maximum(start, end).exp_()
    return size.mul_(step.abs().neg_().expm1_()).mul_(step.sign_()).mul_(-1 / c)


def _h(z: Tensor) -> Tensor:
    """`(exp(z) - 1 - z) / z^2` for |z| <= 1 by its Taylor series, to 1e-16."""
    term = torch.full_like(z, 0.5)
    total = term.clone()
    for n in range(3, 19):
        term = term * z / n
        total += term
    return total


def _terms(log_p: Tensor, log_q: Tensor, alpha: float, beta: float) -> Tensor:
    """The divergence's terms, class by class."""
    if abs(alpha) < abs(beta):
        log_p, log_q, alpha, beta = log_q, log_p, beta, alpha
    x, s = log_q - log_p, alpha + beta
    if alpha == 0:
        return x.square().div_(2)
    base = s * log_p
    far = _power_difference(base, s * log_q, x, s)
    far = far.sub_(_power_difference(base, alpha * log_p + beta * log_q, x, beta)).div_(alpha)
    if abs(alpha) >= SMALL:
        return far
    reach = max(abs(s), abs(beta), abs(alpha))
    near_x = x.clamp(-1 / reach, 1 / reach)
    near = base.exp() * near_x.square() * (s * _h(s * near_x) - beta * _h(beta * near_x)) / alpha
    return torch.where(x.abs() * reach < 1, near, far)


class _Sum(torch.autograd.Function):
    """Sum of the terms over classes, with the derivative by log q written down."""

    @staticmethod
    def forward(ctx: Any, log_q: Tensor, log_p: Tensor, alpha: float, beta: float) -> Tensor:
        outside = log_p.isneginf() & log_q.isneginf() if log_p.isneginf().any() else None
        if outside is not None:  # the same log-probability in both: x = 0, so the term is 0
            log_p, log_q = log_p.masked_fill(outside, 0), log_q.masked_fill(outside, 0)
        ctx.save_for_backward(log_q, log_p)
        ctx.alpha, ctx.beta = alpha, beta
        return _terms(log_p, log_q, alpha, beta).sum(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        log_q, log_p = ctx.saved_tensors
        # q^beta (q^alpha - p^alpha) / alpha = q^s E(-alpha, x) with x = log(q/p), and q^beta x at alpha = 0.
        end = ctx.alpha * log_p + ctx.beta * log_q
        slope = _power_difference((ctx.alpha + ctx.beta) * log_q, end, log_q - log_p, -ctx.alpha)
        return slope.mul_(grads[0].unsqueeze(-1)), None, None, None


@register("ab")
@dataclass(frozen=True)
class AlphaBeta(Divergence):
    """Alpha-beta divergence: alpha = 1, beta = 0 is KL(p || q), alpha = 0, beta = 1 is KL(q || p).

    -1/(alpha beta) sum[p^alpha q^beta - alpha/(alpha+beta) p^(alpha+beta) - beta/(alpha+beta) q^(alpha+beta)],
    continued on alpha = 0, beta = 0 and alpha + beta = 0 by its limits (the published code's special cases are smaller
    by a factor alpha or beta). With alpha or beta negative it can be truly infinite at extreme logits, and is then
    reported as such. Classes outside both supports (logit -inf in both) do not count.

    Attributes:
        alpha: weight of the teacher's power; larger trusts the teacher's large classes more.
        beta: weight of the student's power.
    """

    source = "Wang et al. 2025 (ABKD), the alpha-beta divergence and its extensions"
    alpha: float = 0.2
    beta: float = 0.7

    def from_log_probs(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> Tensor:
        """See the base class."""
        total: Tensor = _Sum.apply(student, teacher, float(self.alpha), float(self.beta))
        return total
