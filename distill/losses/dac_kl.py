"""MGSR's token loss: KL on the teacher's classes between two limits, which a small network predicts for each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from distill.base.processes import gathered
from distill.losses.base import Divergence, register
from distill.losses.trainable import TrainableDivergence

PARTS = ("high_density", "target")
RENORMALISE = ("none", "teacher", "both")
LIMITS = ("value", "quantile", "mean")
DECAY = 0.99  # a step, of the running mean of the limits
LOGGED = ("low", "high", "kept_classes", "kept_mass", "limit_gradient")
DOMAINS = ("value", "log")


class Clipped(NamedTuple):
    """The clipped KL of N tokens and its derivatives.

    Attributes:
        value: `[N]`.
        slope: by the student's log-probabilities `[N, V]`.
        by_low: by the lower limits `[N]`.
        by_high: by the upper limits `[N]`.
        kept: how many classes are kept, the sum of their weights `[N]`.
        mass: the teacher's mass on them `[N]`.
    """

    value: Tensor
    slope: Tensor
    by_low: Tensor
    by_high: Tensor
    kept: Tensor
    mass: Tensor


def clipped(
    student: Tensor,
    teacher: Tensor,
    low: Tensor,
    high: Tensor,
    epsilon: float,
    parts: Sequence[str] = PARTS,
    renormalise: str = "none",
    domain: str = "value",
    keep: float = 0.0,
) -> Clipped:
    """The KL on the classes between given limits (MGSR equations 7 and 8), with its derivatives by hand.

    A class of probability p has the weight `s((p - low) / epsilon) s((high - p) / epsilon)`, s the logistic function,
    and the teacher's top class the weight 1. Where nothing is kept the value is 0.

    Args:
        student: log-probabilities `[N, V]`.
        teacher: log-probabilities `[N, V]`.
        low: lower limits `[N]`, in the units of `domain`.
        high: upper limits `[N]`.
        epsilon: width of the weight's two edges, in the units of `domain`.
        parts: `high_density` for the classes between the limits, `target` for the teacher's top class.
        renormalise: `none` compares w p with w q as they are; `teacher` divides w p by its sum and compares it with q;
            `both` divides w p and w q each by its sum.
        domain: whether the limits are compared with probabilities or with log-probabilities.
        keep: the derivatives by the limits are of the value plus `keep` times the mass of the teacher that is left out.
    """
    p = teacher.exp()
    left, right, weight, top = _weights(teacher, p, low, high, epsilon, parts, domain)
    kept_p = weight * p
    mass = kept_p.sum(-1)
    value, slope, moved = _compare(student, teacher, weight, kept_p, mass, renormalise)
    if keep:
        moved.sub_(kept_p, alpha=keep)
    if "target" in parts:
        moved.scatter_(-1, top, 0.0)  # its weight is 1 whatever the limits are
    # d w / d low = -w (1 - left) / epsilon; `moved` is w times the derivative by w
    by_low = (torch.linalg.vecdot(moved, left) - moved.sum(-1)) / epsilon
    by_high = (moved.sum(-1) - torch.linalg.vecdot(moved, right)) / epsilon
    return Clipped(value, slope, by_low, by_high, weight.sum(-1), mass)


def _weights(
    teacher: Tensor, p: Tensor, low: Tensor, high: Tensor, epsilon: float, parts: Sequence[str], domain: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two edges of each class's weight and the weight itself, `[N, V]` each, and the top class `[N, 1]`."""
    compared = p if domain == "value" else teacher
    below, above = low.unsqueeze(-1), high.unsqueeze(-1)
    if "high_density" in parts:
        left = compared.sub(below).div_(epsilon).sigmoid_()
        right = above.sub(compared).div_(epsilon).sigmoid_()
        weight = left * right
    else:
        left = right = weight = torch.zeros_like(p)
    top = teacher.argmax(-1, keepdim=True)
    if "target" in parts:
        weight = weight.scatter(-1, top, 1.0)
    return left, right, weight, top


def _compare(
    student: Tensor, teacher: Tensor, weight: Tensor, kept_p: Tensor, mass: Tensor, renormalise: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The value `[N]`, its derivative by log q, and the weight times the derivative by it, both `[N, V]`."""
    ratio = teacher - student
    if renormalise == "none":
        moved = kept_p * ratio
        return moved.sum(-1), kept_p.neg(), moved
    empty = (mass == 0).unsqueeze(-1)
    share = kept_p / mass.unsqueeze(-1).masked_fill(empty, 1.0)
    if renormalise == "teacher":
        log_share = share.log().clamp_(min=torch.finfo(share.dtype).min)  # 0 log 0 is 0
        each = share * (log_share - student)
        value = each.sum(-1)
        return value, share.neg(), each.addcmul_(share, value.unsqueeze(-1), value=-1)
    kept_q = weight * student.exp()
    mass_q = kept_q.sum(-1)
    empty = empty | (mass_q == 0).unsqueeze(-1)
    share_q = kept_q.div_(mass_q.unsqueeze(-1).masked_fill(empty, 1.0)).masked_fill_(empty, 0.0)
    share = share.masked_fill(empty, 0.0)
    each = share * ratio
    mean = each.sum(-1)
    gap = (mass_q.log() - mass.log()).masked_fill(empty.squeeze(-1), 0.0)
    slope = share_q - share
    return mean + gap, slope, each.addcmul_(share, mean.unsqueeze(-1), value=-1).add_(slope)


class _Given(torch.autograd.Function):
    """The clipped KL of logits and given limits, with the derivatives that `clipped` has by hand."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, low: Tensor, high: Tensor, *how: Any) -> Tensor:
        found = clipped(student, teacher, low, high, *how)
        ctx.save_for_backward(found.slope, found.by_low, found.by_high)
        return found.value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        slope, by_low, by_high = ctx.saved_tensors
        return slope * grads[0].unsqueeze(-1), None, by_low * grads[0], by_high * grads[0], *[None] * 5


def dac_kl_given(
    student_logits: Tensor,
    teacher_logits: Tensor,
    low: Tensor | float,
    high: Tensor | float,
    epsilon: float = 1e-7,
    parts: Sequence[str] = PARTS,
    renormalise: str = "none",
    domain: str = "value",
) -> Tensor:
    """MGSR's clipped KL per token for given limits (equations 7 and 8).

    Args:
        student_logits: `[..., V]`, differentiated.
        teacher_logits: `[..., V]`, not differentiated.
        low: lower limits, a number or `[...]`, differentiated.
        high: upper limits, likewise.
        epsilon: width of the weight's two edges.
        parts: see `clipped`.
        renormalise: see `clipped`.
        domain: see `clipped`.

    Returns:
        `[...]` in nats. With `renormalise=none` it can be negative.

    Raises:
        ValueError: an argument is none of the values that it may have.
    """
    _check(epsilon, parts, renormalise, domain)
    shape = student_logits.shape[:-1]
    student, teacher = Divergence.log_probs(student_logits, teacher_logits.detach())
    limits = (torch.as_tensor(x, dtype=student.dtype, device=student.device) for x in (low, high))
    flat = [x.expand(shape).reshape(-1) for x in limits]
    value: Tensor = _Given.apply(student, teacher, *flat, epsilon, tuple(parts), renormalise, domain, 0.0)
    return value.view(shape)


def _check(epsilon: float, parts: Sequence[str], renormalise: str, domain: str) -> None:
    if epsilon <= 0:
        raise ValueError(f"epsilon={epsilon} must be positive")
    if not parts or set(parts) - set(PARTS):
        raise ValueError(f"parts={list(parts)} must be some of {', '.join(PARTS)}")
    if renormalise not in RENORMALISE:
        raise ValueError(f"renormalise={renormalise} must be one of {', '.join(RENORMALISE)}")
    if domain not in DOMAINS:
        raise ValueError(f"domain={domain} must be one of {', '.join(DOMAINS)}")


@register("dac_kl")
@dataclass(eq=False)
class DacKL(TrainableDivergence):
    """KL on the teacher's classes between two limits, and on its top class; a small network predicts the limits.

    The network reads the teacher's probabilities, the largest of them in order, and the student's (without gradient
    to the student). Its hidden layer is the sum of three products, one per input; the inputs are never concatenated.
    Its output is two numbers, whose logistic function is the upper and the lower limit, the lower at most the upper.
    The paper states neither the width nor how the network starts. With its epsilon a limit has a gradient only where a
    class lies within a few times 1e-7 of it, and then a large one; `epsilon_start`, `domain` and the network's own
    clipping (`optimizer.max_grad_norm`) are this project's.

    Attributes:
        epsilon: width of the edges of the weight, in the units of `domain`; 1e-7 in the paper.
        epsilon_start: the width at the start of training, which shrinks geometrically to `epsilon`; 0 is `epsilon`.
        domain: whether limits are compared with probabilities (value, as printed) or with their logarithms (log).
        parts: the kept classes: those between the limits (high_density), the teacher's top class (target), or both.
        renormalise: which sides are divided by their sum over the kept classes: none, teacher or both.
        limits: what the network's numbers are: values, or quantile levels of the token's class probabilities. With
            `mean` they are values, and the running mean of both over the training's tokens takes their place for every
            token; the network is trained as if its own had been used.
        low: the lower limit at the start.
        high: the upper limit at the start.
        keep: loss of the network = divergence + keep * (1 - kept mass), in nats. With 0, as printed, it gains by
            leaving out the classes that the student has still to learn (p > q); with `keep` only those with
            p > q e^keep.
        width: size of the hidden layer.
        sorted_classes: how many of the teacher's largest probabilities the network reads in order.
    """

    source = "MGSR equations 5 to 8"
    formula = (
        "sum w p log(w p / (w q)), w = s((p - low) / epsilon) s((high - p) / epsilon), 1 at the teacher's top class"
    )
    at_limits = "fkl with limits 0 and 1; 0 at p = q"
    epsilon: float = 1e-7
    epsilon_start: float = 0.0
    domain: str = "value"
    parts: tuple[str, ...] = PARTS
    renormalise: str = "none"
    limits: str = "value"
    low: float = 1e-4
    high: float = 0.5
    keep: float = 0.0
    width: int = 64
    sorted_classes: int = 1024

    def __post_init__(self) -> None:
        super().__init__()
        self.parts = tuple(self.parts)
        _check(self.epsilon, self.parts, self.renormalise, self.domain)
        if 0 != self.epsilon_start < self.epsilon:
            raise ValueError(
                f"epsilon_start={self.epsilon_start} must be 0 (epsilon throughout) or at least epsilon={self.epsilon}"
            )
        if self.limits not in LIMITS:
            raise ValueError(f"limits={self.limits} must be one of {', '.join(LIMITS)}")
        if not 0 < self.low <= self.high < 1:
            raise ValueError(f"low={self.low} and high={self.high} must be in (0, 1), low at most high")
        if self.keep < 0:
            raise ValueError(f"keep={self.keep} must be 0 (as printed) or more")
        if self.width < 1 or self.sorted_classes < 1:
            raise ValueError(f"width={self.width} and sorted_classes={self.sorted_classes} must be 1 or more")
        self._epsilon = self.epsilon_start or self.epsilon
        self._seen: Tensor | None = (
            None  # sums of LOGGED over the tokens since the last call of `seen`, and their number
        )
        self._step: Tensor | None = None  # sums of the two limits over the tokens of this step, and their number

    def prepare(self, classes: int, device: torch.device) -> None:
        """See the base class."""
        if hasattr(self, "bias"):
            return
        # The logistic function of the two numbers is the upper and the lower limit at the start
        self.bias = nn.Parameter(torch.tensor([self.high, self.low]).logit())
        largest = min(self.sorted_classes, classes)
        self.read = nn.ParameterList(torch.randn(size, self.width) for size in (classes, largest, classes))
        self.hidden_bias = nn.Parameter(torch.zeros(self.width))
        self.out = nn.Parameter(torch.zeros(self.width, 2))
        if self.limits == "mean":
            self.register_buffer("running", torch.tensor([self.high, self.low]))
        self.to(device)

    def at(self, progress: float) -> None:
        """See the base class: the width of the edges, and the running mean of the limits of the last step."""
        if self.epsilon_start:
            self._epsilon = self.epsilon_start * (self.epsilon / self.epsilon_start) ** progress
        if self.limits == "mean" and hasattr(self, "bias"):
            last = [x for x in gathered(None if self._step is None else self._step.cpu()) if x is not None]
            if last:
                sums, running = torch.stack(last).sum(0), self.get_buffer("running")
                running.lerp_((sums[:2] / sums[2]).to(running), 1 - DECAY)
            self._step = None

    def _inputs(self, student: Tensor, teacher: Tensor) -> list[Tensor]:
        """The probabilities that the network reads, each `[N, *]`; each sums to at most 1."""
        p = teacher.exp()
        return [p, p.topk(self.read[1].shape[0], -1).values, student.exp()]

    def _read(self, inputs: Sequence[Tensor]) -> Tensor:
        """What the network reads of its inputs, `[N, width]`."""
        first, *others = (x.to(self.bias.dtype) @ matrix for x, matrix in zip(inputs, self.read, strict=True))
        for other in others:
            first += other
        return first

    def _numbers(self, read: Tensor) -> Tensor:
        """The network's two numbers `[N, 2]` for what it read `[N, width]`."""
        return nn.functional.gelu(read + self.hidden_bias) @ self.out + self.bias

    def _limits(self, numbers: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The lower and the upper limit `[N]` in the units of `domain`, for the two numbers of each token `[N, 2]`."""
        predicted = numbers.sigmoid()
        if self.limits == "mean":
            if self.training:
                sums = torch.cat((predicted.detach().sum(0), predicted.new_tensor([len(predicted)]))).to(torch.float64)
                self._step = sums if self._step is None else self._step + sums
            predicted = predicted + (self.get_buffer("running").to(predicted) - predicted).detach()
        high, low = predicted.unbind(-1)
        low = low.minimum(high)
        if self.limits == "quantile":
            low, high = (_quantile(teacher.exp(), level) for level in (low, high))
        if self.domain == "value":
            return low, high
        if self.limits == "value":  # the logistic function of a number below -103 is 0, whose logarithm has no gradient
            high, low = nn.functional.logsigmoid(numbers).unbind(-1)
            return low.minimum(high), high
        low, high = (x.clamp(min=torch.finfo(x.dtype).tiny).log() for x in (low, high))
        return low, high

    def from_log_probs(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> Tensor:
        """See the base class."""
        read = self._read(self._inputs(student.detach(), teacher))
        low, high = self._limits(self._numbers(read).to(student.dtype), teacher)
        value: Tensor = _Given.apply(student, teacher, low, high, *self._how)
        return value

    def weights(self, student: Tensor, teacher: Tensor) -> Tensor:
        """How far each class is kept, in [0, 1] `[N, V]`, from log-probabilities `[N, V]`."""
        low, high = self._limits(self._numbers(self._read(self._inputs(student, teacher))).to(student.dtype), teacher)
        return _weights(teacher, teacher.exp(), low, high, self._epsilon, self.parts, self.domain)[2]

    @property
    def _how(self) -> tuple[float, tuple[str, ...], str, str, float]:
        """The last arguments of `clipped`."""
        return self._epsilon, self.parts, self.renormalise, self.domain, self.keep

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base class. Only what follows the network's three matrices uses autograd."""
        with torch.inference_mode(False), torch.no_grad():
            student, teacher = (x.clone() if x.is_inference() else x for x in (student, teacher))
            inputs = self._inputs(student, teacher)
            read = self._read(inputs).requires_grad_()
            with torch.enable_grad():
                low, high = self._limits(self._numbers(read).to(student.dtype), teacher)
            found = clipped(student, teacher, low.detach(), high.detach(), *self._how)
            if self.training:
                self._see(found, low.detach(), high.detach())
            sums = dict(zip((name for name, _ in self.named_parameters()), self.sums(), strict=True))
            small = {name: p for name, p in self.named_parameters() if not name.startswith("read")}
            grads = torch.autograd.grad([low, high], [*small.values(), read], [found.by_low, found.by_high])
            for name, grad in zip(small, grads, strict=False):
                sums[name] += grad
            for i, x in enumerate(inputs):
                sums[f"read.{i}"].addmm_(x.to(grads[-1].dtype).t(), grads[-1])
        return found.value, found.slope

    def _see(self, found: Clipped, low: Tensor, high: Tensor) -> None:
        """Add what was computed for N tokens to the sums that `seen` returns the means of."""
        if self.domain == "log":
            low, high = low.exp(), high.exp()
        gradient = torch.stack((found.by_low, found.by_high)).norm(dim=0)
        values = torch.stack((low, high, found.kept, found.mass, gradient, torch.ones_like(low)))
        sums = values.sum(1, dtype=torch.float64)
        self._seen = sums if self._seen is None else self._seen + sums

    def seen(self) -> dict[str, float]:
        """See the base class: means over tokens of both limits, kept classes, kept mass, and the gradient to limits."""
        sums, self._seen = self._seen, None
        if sums is None:
            return {}
        *totals, tokens = sums.tolist()
        return {name: total / tokens for name, total in zip(LOGGED, totals, strict=True)}


def _quantile(p: Tensor, level: Tensor) -> Tensor:
    """The value `[N]` below which a share `level` `[N]` of the class probabilities `[N, V]` lies, interpolated."""
    ordered = p.sort(-1).values
    place = level * (p.shape[-1] - 1)
    before = place.detach().floor().clamp_(max=p.shape[-1] - 2).long()
    left, right = (ordered.gather(-1, (before + i).unsqueeze(-1)).squeeze(-1) for i in (0, 1))
    return left + (place - before) * (right - left)
