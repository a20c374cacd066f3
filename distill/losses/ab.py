"""The alpha-beta divergence for all alpha and beta, including alpha = 0, beta = 0 and alpha + beta = 0.

With x = log(q/p) and s = alpha + beta, the divergence of equation (ABKD) is the sum over classes of

    p^s [E(s, x) - E(beta, x)] / alpha,     E(c, x) = (exp(c x) - 1) / c,  E(0, x) = x,

which has no singularity at beta = 0 or s = 0. Exchanging (p, alpha) with (q, beta) gives the same divergence, so the
larger of alpha and beta in size is taken as the divisor, and alpha = 0 is no special case either; at alpha = beta = 0
the sum is x^2 / 2. Where that divisor is small the two E differ by little near x = 0; there the term is written with
h(z) = (exp(z) - 1 - z) / z^2, whose parts have one sign, so nothing cancels:

    p^s x^2 [s h(s x) - beta h(beta x)] / alpha.

The derivative of a class's term by log q is, in the original alpha and beta, q^beta (q^alpha - p^alpha) / alpha, which
is p^s [exp(s x) - exp(beta x)] / alpha. Where alpha and beta are well above 0 and no x is extreme, the first form
serves value and derivative as it stands.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from distill.base.registry import SWITCH
from distill.losses.base import OUTSIDE, Divergence, WholeBatch, register

PLAIN = 0.05  # dividing by an alpha or beta of at least this size loses no digits
LARGEST = 80.0  # exponent up to which exp does not overflow fp32
SMALL = 0.25  # with a smaller divisor, fp32 differences near x = 0 lose digits that a training log would show


def _power_difference(start: Tensor, end: Tensor, x: Tensor, c: float) -> Tensor:
    """`(exp(end) - exp(start)) / c` where `end = start + c x`, exact near x = 0, and `exp(start) x` at c = 0.

    Both exponents are arguments: computing `end` from `start` and `x` would lose digits at extreme logits.
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
    """The terms `[N, V]` of the divergence's sum over classes."""
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


def _slope(log_p: Tensor, log_q: Tensor, alpha: float, beta: float) -> Tensor:
    """q^beta (q^alpha - p^alpha) / alpha = q^s E(-alpha, x) with x = log(q/p), and q^beta x at alpha = 0."""
    end = alpha * log_p + beta * log_q
    return _power_difference((alpha + beta) * log_q, end, log_q - log_p, -alpha)


def alpha_beta(log_q: Tensor, log_p: Tensor, alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    """The divergence `[N]` from log-probabilities `[N, V]` of student and teacher, and its derivative by log q."""
    s = alpha + beta
    x = log_q - log_p
    if min(alpha, beta) >= PLAIN and s * x.amax() < LARGEST:
        base = (s * log_p).exp_()
        with_s, with_beta = (s * x).expm1_(), x.mul_(beta).expm1_()
        slope = (with_s - with_beta).mul_(base).div_(alpha)
        value = torch.linalg.vecdot(base, with_s.div_(s).sub_(with_beta, alpha=1 / beta)) / alpha
        return value, slope
    if min(alpha, beta, s) < 0 and bool((outside := (log_p == OUTSIDE) & (log_q == OUTSIDE)).any()):
        log_p, log_q = log_p.masked_fill(outside, 0), log_q.masked_fill(outside, 0)  # x = 0, and no power overflows
    value = _terms(log_p, log_q, alpha, beta).sum(-1)
    if (undefined := value.isnan()).any():  # infinity minus infinity, from a negative power of a vanishing probability
        value = value.masked_fill(undefined & ~(log_p + log_q).isnan().any(-1), torch.inf)
    return value, _slope(log_p, log_q, alpha, beta)


@register("ab")
@dataclass(frozen=True)
class AlphaBeta(Divergence):
    """Alpha-beta divergence: alpha = 1, beta = 0 is KL(p || q), alpha = 0, beta = 1 is KL(q || p).

    -1/(alpha beta) sum[p^alpha q^beta - alpha/(alpha+beta) p^(alpha+beta) - beta/(alpha+beta) q^(alpha+beta)],
    with its limits at alpha = 0, beta = 0 and alpha + beta = 0 (the published code's special cases there are smaller
    by a factor alpha or beta). With a negative alpha or beta the divergence can be infinite at extreme logits, and the
    value is then infinite. Classes with logit -inf in both teacher and student do not count.

    Attributes:
        alpha: exponent of the teacher; with a larger one the teacher's most probable classes count more.
        beta: exponent of the student.
        lines: exact, or published: 1/x in place of 1/x^2 where alpha, beta or their sum is 0.
    """

    source = "Wang et al. 2025 (ABKD), the alpha-beta divergence and its extensions"
    formula = (
        "-1/(alpha beta) sum [p^alpha q^beta - alpha/(alpha+beta) p^(alpha+beta) - beta/(alpha+beta) q^(alpha+beta)]"
    )
    at_limits = (
        "fkl at (1, 0), rkl at (0, 1), half the sum of squared log ratios at (0, 0); continuous across alpha "
        "= 0, beta = 0 and alpha + beta = 0"
    )
    elsewhere = "special cases on the three lines that are smaller by a factor alpha or beta"
    alpha: float = 0.2
    beta: float = 0.7
    lines: str = field(default="exact", metadata=SWITCH)

    def __post_init__(self) -> None:
        if self.lines not in ("exact", "published"):
            raise ValueError(f"lines={self.lines} must be exact or published")

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base class."""
        alpha, beta = float(self.alpha), float(self.beta)
        value, slope = alpha_beta(student, teacher, alpha, beta)
        if self.lines == "published" and (alpha == 0) != (beta == 0):
            return value * abs(alpha + beta), slope.mul_(abs(alpha + beta))
        if self.lines == "published" and alpha + beta == 0 and alpha:
            return value * abs(alpha), slope.mul_(abs(alpha))
        return value, slope


@register("alphanet")
@dataclass(frozen=True)
class AlphaNet(Divergence):
    """The larger of two alpha-divergences ab(a, 1 - a), per token or per batch.

    The published script for OpenLLaMA2 has a = 0.5 twice, which is a single divergence; the one for GPT-2 sweeps 0.1 to
    0.3 and 0.7 to 0.9. The default values are this project's choice. Per batch, the divergence with the larger sum over
    the tokens of the global batch is used for all of them. This needs additional passes without gradient before each
    batch (the published script sums over micro-batches).

    Attributes:
        alphas: a of the two divergences, the exponent of the teacher.
        per: token or batch.
    """

    source = "Wang et al. 2021 (AlphaNet); AlphaNet rows of ABKD"
    formula = "max of ab(a, 1 - a) over two a"
    at_limits = "ab(a, 1 - a) where both a are one"
    elsewhere = (
        "0.5 twice (OpenLLaMA2) or a sweep (GPT-2), per batch; AlphaNet's own paper has -1 and 1, clipped, per sample"
    )
    alphas: tuple[float, ...] = (0.2, 0.8)
    per: str = "token"

    def __post_init__(self) -> None:
        if len(self.alphas) != 2:
            raise ValueError(f"alphas={list(self.alphas)} must be two numbers")
        if self.per not in ("token", "batch"):
            raise ValueError(f"per={self.per} must be token or batch")

    @property
    def settles(self) -> bool:
        """See the base class."""
        return self.per == "batch" and self.alphas[0] != self.alphas[1]

    def for_batch(self, total: WholeBatch) -> Divergence:
        """Per batch: the alpha-divergence with the larger sum."""
        if self.per == "token":
            return self
        if self.alphas[0] == self.alphas[1]:
            return AlphaBeta(self.alphas[0], 1 - self.alphas[0])
        return max((AlphaBeta(a, 1 - a) for a in self.alphas), key=lambda candidate: float(total(candidate)))

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base class."""
        (first, first_slope), (second, second_slope) = (alpha_beta(student, teacher, a, 1 - a) for a in self.alphas)
        use_first = first >= second
        value = torch.where(use_first, first, second)
        return value, torch.where(use_first.unsqueeze(-1), first_slope, second_slope)
