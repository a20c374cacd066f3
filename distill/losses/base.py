"""The divergence interface and its registry."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# metadata of a parameter that chooses between ours, its default, and published code
SWITCH = {"switch": True}
OUTSIDE = -1e30  # log-probability of classes outside both supports: no mass, and finite


class Divergence:
    """A divergence per token. Subclasses are frozen dataclasses whose fields are its parameters.

    A subclass writes one of two methods. `from_log_probs` gives the value, and autograd the gradient; it is all that a
    new loss needs. `value_and_slope` gives both by hand, in fewer passes over the vocabulary. Each serves the dense
    form, which is a call, and the chunked one, `distill.losses.fused`.

    Attributes:
        source: the paper and equation it comes from.
        formula: what it sums, with p the teacher and q the student.
        limits: what it becomes at the ends of its parameters, and its bounds.
        elsewhere: what public code does under its name.
        reads_targets: whether it needs the response tokens.
    """

    source: str = ""
    formula: str = ""
    limits: str = ""
    elsewhere: str = ""
    reads_targets: bool = False

    @property
    def settles(self) -> bool:
        """Whether a value depends on all tokens of its global batch, by way of `for_batch`."""
        return False

    def from_log_probs(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> Tensor:
        """The divergence from log-probabilities `[N, V]`, as `[N]`; `targets` are response tokens `[N]`."""
        raise NotImplementedError(f"{type(self).__name__} defines neither from_log_probs nor value_and_slope")

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """The divergence `[N]` and its derivative by each of the student's log-probabilities `[N, V]`.

        The log-probabilities count as free variables; that they are normalised is the caller's business. Classes
        outside both supports hold `OUTSIDE` in both. Both arguments may be read only.
        """
        with torch.inference_mode(False), torch.enable_grad():
            student, teacher = (x.clone() if x.is_inference() else x for x in (student, teacher))
            free = student.detach().requires_grad_()
            value = self.from_log_probs(free, teacher, targets)
            (slope,) = torch.autograd.grad(value.sum(), free)
        return value.detach(), slope.contiguous()

    def for_batch(self, total: Callable[[Divergence], Tensor]) -> Divergence:
        """What counts on a batch: itself, or for one that depends on all its tokens the divergence it settles on.

        Args:
            total: gives a divergence's sum over the batch, without gradient.
        """
        return self

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, targets: Tensor | None = None) -> Tensor:
        """The divergence per token.

        Args:
            student_logits: `[..., V]`, differentiated.
            teacher_logits: `[..., V]`, not differentiated. A class at -inf in both (vocabulary padding) counts 0.
            targets: response tokens `[...]`, for divergences that read them.

        Returns:
            `[...]` in nats, fp32 or (for float64 input) float64; no reduction, no masking.

        Raises:
            ValueError: the two have different shapes, or targets are needed and missing.
        """
        self.check(student_logits, teacher_logits, targets)
        with torch.no_grad():
            settled = self.for_batch(lambda one: one(student_logits, teacher_logits, targets).sum())
        value: Tensor = _Dense.apply(student_logits, teacher_logits.detach(), targets, settled)
        return value

    def check(self, student_logits: Tensor, teacher_logits: Tensor, targets: Tensor | None) -> None:
        """Raise what a call raises."""
        if student_logits.shape != teacher_logits.shape:
            raise ValueError(
                f"student logits {tuple(student_logits.shape)} and teacher logits {tuple(teacher_logits.shape)} differ"
                " in shape; cut both to the common vocabulary"
            )
        if self.reads_targets and targets is None:
            raise ValueError(f"{type(self).__name__} reads the response tokens: pass targets")

    @staticmethod
    def log_probs(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides' log-probabilities `[N, V]`, in fp32 or better, with `OUTSIDE` for -inf in both."""
        classes, dtype = student_logits.shape[-1], torch.promote_types(student_logits.dtype, torch.float32)
        student, teacher = (x.reshape(-1, classes).to(dtype).log_softmax(-1) for x in (student_logits, teacher_logits))
        # A finite stand-in for vocabulary padding, so that differences are 0 and not NaN.
        if (
            teacher.numel()
            and teacher.amin() == -torch.inf
            and bool((outside := student.isneginf() & teacher.isneginf()).any())
        ):
            student, teacher = student.masked_fill(outside, OUTSIDE), teacher.masked_fill(outside, OUTSIDE)
        return student, teacher


class _Dense(torch.autograd.Function):
    """The divergence of whole logits, with the gradient formed in the forward pass."""

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
    """`probs * values` `[N, V]`, where a class without mass counts 0 whatever its value, and the sum over classes."""
    product = probs * values
    total = product.sum(-1)
    if total.isnan().any():  # 0 times infinity, rarely
        product = product.masked_fill_(probs == 0, 0)
        total = product.sum(-1)
    return product, total


_REGISTRY: dict[str, type[Divergence]] = {}
D = TypeVar("D", bound=type[Divergence])


def register(name: str) -> Callable[[D], D]:
    """Class decorator: register a divergence under `name`.

    Raises:
        ValueError: the name is taken.
    """

    def add(cls: D) -> D:
        if name in _REGISTRY or name == "sft":
            raise ValueError(f"the loss name {name} is taken")
        _REGISTRY[name] = cls
        return cls

    return add


def _load_all() -> dict[str, type[Divergence]]:
    package = importlib.import_module("distill.losses")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"distill.losses.{module.name}")
    return _REGISTRY


def names() -> list[str]:
    """The registered divergences."""
    return sorted(_load_all())


def describe(name: str) -> tuple[str, str, str]:
    """The first line of a divergence's docstring, its formula and its source.

    Raises:
        ValueError: there is no such divergence.
    """
    cls = find(name)
    return (inspect.getdoc(cls) or "").splitlines()[0], cls.formula, cls.source


def switches(name: str) -> dict[str, Any]:
    """The defaults of a divergence's switches.

    Raises:
        ValueError: there is no such divergence.
    """
    return {f.name: f.default for f in dataclasses.fields(find(name)) if f.metadata == SWITCH}  # type: ignore[arg-type]


def build(name: str, **params: Any) -> Divergence:
    """The divergence `name` with its parameters.

    Raises:
        ValueError: unknown name, unknown parameter, or a value of a wrong type or out of range; says what is allowed.
    """
    cls = find(name)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key, value in params.items():
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"{name} has no parameter {key}{hint} (it has {', '.join(fields) or 'none'})")
        _check(key, value, fields[key].default)
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in params.items()})


def _check(key: str, value: Any, default: Any) -> None:
    """A parameter is of its default's kind: yes or no, a word, a list of numbers, or a number."""
    if isinstance(default, (bool, str)):
        if type(value) is not type(default):
            raise ValueError(f"{key}={value!r} is not {'true or false' if isinstance(default, bool) else 'a word'}")
        return
    kind = "list of numbers" if isinstance(default, tuple) else "whole number" if type(default) is int else "number"
    if isinstance(default, tuple) != isinstance(value, (list, tuple)):
        raise ValueError(f"{key}={value!r} is not a {kind}")
    for number in value if isinstance(default, tuple) else [value]:
        if isinstance(number, bool) or not isinstance(number, int if type(default) is int else (int, float)):
            raise ValueError(f"{key}={value!r} is not a {kind}")
        if not math.isfinite(number):
            raise ValueError(f"{key}={value} must be finite")


def find(name: str) -> type[Divergence]:
    """The class registered under `name`.

    Raises:
        ValueError: there is none.
    """
    known = _load_all()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=2)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(f"no loss is named {name}{hint} (there are sft, {', '.join(sorted(known))})")
    return known[name]
