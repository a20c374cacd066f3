"""Hydra's composition with every file read once per process, for checking many jobs and rows.

Two steps call Hydra's own functions: `create_defaults_list` lists the files of the group choices, and
`_apply_overrides_to_config` applies the other overrides to the merged files. The step between them is replaced. Hydra
parses every file again and merges it node by node, with its own settings; here parsed files and merged group choices
are cached. Measured for one row of a table: 0.2 s with `hydra.compose`, 0.02 s here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.structured_config_source import StructuredConfigSource
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import setup_globals
from hydra.errors import ConfigCompositionException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader

from distill.base.locations import CONF, config_dirs

ROOT_CONFIG = "config"


class _Loader(yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):  # type: ignore[misc]
    """OmegaConf's YAML loader in C: reads `5e-4` as a number and refuses duplicate keys."""

    yaml_implicit_resolvers = get_yaml_loader().yaml_implicit_resolvers
    yaml_constructors = get_yaml_loader().yaml_constructors

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping.

        Raises:
            ConstructorError: a key occurs twice.
        """
        keys = [key.value for key, _ in node.value if key.tag == "tag:yaml.org,2002:str"]
        if duplicates := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(
                "while constructing a mapping", node.start_mark, f"found duplicate key {duplicates[0]}", node.start_mark
            )
        return super().construct_mapping(node, deep=deep)


class _Folder(FileConfigSource):
    """A folder of configs.

    A `ConfigResult` of this class holds only the defaults list of a file.

    Attributes:
        contents: the parsed content of every file read so far, without its defaults list, by path without suffix.
    """

    def __init__(self, provider: str, path: str):
        super().__init__(provider, path)
        self.contents: dict[str, Any] = {}

    def load_config(self, config_path: str) -> ConfigResult:
        """The defaults list of a file, given by its path without suffix."""
        file = Path(self.path) / self._normalize_file_name(config_path)
        text = file.read_text(encoding="utf-8")
        try:
            content = yaml.load(text, Loader=_Loader)
        except yaml.YAMLError as error:
            raise ConfigCompositionException(f"{file}: {error}") from None
        content = {} if content is None else content
        if not isinstance(content, dict):
            raise ConfigCompositionException(f"{file}: a config is a mapping, and this is {content!r:.40}")
        defaults = {"defaults": content.pop("defaults")} if "defaults" in content else {}
        self.contents[config_path] = content
        outline = {**defaults, **({"content": True} if content else {})}  # an OmegaConf of the whole content is slow
        return ConfigResult(
            config=OmegaConf.create(outline),
            path=f"file://{self.path}",
            provider=self.provider,
            header=self._get_header_dict(text[:512]),
        )


class Files(ConfigRepository):
    """The config files of `conf/` and of the folders of `--config-dir`; each is read once.

    Attributes:
        folders: these folders, `conf/` first.
        sources: the folders and Hydra's registered schemas, in the order in which Hydra searches them.
    """

    def __init__(self, folders: Sequence[Path]):
        self.folders = [_Folder("main", str(CONF)), *(_Folder("command-line", str(folder)) for folder in folders)]
        self.sources = [*self.folders, StructuredConfigSource("schema", "structured://")]
        self._read: dict[str, ConfigResult | None] = {}
        self._options: dict[tuple[str, ObjectType | None], list[str]] = {}

    def load_config(self, config_path: str) -> ConfigResult | None:
        """The defaults list of a file, given by its path without suffix; None if there is no such file.

        The caller must not change the result.
        """
        if config_path not in self._read:
            self._read[config_path] = super().load_config(config_path)
        return self._read[config_path]

    def content(self, config_path: str) -> dict[str, Any]:
        """The content of a file without its defaults list. The caller must not change the result."""
        self.load_config(config_path)
        return next(folder.contents[config_path] for folder in self.folders if config_path in folder.contents)

    def get_group_options(self, group_name: str, results_filter: ObjectType | None = ObjectType.CONFIG) -> list[str]:
        """The names of a group's files, sorted. The caller must not change the result."""
        key = (group_name, results_filter)
        if key not in self._options:
            self._options[key] = super().get_group_options(group_name, results_filter)
        return self._options[key]


def files() -> Files:
    """The config files of `conf/` and of the folders that `--config-dir` has named so far."""
    return _files(config_dirs())


@cache
def _files(folders: tuple[Path, ...]) -> Files:
    setup_globals()  # registers resolvers such as ${now:}
    return Files(folders)


def groups() -> list[str]:
    """The config groups: the folders of `conf/`."""
    return _files(()).get_group_options("", ObjectType.GROUP)


@lru_cache(maxsize=4096)
def parse(text: str) -> Override:
    """One override of a command line, parsed.

    Raises:
        HydraException: the text is not an override.
    """
    return OverridesParser.create().parse_override(text)


def is_choice(override: Override) -> bool:
    """Whether an override chooses an option of a group, and does not set a value."""
    return files().group_exists(override.key_or_group) and not isinstance(override.value(), dict)


def merged(choices: Sequence[str]) -> dict[str, Any]:
    """The merged files of some group choices, with unresolved interpolations. The caller must not change the result.

    Raises:
        HydraException: a choice does not fit the defaults lists.
    """
    return _merged(tuple(choices), config_dirs())


def compose(overrides: Sequence[str]) -> DictConfig:
    """The same config as `hydra.compose` gives, for overrides that set none of Hydra's own keys (`hydra.*`).

    Raises:
        HydraException: an override does not fit the config.
    """
    parsed = [parse(text) for text in overrides]
    ConfigLoaderImpl.validate_sweep_overrides_legal(parsed, RunMode.RUN, from_shell=False)
    choices = [override for override in parsed if is_choice(override)]
    composed = OmegaConf.create(merged([override.input_line or "" for override in choices]))
    OmegaConf.set_struct(composed, True)
    ConfigLoaderImpl._apply_overrides_to_config([o for o in parsed if o not in choices], composed)
    return composed


@lru_cache(maxsize=512)
def _merged(choices: tuple[str, ...], folders: tuple[Path, ...]) -> dict[str, Any]:
    repository = _files(folders)
    parsed = [parse(text) for text in choices]
    listed = create_defaults_list(repository, ROOT_CONFIG, parsed, prepend_hydra=False, skip_missing=False)
    parts = []
    for default in listed.defaults:
        assert default.config_path is not None
        loaded = repository.load_config(default.config_path)
        assert loaded is not None
        package = loaded.header["package"] if default.package is None else default.package
        parts.append(_placed(package or "", repository.content(default.config_path)))
    whole: dict[str, Any] = {}
    try:
        for part in parts:
            _merge(whole, part)
    except _Unusual:
        whole = OmegaConf.to_container(OmegaConf.merge(*parts), resolve=False)  # type: ignore[assignment]
    whole.pop("hydra", None)
    return whole


class _Unusual(Exception):
    """Raised for a merge that only OmegaConf does right."""


def _placed(package: str, content: Any) -> Any:
    """The content nested under its package: `{"a": {"b": content}}` for `a.b`."""
    for part in reversed(package.split(".") if package else []):
        content = {part: content}
    return content


def _merge(target: dict[str, Any], source: dict[str, Any]) -> None:
    """Merge `source` into `target`: mappings key by key, and any other value replaces the one in `target`.

    Raises:
        _Unusual: a value is `???`, or a mapping would replace an interpolation.
    """
    for key, value in source.items():
        existing = target.get(key)
        if value == "???" or (isinstance(existing, str) and "${" in existing and isinstance(value, dict)):
            raise _Unusual
        if not isinstance(value, dict):
            target[key] = value
        elif isinstance(existing, dict):
            _merge(existing, value)
        else:
            target[key] = {}
            _merge(target[key], value)
