"""Hydra composition that reports all problems at once, each with the valid names nearest to a wrong one."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from distill.base.errors import UserError, nearest
from distill.base.hub import is_path
from distill.base.locations import CONF, config_dirs
from distill.base.registry import LOSSES, SAMPLERS
from distill.config import composer
from distill.config.data import REMOVED
from distill.config.plugins import import_plugins
from distill.config.reference import ReferenceConfig, applied, of_pair, overrides_of
from distill.config.schema import Config, Section
from distill.config.smoke import apply_smoke

NO_GROUP = {"template": "data.template"}  # folders of conf/ that are no groups: a key names one of their files


def as_typed(override: str) -> str:
    """An override in Hydra's grammar: `~` is the home folder, and a value that Hydra cannot parse is quoted."""
    key, equals, value = override.partition("=")
    if not equals:
        return override
    # One path, and no list of two. Path.exists raises for a long text
    if "," in value and os.path.exists(os.path.expanduser(value)):  # noqa: PTH110, PTH111
        value = _quoted(value)
    value = re.sub(r"(^|,|'|\[)(~[^/,\]]*)(?=[/,\]]|$)", lambda match: f"{match[1]}{_home(match[2])}", value)
    try:
        composer.parse(f"{key}={value}")
    except HydraException:
        parts = value.split(",")
        if parts[1:] and not set(value) & set("'\"[]{}()") and any(is_path(x) or Path(x).is_dir() for x in parts):
            return f"{key}={','.join(x if _parses(f'{key}={x}') else _quoted(x) for x in parts)}"  # of a sweep
        try:  # a path with a space, = or a bracket
            composer.parse(quoted := f"{key}={_quoted(value)}")
        except HydraException:
            return override  # what is wrong is said where it is used
        return quoted
    return f"{key}={value}"


def _parses(override: str) -> bool:
    try:
        composer.parse(override)
    except HydraException:
        return False
    return True


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def jobs(overrides: list[str]) -> list[list[str]]:
    """The override lists of every job of a sweep (`a=1,2 b=3` is two jobs)."""
    parsed = OverridesParser.create().parse_overrides([as_typed(override) for override in overrides])
    return BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]


def load(overrides: list[str], of_method: bool = True, alone: bool = False) -> Config:
    """The config of one job, composed from `overrides` and checked.

    Args:
        of_method: whether `preset=reference` adds the method's reference recipe, too, and not only the pair's.
        alone: whether the overrides are for this job alone; then a schedule that it does not follow is a mistake.

    Raises:
        UserError: with every problem found.
    """
    return checked(overrides, of_method, alone)[1]


def checked(overrides: list[str], of_method: bool = True, alone: bool = False) -> tuple[DictConfig, Config]:
    """One job's merged config as Hydra composes it, and the same config checked and typed.

    Args:
        of_method: see `load`.
        alone: see `load`.

    Raises:
        UserError: with every problem found.
    """
    problems: list[str] = []
    parsed = _check_groups(_parse(overrides, problems), problems)
    composed = _compose(_check_keys([*_recipe(parsed, of_method), *parsed], problems), problems)
    if composed is None:
        raise UserError(problems)
    try:
        config = resolve(composed)
    except UserError as error:
        raise UserError(problems + error.problems) from None
    problems += _without_effect(parsed, config, alone)
    if problems:
        raise UserError(problems)
    return composed, config


def _without_effect(parsed: list[Override], config: Config, alone: bool) -> list[str]:
    """A message for each override of a schedule of the student other than the one that it is trained by.

    Args:
        alone: whether schedules of other kinds of rows count, and not only `train.student`.
    """
    keys = {override.key_or_group for override in parsed}
    schedules = {"train.student", "train.sft", "train.rollout"} if alone else {"train.student"}
    problems = []
    for override in parsed:
        section, _, key = override.key_or_group.rpartition(".")
        own = f"train.{config.stage}"
        if section in schedules and own != section and not keys & {own, f"{own}.{key}"}:
            problems.append(
                f"{override.input_line}: with loss={config.loss.name} and sampler={config.sampler.name} the student is"
                f" trained as {own} of model={config.model.name} says; set {own}.{key} (too)"
            )
    return problems


def for_hydra(overrides: list[str]) -> list[str]:
    """The overrides as Hydra needs them.

    Keys that are in the schema but not in the YAML files get `++` before them, and an override for the folders of
    `--config-dir` is added.
    """
    return [*_check_keys(_parse(overrides, problems=[]), problems=[]), *search_path()]


def search_path() -> list[str]:
    """The override that makes Hydra search the folders of `--config-dir`; an empty list if there are none."""
    urls = [json.dumps(f"file://{folder}", ensure_ascii=False) for folder in config_dirs()]
    return [f"hydra.searchpath=[{','.join(urls)}]"] if urls else []


def resolve(composed: DictConfig) -> Config:
    """The typed config of a composed one, checked against the schema. Plugins are imported, `debug=smoke` is applied.

    Raises:
        UserError: with every plugin that cannot be imported, or every key that is unknown, of a wrong type or out of
            range.
    """
    try:
        raw = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(_first_line(error)) from None
    assert isinstance(raw, dict)
    raw.pop("hydra", None)
    raw = _with_home(raw)
    import_plugins(raw.get("plugins"))
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        raise UserError(list(dict.fromkeys(_describe(e) for e in _of_one_kind(error.errors())))) from None
    return apply_smoke(config) if config.debug.smoke else config


def _with_home(value: Any) -> Any:
    """A config whose texts that begin with `~/` begin with the home folder."""
    if isinstance(value, dict):
        return {key: _with_home(x) for key, x in value.items()}
    if isinstance(value, list):
        return [_with_home(x) for x in value]
    if not isinstance(value, str) or not value.startswith("~"):
        return value
    user, slash, rest = value.partition("/")
    return f"{_home(user)}{slash}{rest}"


def _home(user: str) -> str:
    """The home folder that `~` or `~NAME` stands for; the text itself if there is no such user."""
    try:
        return str(Path(user).expanduser())
    except RuntimeError:
        return user


def _parse(overrides: list[str], problems: list[str]) -> list[Override]:
    parsed = []
    for text in overrides:
        try:
            parsed.append(composer.parse(as_typed(text)))
        except HydraException as error:
            problems.append(f"{text}: not an override ({_first_line(error)}); write key=value or group=option")
    return parsed


def _recipe(parsed: list[Override], of_method: bool) -> list[Override]:
    """The overrides of the reference recipes of the pair and of the method, if the preset is `reference`.

    Those that the command line replaces are left out (`applied`). With `loss=sft` nothing is left of a method.
    """
    choices = [override.input_line or "" for override in parsed if composer.is_choice(override)]
    try:
        base = composer.merged(choices)
    except (HydraException, OmegaConfBaseException):  # composing the whole config will fail and report why
        return []
    of_method = of_method and "loss=sft" not in choices
    entries = [entry for group in ("model", *["method"] * of_method) for entry in base[group].get("reference") or []]
    if base["preset"]["name"] != "reference" or not entries:
        return []
    references = of_pair([ReferenceConfig.model_validate(entry) for entry in entries], base["model"]["name"])
    keys = {override.key_or_group for override in parsed}
    return [composer.parse(text) for text in overrides_of(applied(references, keys))]


def _groups() -> list[str]:
    return [group for group in composer.groups() if group not in NO_GROUP]


def _check_groups(parsed: list[Override], problems: list[str]) -> list[Override]:
    """The overrides without choices of options that do not exist; those are added to `problems`."""
    valid, groups = [], _groups()
    for override in parsed:
        key, value = override.key_or_group, override.value()
        if key == "hydra.searchpath":
            problems.append(f"{override.input_line}: name a folder of your own configs as --config-dir DIR")
            continue
        if key in NO_GROUP:
            problems.append(f"{override.input_line}: {key} is no group of options; write {NO_GROUP[key]}={value}")
            continue
        if key in groups and not override.is_delete():
            options = composer.files().get_group_options(key)
            if not isinstance(value, str) or value not in options:
                problems.append(
                    f"{override.input_line}: no such option{nearest(str(value), options)} ({key}: {', '.join(options)})"
                )
                continue
        valid.append(override)
    return valid


def _check_keys(parsed: list[Override], problems: list[str]) -> list[str]:
    """The overrides as text without those for keys that do not exist; those are added to `problems`.

    A key that is in the schema but not in the composed config (it is at its default) gets `++` before it; so does one
    with values by name.
    """
    groups = [*_groups(), "hydra"]
    choices = [o.input_line or "" for o in parsed if o.key_or_group in groups and not o.is_sweep_override()]
    try:
        base = composer.merged(choices)
    except (HydraException, OmegaConfBaseException):  # composing the whole config will fail and report why
        return [override.input_line or "" for override in parsed]
    composed = dict.fromkeys(_keys(base))
    lines = []
    for override in parsed:
        key, line = override.key_or_group, override.input_line or ""
        special = override.is_add() or override.is_force_add() or override.is_delete()
        if special or key in groups or key.startswith("hydra"):
            lines.append(line)
            continue
        if key in composed:  # values by new names need ++, too
            lines.append(f"++{line}" if isinstance(override.value(), dict) else line)
            continue
        registered = _registered_keys(key, base, parsed)
        if _in_schema(key) or key in registered or key.rpartition(".")[2] in REMOVED:
            lines.append(f"++{line}")
        else:
            known = dict.fromkeys([*composed, *_schema_keys(Config), *registered])
            by_leaf = [k for k in known if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
            hint = f"; did you mean {' or '.join(by_leaf[:3])}?" if by_leaf else nearest(key, [*known, *groups])
            problems.append(f"{line}: no such key{hint}")
    return lines


def _registered_keys(key: str, base: dict[str, Any], parsed: list[Override]) -> list[str]:
    """For a key of `loss` or `sampler`: all keys that the chosen class has, those of nested parameters included."""
    registry = {"loss": LOSSES, "sampler": SAMPLERS}.get(section := key.split(".")[0])
    if registry is None:
        return []
    plugins = [o.value() for o in parsed if o.key_or_group == "plugins" and not o.is_sweep_override()]
    try:
        import_plugins(plugins[-1] if plugins else base.get("plugins"))
        return [f"{section}.{parameter}" for parameter in registry.keys(base[section]["name"])]
    except (UserError, ValueError, KeyError, TypeError):  # reported when the whole config is checked
        return []


def _section(annotation: Any) -> Any:
    """The section class inside an annotation (`X | None`, `dict[str, X]`), or None."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    sections = [_section(a) for a in get_args(annotation)]
    return next((s for s in sections if s is not None), None)


def _in_schema(key: str) -> bool:
    section: Any = Config
    parts = key.split(".")
    while parts:
        field = section.model_fields.get(parts.pop(0)) if section is not None else None
        if field is None:
            return False
        if get_origin(field.annotation) is dict and parts:
            parts.pop(0)  # the user's own key of the mapping
        section = _section(field.annotation)
    return True


def _schema_keys(section: type[Section], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        inner = _section(field.annotation)
        keys.append(f"{prefix}{name}")
        if inner is not None and get_origin(field.annotation) is not dict:
            keys += _schema_keys(inner, f"{prefix}{name}.")
    return keys


def _compose(overrides: list[str], problems: list[str]) -> DictConfig | None:
    try:
        if not any(composer.parse(text).is_hydra_override() for text in overrides):
            return composer.compose(overrides)
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra_compose(composer.ROOT_CONFIG, overrides=[*overrides, *search_path()])
    except (HydraException, OmegaConfBaseException) as error:
        problems.append(_first_line(error))
        return None


def _keys(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return []
    keys = []
    for name, child in node.items():
        keys += [f"{prefix}{name}", *_keys(child, f"{prefix}{name}.")]
    return keys


def _of_one_kind(errors: Sequence[Any]) -> list[Any]:
    """The errors without those that a section is not a word, where it may be either and is meant as a section."""
    words = [e for e in errors if e["type"] == "literal_error" and isinstance(e["input"], dict)]
    return [e for e in errors if e not in words] or words


def _describe(error: Any) -> str:
    """A one-line message for a schema error: the key, what was found, what is allowed."""
    # A key that may be a section or a word has the kind that was tried in its place
    path = ".".join(
        str(part) for part in error["loc"] if not re.match(r"function-|literal\[|\[key\]|\w+Config$", str(part))
    )
    if error["type"] == "missing" and path.startswith(("train.sft.", "train.rollout.")):
        own = path.rpartition(".")[0]
        return (
            f"{path}: needed too, since this pair has no {own}; or leave {own} out, and the row is trained as"
            " train.student says"
        )
    if error["type"] == "missing" and path.startswith("model.lora."):
        return (
            "model.lora: this pair has no adapters, so r, alpha, dropout and targets are needed together, such as"
            " 'model.lora={r: 16, alpha: 64, dropout: 0.1, targets: all-linear}'"
        )
    if error["type"] == "extra_forbidden":
        section: Any = Config
        for part in error["loc"][:-1]:
            field = getattr(section, "model_fields", {}).get(part)
            section = field.annotation if field is not None else None
        allowed = list(getattr(section, "model_fields", {}))
        hint = nearest(str(error["loc"][-1]), allowed)
        return f"{path}: unknown key{hint}" + (f" (keys here: {', '.join(allowed)})" if allowed else "")
    if error["type"] == "list_type":
        return f"{path}={error['input']}: a list is needed; write {path}=[{error['input']}]"
    if error["type"] in ("dict_type", "model_type") and not isinstance(error["input"], dict):
        return f"{path}={error['input']}: values by name are needed; write {path}={{NAME: VALUE}}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{path}: {message}" if path else message
    return f"{path}={error['input']}: {message[0].lower()}{message[1:]}"


def _first_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()
