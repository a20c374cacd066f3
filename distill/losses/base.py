"""The divergence interface and its registry."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import math
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor


class Divergence(ABC):
    """A divergence per token. Subclasses are frozen dataclasses whose fields are its parameters.

    Attributes:
        source: the paper and equation it comes from.
    """

    source: str = ""

    @abstractmethod
    def from_log_probs(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> Tensor:
        """The divergence from log-probabilities `[..., V]`, as `[...]`; `targets` are response tokens `[...]`."""

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, targets: Tensor | None = None) -> Tensor:
        """The divergence per token.

        Args:
            student_logits: `[..., V]`, differentiated.
            teacher_logits: `[..., V]`, not differentiated. A class at -inf in both (vocabulary padding) counts 0.
            targets: response tokens `[...]`, for divergences that read them.

        Returns:
            `[...]` in nats, fp32 or (for float64 input) float64; no reduction, no masking.

        Raises:
            ValueError: the two have different shapes.
        """
        if student_logits.shape != teacher_logits.shape:
            raise ValueError(
                f"student logits {tuple(student_logits.shape)} and teacher logits {tuple(teacher_logits.shape)} differ"
                " in shape; cut both to the common vocabulary"
            )
        dtype = torch.promote_types(student_logits.dtype, torch.float32)
        student = student_logits.to(dtype).log_softmax(-1)
        teacher = teacher_logits.detach().to(dtype).log_softmax(-1)
        return self.from_log_probs(student, teacher, targets)


def log_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """`numerator - denominator` of log-probabilities, 0 where both are -inf (a class outside both supports)."""
    outside = numerator.isneginf() & denominator.isneginf()
    return numerator.masked_fill(outside, 0) - denominator.masked_fill(outside, 0)


def expectation(log_probs: Tensor, values: Tensor) -> Tensor:
    """`sum exp(log_probs) * values` over the last axis, where a class without mass counts 0 whatever its value."""
    probs = log_probs.exp()
    return (probs * values.masked_fill(probs == 0, 0)).sum(-1)


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


def describe(name: str) -> tuple[str, str]:
    """The first line of a divergence's docstring, and its source.

    Raises:
        ValueError: there is no such divergence.
    """
    cls = _find(name)
    return (cls.__doc__ or "").strip().splitlines()[0], cls.source


def build(name: str, **params: Any) -> Divergence:
    """The divergence `name` with its parameters.

    Raises:
        ValueError: unknown name, unknown parameter, or a value of a wrong type or out of range; says what is allowed.
    """
    cls = _find(name)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key, value in params.items():
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"{name} has no parameter {key}{hint} (it has {', '.join(fields) or 'none'})")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{key}={value!r} is not a number")
        if not math.isfinite(value):
            raise ValueError(f"{key}={value} must be finite")
    return cls(**params)


def _find(name: str) -> type[Divergence]:
    known = _load_all()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=2)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(f"no loss is named {name}{hint} (there are sft, {', '.join(sorted(known))})")
    return known[name]
