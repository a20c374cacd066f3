"""Named classes of one kind whose dataclass fields are their parameters: losses, samplers.

A parameter may be a group of parameters: a field whose default is an instance of another (frozen) dataclass. Its value
in a config is then a mapping.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
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
        self._loaded = False

    def register(self, name: str) -> Callable[[C], C]:
        """Class decorator: register a class under `name`.

        Raises:
            ValueError: the name is taken.
        """

        def add(cls: C) -> C:
            if not f"{cls.__module__}.".startswith(f"{self.package}."):
                self._load_all()  # the package's own names are taken, whoever comes first
            there = self._classes.get(name)
            same = there is not None and (there.__module__, there.__qualname__) == (cls.__module__, cls.__qualname__)
            if name in self.others or (there is not None and not same):  # a module that is imported again is the same
                where = f" by {there.__module__}" if there is not None else ""
                raise ValueError(f"the {self.kind} name {name} is taken{where}; register another")
            self._classes[name] = cls
            return cls

        return add

    def snapshot(self) -> dict[str, type[T]]:
        """The classes registered so far."""
        return dict(self._classes)

    def restore(self, classes: dict[str, type[T]]) -> None:
        """Forget the classes that a plugin registered before it failed: those of neither `classes` nor the package."""
        own = {k: c for k, c in self._classes.items() if f"{c.__module__}.".startswith(f"{self.package}.")}
        self._classes = {**classes, **own}

    def _load(self, name: str) -> None:
        """Import the module of the package that registers `name`, if its text says so."""
        if self._loaded or name in self._classes:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            text = Path(package.__path__[0], f"{module.name}.py")
            if text.is_file() and f'@register("{name}")' in text.read_text(encoding="utf-8"):
                importlib.import_module(f"{self.package}.{module.name}")

    def _load_all(self) -> dict[str, type[T]]:
        if not self._loaded:
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self.package}.{module.name}")
            self._loaded = True
        return self._classes

    def names(self) -> list[str]:
        """The registered names."""
        return sorted(self._load_all())

    def find(self, name: str) -> type[T]:
        """The class registered under `name`.

        Raises:
            ValueError: there is none.
        """
        self._load(name)
        known = self._classes if name in self._classes else self._load_all()
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
        """A class's parameters at their defaults, groups of parameters as mappings.

        Raises:
            ValueError: there is no such name.
        """
        return _plain(self.find(name))

    def keys(self, name: str) -> list[str]:
        """The names of a class's parameters, those inside a group as `group.name`.

        Raises:
            ValueError: there is no such name.
        """
        return _flat(self.defaults(name))

    def chosen(self, name: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the parameters that tell an instance apart: a switch counts where it is on, and of a group of
        parameters what is not at its default.

        Raises:
            ValueError: there is no such name.
        """
        off, usual = self.switches(name), self.defaults(name)
        found = {}
        for key, value in params.items():
            if isinstance(usual.get(key), dict):
                value = _differing(usual[key], value)
                if value:
                    found[key] = value
            elif key not in off or value != off[key]:
                found[key] = value
        return found

    def build(self, name: str, **params: Any) -> T:
        """One of the class `name` with its parameters.

        Raises:
            ValueError: unknown name, unknown parameter, or a value of a wrong type or out of range; says what is
                allowed.
        """
        made: T = _build(self.find(name), name, "", params)
        return made


def parameters(cls: type) -> list[dataclasses.Field[Any]]:
    """The fields of a dataclass that its maker gives."""
    return [f for f in dataclasses.fields(cls) if f.init]


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _is_group(default: Any) -> bool:
    return dataclasses.is_dataclass(default) and not isinstance(default, type)


def _plain(cls: type) -> dict[str, Any]:
    defaults = {f.name: _default(f) for f in parameters(cls)}
    return {key: _plain(type(value)) if _is_group(value) else value for key, value in defaults.items()}


def _flat(defaults: Mapping[str, Any]) -> list[str]:
    found = []
    for key, value in defaults.items():
        found += [key, *(f"{key}.{inner}" for inner in (_flat(value) if isinstance(value, dict) else []))]
    return found


def _differing(usual: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any]:
    """What of a group of parameters is not at its default."""
    found = {}
    for key, one in value.items():
        one = _differing(usual[key], one) if isinstance(usual.get(key), dict) else one
        same = tuple(one) == usual.get(key) if isinstance(one, list) else one == usual.get(key)
        if not same and one != {}:
            found[key] = one
    return found


def _build(cls: type, name: str, prefix: str, params: Mapping[str, Any]) -> Any:
    """An instance of a dataclass from a mapping. `name` and `prefix` are for messages: the class and its place."""
    defaults = {f.name: _default(f) for f in parameters(cls)}
    values = {}
    for key, value in params.items():
        if key not in defaults:
            close = difflib.get_close_matches(key, defaults, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"{name} has no parameter {key}{hint} (it has {', '.join(defaults) or 'none'})")
        place = f"{prefix}{key}"
        if _is_group(defaults[key]):
            group = type(defaults[key])
            if not isinstance(value, Mapping):
                names = ", ".join(f"{place}.{inner.name}" for inner in parameters(group))
                raise ValueError(f"{place}={value!r} is a group of parameters; set {names}")
            values[key] = _build(group, f"{name}.{key}", f"{place}.", value)
        else:
            _check(place, value, defaults[key])
            values[key] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


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


LOSSES: Registry[Any] = Registry("loss", "distill.losses", others=("sft",))
SAMPLERS: Registry[Any] = Registry("sampler", "distill.samplers")
