"""The sections of `data`: sets of examples and where they come from."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from distill.config.section import Count, Natural, Section, Seed
from distill.config.template import TemplateConfig, fields


class SplitConfig(Section):
    """One set of examples: a hub file (dataset id, revision, rows `a:b`) or a local one, and which of its rows.

    `topics`: whether its rows' topics are few enough to be measured apart.
    First those with references of `min_words` words and more, then a fixed choice of `sample`, then skip and limit.
    """

    title: str | None = None
    hub: str | None = None
    hub_file: str | None = None
    hub_rows: Annotated[str, Field(pattern=r"^\d*:\d*$")] = ":"
    revision: str = "main"
    file: str | None = None
    min_words: Count | None = None
    sample: Count | None = None
    skip: Natural = 0
    limit: Count | None = None
    expected: Count | None = None
    topics: bool = True


class PretrainConfig(Section):
    """A plain-text corpus, on the hub or local: JSONL or parquet with `text`, or `.txt` with blank lines between."""

    hub: str | None = None
    hub_file: str | None = None
    revision: str = "main"
    file: str | None = None
    limit: Count | None = None

    @model_validator(mode="after")
    def _one_source(self) -> PretrainConfig:
        if (self.file is None) == (self.hub is None or self.hub_file is None):
            raise ValueError("needs either file, or hub and hub_file")
        return self


class GeneratorConfig(Section):
    """Sizes of the generated data set."""

    seed: Seed
    train: Count
    valid: Count
    eval: Count


class DataConfig(Section):
    """Training, validation and evaluation sets and the prompt template."""

    name: str
    title: str
    root: str | None
    template: TemplateConfig
    generator: GeneratorConfig | None = None
    train: SplitConfig
    valid: SplitConfig
    eval: dict[str, SplitConfig]
    pretrain: PretrainConfig | None = None

    @field_validator("template", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return fields(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _root_is_used(self) -> DataConfig:
        if self.generator is not None and self.root is not None:
            raise ValueError(f"root={self.root} has no effect on generated data; choose data=jsonl or data=dolly")
        return self
