"""Named classes of one kind whose dataclass fields are their parameters: losses, samplers.

A parameter may be a group of parameters: a field whose default is an instance of another (frozen) dataclass. Its value
in a config is then a mapping. A switch is a parameter that chooses between this project's behaviour (its default) and
that of published code.
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

SWITCH = {"switch": True}  # metadata of the dataclass field of a switch
T = TypeVar("T")
C = TypeVar("C", bound=type)


class Registry(Generic[T]):
    """The registered classes of a package by name. Its modules are imported when a name is first looked up.

    Attributes:
        kind: what error messages call such a class, for example `loss`.
        package: the package whose modules define them.
        others: names that are valid in a config but have no class, such as the loss `sft`; they cannot be registered.
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
                self._load_all()  # so that a plugin cannot take a name of the package by being imported first
            existing = self._classes.get(name)
            same = existing is not None and (existing.__module__, existing.__qualname__) == (
                cls.__module__,
                cls.__qualname__,
            )
            if name in self.others or (existing is not None and not same):  # importing a module again is no collision
                where = f" by {existing.__module__}" if existing is not None else ""
                raise ValueError(f"the {self.kind} name {name} is taken{where}; register another")
            self._classes[name] = cls
            return cls

        return add

    def snapshot(self) -> dict[str, type[T]]:
        """A copy of the classes registered so far, by name."""
        return dict(self._classes)

    def restore(self, classes: dict[str, type[T]]) -> None:
        """Remove what a failed plugin registered: all classes that are neither in `classes` nor in the package."""
        of_package = {k: c for k, c in self._classes.items() if f"{c.__module__}.".startswith(f"{self.package}.")}
        self._classes = {**classes, **of_package}

    def _load(self, name: str) -> None:
        """Import only the module that registers `name`, found by searching the modules' text."""
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
            available = ", ".join([*self.others, *sorted(known)])
            raise ValueError(f"no {self.kind} is named {name}{hint} (there are {available})")
        return known[name]

    def line(self, name: str) -> str:
        """The first line of a class's docstring.

        Raises:
            ValueError: there is no such name.
        """
        return (inspect.getdoc(self.find(name)) or "").splitlines()[0]

    def switches(self, name: str) -> dict[str, Any]:
        """The names of a class's switches, each with its default.

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
        """The parameters that distinguish an instance, for names and hashes.

        A switch is left out if it is at its default, and so is what is at its default in a group of parameters.

        Raises:
            ValueError: there is no such name.
        """
        switches, defaults = self.switches(name), self.defaults(name)
        distinguishing = {}
        for key, value in params.items():
            if isinstance(defaults.get(key), dict):
                value = _differing(defaults[key], value)
                if value:
                    distinguishing[key] = value
            elif key not in switches or value != switches[key]:
                distinguishing[key] = value
        return distinguishing

    def build(self, name: str, **params: Any) -> T:
        """An instance of the class `name` with these parameters.

        Raises:
            ValueError: unknown name, unknown parameter, or a value of a wrong type or out of range; the message says
                what is allowed.
        """
        instance: T = _build(self.find(name), name, "", params)
        return instance


def parameters(cls: type) -> list[dataclasses.Field[Any]]:
    """The fields of a dataclass that are arguments of its constructor."""
    return [f for f in dataclasses.fields(cls) if f.init]


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _is_group(default: Any) -> bool:
    return dataclasses.is_dataclass(default) and not isinstance(default, type)


def _plain(cls: type) -> dict[str, Any]:
    defaults = {f.name: _default(f) for f in parameters(cls)}
    return {key: _plain(type(value)) if _is_group(value) else value for key, value in defaults.items()}


def _flat(defaults: Mapping[str, Any]) -> list[str]:
    names = []
    for key, value in defaults.items():
        names += [key, *(f"{key}.{inner}" for inner in (_flat(value) if isinstance(value, dict) else []))]
    return names


def _differing(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a group that are not at their defaults."""
    differing = {}
    for key, value in values.items():
        value = _differing(defaults[key], value) if isinstance(defaults.get(key), dict) else value
        same = tuple(value) == defaults.get(key) if isinstance(value, list) else value == defaults.get(key)
        if not same and value != {}:
            differing[key] = value
    return differing


def _build(cls: type, name: str, prefix: str, params: Mapping[str, Any]) -> Any:
    """An instance of a dataclass from a mapping. Messages use `name` for the class and put `prefix` before keys."""
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
    """Raise ValueError unless a value is of its default's kind: a boolean, a word, a number, or a list of them."""
    if isinstance(default, (bool, str)):
        if type(value) is not type(default):
            raise ValueError(f"{key}={value!r} is not {'true or false' if isinstance(default, bool) else 'a word'}")
        return
    if isinstance(default, tuple) and default and isinstance(default[0], str):
        if not isinstance(value, (list, tuple)) or not all(isinstance(word, str) for word in value):
            raise ValueError(f"{key}={value!r} is not a list of words")
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
