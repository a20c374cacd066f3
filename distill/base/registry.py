"""Named classes of one kind whose dataclass fields are their parameters: losses, samplers."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

SWITCH = {"switch": True}  # metadata of a parameter that chooses between ours, its default, and published code
T = TypeVar("T")
C = TypeVar("C", bound=type)


class Registry(Generic[T]):
    """The classes of a package by name; its modules are imported when a name is first asked for.

    Args:
        kind: what a message calls one of them.
        package: where they are defined.
        others: names that stand for something that is no class here.
    """

    def __init__(self, kind: str, package: str, others: Sequence[str] = ()):
        self.kind, self.package, self.others = kind, package, tuple(others)
        self._classes: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[C], C]:
        """Class decorator: register a class under `name`.

        Raises:
            ValueError: the name is taken.
        """

        def add(cls: C) -> C:
            if name in self._classes or name in self.others:
                raise ValueError(f"the {self.kind} name {name} is taken")
            self._classes[name] = cls
            return cls

        return add

    def _load_all(self) -> dict[str, type[T]]:
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        return self._classes

    def names(self) -> list[str]:
        """The registered names."""
        return sorted(self._load_all())

    def find(self, name: str) -> type[T]:
        """The class registered under `name`.

        Raises:
            ValueError: there is none.
        """
        known = self._load_all()
        if name not in known:
            close = difflib.get_close_matches(name, known, n=2)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            there = ", ".join([*self.others, *sorted(known)])
            raise ValueError(f"no {self.kind} is named {name}{hint} (there are {there})")
        return known[name]

    def line(self, name: str) -> str:
        """The first line of a class's docstring.

        Raises:
            ValueError: there is no such name.
        """
        return (inspect.getdoc(self.find(name)) or "").splitlines()[0]

    def switches(self, name: str) -> dict[str, Any]:
        """The defaults of a class's switches.

        Raises:
            ValueError: there is no such name.
        """
        return {f.name: f.default for f in parameters(self.find(name)) if f.metadata == SWITCH}

    def defaults(self, name: str) -> dict[str, Any]:
        """A class's parameters at their defaults.

        Raises:
            ValueError: there is no such name.
        """
        return {f.name: f.default for f in parameters(self.find(name))}

    def build(self, name: str, **params: Any) -> T:
        """One of the class `name` with its parameters.

        Raises:
            ValueError: unknown name, unknown parameter, or a value of a wrong type or out of range; says what is
                allowed.
        """
        cls = self.find(name)
        fields = {f.name: f for f in parameters(cls)}
        for key, value in params.items():
            if key not in fields:
                close = difflib.get_close_matches(key, fields, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise ValueError(f"{name} has no parameter {key}{hint} (it has {', '.join(fields) or 'none'})")
            _check(key, value, fields[key].default)
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in params.items()})


def parameters(cls: type) -> list[dataclasses.Field[Any]]:
    """The fields of a dataclass that its maker gives."""
    return [f for f in dataclasses.fields(cls) if f.init]


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
