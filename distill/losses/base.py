"""The divergence interface and its registry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill.base.registry import LOSSES, Registry

OUTSIDE = -1e30  # finite log-probability of classes to which neither teacher nor student gives mass


@dataclass(frozen=True)
class Drawn:
    """Log-probabilities of the tokens of one response at the time when they were sampled.

    Attributes:
        student: the student's, `[n]`.
        teacher: the teacher's, `[n]`.
        mixed: those of the mixture of both that the tokens were sampled from, `[n]`.
    """

    student: Tensor
    teacher: Tensor
    mixed: Tensor


def _identity(values: Tensor) -> Tensor:
    return values


@dataclass(frozen=True)
class WholeBatch:
    """All tokens of a global batch, for a divergence that depends on them (`Divergence.for_batch`).

    Attributes:
        total: returns the sum of a divergence over the batch, those of all processes added up.
        gather: returns the values of all processes of a tensor that each of them has, `[n]` each, in one tensor.
        training: whether the batch will be trained on; if not, it is the validation set.
    """

    total: Callable[[Divergence], Tensor]
    gather: Callable[[Tensor], Tensor] = _identity
    training: bool = False

    def __call__(self, divergence: Divergence) -> Tensor:
        """The sum of a divergence over the batch."""
        return self.total(divergence)


class Divergence:
    """A divergence per token. Subclasses are frozen dataclasses whose fields are its parameters.

    A subclass overrides one of two methods. `from_log_probs` returns the value, and autograd computes the gradient;
    this is all that a new loss needs. `value_and_slope` returns value and derivative in fewer passes over the
    vocabulary. Either is enough for both uses: calling the object on logits, and `distill.losses.fused`, which works in
    chunks.

    Attributes:
        source: paper and equation.
        formula: the formula, with p the teacher and q the student.
        at_limits: special cases at the limits of its parameters, and bounds of its value.
        elsewhere: how public code of the same name differs.
        reads_targets: whether it needs the response tokens.
        reads_rollout: whether it reads how each token was sampled, if that is known (`with_rollout_data`).
    """

    source: str = ""
    formula: str = ""
    at_limits: str = ""
    elsewhere: str = ""
    reads_targets: bool = False
    reads_rollout: bool = False

    @property
    def settles(self) -> bool:
        """Whether `for_batch` must choose the divergence from all tokens of the global batch, before any gradient."""
        return False

    def from_log_probs(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> Tensor:
        """The divergence `[N]` from log-probabilities `[N, V]`; `targets` are the response tokens `[N]`."""
        raise NotImplementedError(f"{type(self).__name__} defines neither from_log_probs nor value_and_slope")

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """The divergence `[N]` and its derivative by each of the student's log-probabilities `[N, V]`.

        The derivative treats the log-probabilities as independent variables; the caller applies the derivative of the
        softmax. Classes to which neither side gives mass have the value `OUTSIDE` in both arguments. An implementation
        must not change its arguments.
        """
        with torch.inference_mode(False), torch.enable_grad():
            student, teacher = (x.clone() if x.is_inference() else x for x in (student, teacher))
            free = student.detach().requires_grad_()
            value = self.from_log_probs(free, teacher, targets)
            (slope,) = torch.autograd.grad(value.sum(), free)
        return value.detach(), slope.contiguous()

    def rollout_data(self, responses: Sequence[Drawn]) -> list[Tensor]:
        """The k numbers that it needs of each sampled token, one tensor `[n, k]` per response.

        Args:
            responses: all responses of a rollout.

        Raises:
            TypeError: the divergence does not read rollouts (`reads_rollout`).
        """
        raise TypeError(f"{type(self).__name__} reads nothing of a token but its id")

    def step_data(self, data: Sequence[Tensor], longest: int) -> list[Tensor]:
        """The rollout data of the texts of one step's global batch, as the step trains on them: usually unchanged.

        Args:
            data: what `rollout_data` returned for these texts.
            longest: the most tokens of a text.
        """
        return list(data)

    def with_rollout_data(self, data: Tensor) -> Divergence:
        """The divergence for N tokens that were sampled in a rollout.

        Args:
            data: the numbers `[N, k]` that `rollout_data` returned for these tokens.

        Raises:
            TypeError: the divergence does not read rollouts (`reads_rollout`).
        """
        raise TypeError(f"{type(self).__name__} reads nothing of a token but its id")

    def for_batch(self, total: WholeBatch) -> Divergence:
        """The divergence to use for all tokens of a batch: usually itself.

        A divergence that depends on the whole batch (`settles`) chooses here, for example the larger of two.
        """
        return self

    def state(self) -> dict[str, Any]:
        """All that training changes in it, as tensors and plain values, for a checkpoint: usually nothing."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, targets: Tensor | None = None) -> Tensor:
        """The divergence per token.

        Args:
            student_logits: `[..., V]`, differentiated.
            teacher_logits: `[..., V]`, not differentiated. A class at -inf in both (vocabulary padding) adds 0.
            targets: response tokens `[...]`, for divergences that read them.

        Returns:
            `[...]` in nats, fp32 or (for float64 input) float64; no reduction, no masking.

        Raises:
            ValueError: the logits have different shapes, or targets are needed and missing.
        """
        self.check(student_logits, teacher_logits, targets)
        with torch.no_grad():
            every = WholeBatch(lambda candidate: candidate(student_logits, teacher_logits, targets).sum())
            settled = self.for_batch(every)
        value: Tensor = _Dense.apply(student_logits, teacher_logits.detach(), targets, settled)
        return value

    def check(self, student_logits: Tensor, teacher_logits: Tensor, targets: Tensor | None) -> None:
        """Check the arguments of a call.

        Raises:
            ValueError: the logits have different shapes, or targets are needed and missing.
        """
        if student_logits.shape != teacher_logits.shape:
            raise ValueError(
                f"student logits {tuple(student_logits.shape)} and teacher logits {tuple(teacher_logits.shape)} differ"
                " in shape; cut both to the common vocabulary"
            )
        if self.reads_targets and targets is None:
            raise ValueError(f"{type(self).__name__} reads the response tokens: pass targets")

    @staticmethod
    def log_probs(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Student's and teacher's log-probabilities `[N, V]`, in fp32 or better, `OUTSIDE` where both are -inf."""
        classes, dtype = student_logits.shape[-1], torch.promote_types(student_logits.dtype, torch.float32)
        student, teacher = (x.reshape(-1, classes).to(dtype).log_softmax(-1) for x in (student_logits, teacher_logits))
        # A finite value for vocabulary padding, so that differences there are 0 and not NaN
        if (
            teacher.numel()
            and teacher.amin() == -torch.inf
            and bool((outside := student.isneginf() & teacher.isneginf()).any())
        ):
            student, teacher = student.masked_fill(outside, OUTSIDE), teacher.masked_fill(outside, OUTSIDE)
        return student, teacher


class _Dense(torch.autograd.Function):
    """The divergence of whole logits; the gradient is computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, student_logits: Tensor, teacher_logits: Tensor, targets: Tensor | None, divergence: Divergence
    ) -> Tensor:
        shape = student_logits.shape
        value, gradient = value_and_gradient(divergence, student_logits, teacher_logits, targets)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(gradient.view(shape))
            ctx.dtype = student_logits.dtype
        return value.view(shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grads[0].unsqueeze(-1)).to(ctx.dtype), None, None, None


@dataclass(frozen=True)
class Collected(Divergence):
    """Collects numbers of each token of a batch (`WholeBatch`), and is 0.

    Attributes:
        measure: the numbers `[N, k]`, from the arguments of `value_and_slope`.
        numbers: receives them, token by token. As plain numbers: a small tensor a block between large ones that are
            freed would keep their memory from being used again (measured: 550 MB for 8,192 tokens).
        reads_targets: see the base class.
    """

    measure: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    numbers: list[list[float]] = field(default_factory=list)
    reads_targets: bool = False

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base class."""
        self.numbers.extend(self.measure(student, teacher, targets).tolist())
        return torch.zeros_like(student[:, 0]), torch.zeros_like(student)

    @staticmethod
    def of(
        batch: WholeBatch, measure: Callable[[Tensor, Tensor, Tensor | None], Tensor], k: int, targets: bool
    ) -> Tensor:
        """The numbers `[N, k]` of all tokens of a batch in all processes, in float64.

        They descend by the first of the k, so that the result does not depend on the number of processes.
        """
        collected = Collected(measure, reads_targets=targets)
        batch(collected)
        every = batch.gather(torch.tensor(collected.numbers, dtype=torch.float64).view(-1, k))
        return every[every[:, 0].argsort(descending=True, stable=True)]


def value_and_gradient(
    divergence: Divergence, student_logits: Tensor, teacher_logits: Tensor, targets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The divergence `[N]` and its gradient by the student's logits `[N, V]`."""
    student, teacher = divergence.log_probs(student_logits, teacher_logits)
    if student.shape[0] == 0:
        return student.sum(-1), student
    flat = None if targets is None else targets.reshape(-1)
    value, slope = divergence.value_and_slope(student, teacher, flat)
    # d/dz_i = slope_i - q_i sum(slope)
    return value, slope.addcmul_(student.exp(), slope.sum(-1, keepdim=True), value=-1)


def weighed(probs: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """`probs * values` `[N, V]` and its sum over classes `[N]`; a class of probability 0 adds 0 whatever its value."""
    product = probs * values
    total = product.sum(-1)
    if total.isnan().any():  # 0 times infinity; rare, so the masking pass is not always made
        product = product.masked_fill_(probs == 0, 0)
        total = product.sum(-1)
    return product, total


_REGISTRY: Registry[Divergence] = LOSSES
register, names, find = _REGISTRY.register, _REGISTRY.names, _REGISTRY.find
build, switches = _REGISTRY.build, _REGISTRY.switches


def describe(name: str) -> tuple[str, str, str]:
    """The first line of a divergence's docstring, its formula and its source.

    Raises:
        ValueError: there is no such divergence.
    """
    cls = find(name)
    return _REGISTRY.line(name), cls.formula, cls.source
