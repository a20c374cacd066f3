"""The sections of `data`: sets of examples and where they come from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from distill.base import locations
from distill.config.section import Count, Name, Natural, Section, Seed
from distill.config.template import TemplateConfig, fields

RESERVED = "training", "validation", "benchmarks"  # stand in place of a set's name in results
REMOVED = {"min_words"}  # keys of earlier versions; a validator says what takes their place


class SplitConfig(Section):
    """One set of examples: a file on the hub or a local one, and which of its rows are used.

    Rows are chosen in this order: `hub_rows`, `first` or `min_gpt2_tokens`, `sample`, `skip`, `limit`. A raw set is a
    folder of Super-NaturalInstructions' task files, or a file with `instances` as that of Unnatural Instructions. The
    sets that were published with the papers' code are filtered already.

    Attributes:
        title: name of the set in tables; None is its key in the config.
        hub: id of the hub dataset.
        hub_file: path of the file in that dataset.
        hub_rows: rows `start:stop` of the hub file.
        revision: branch, tag or commit of the hub dataset.
        file: the local file, relative to `data.root`; used if `data.root` is set.
        first: number of rows of a published set, its first ones; has no effect on a raw set.
        min_gpt2_tokens: minimum number of GPT-2 tokens of the first reference; has an effect on a raw set only.
        sample: number of rows of a fixed choice: those with the smallest content hash.
        skip: number of rows left out at the beginning.
        limit: maximum number of rows.
        expected: number of rows that the papers have; another number is reported.
        topics: whether the rows' topics are few enough to be measured separately.
    """

    title: str | None = None
    hub: str | None = None
    hub_file: str | None = None
    hub_rows: Annotated[str, Field(pattern=r"^\d*:\d*$")] = ":"
    revision: str = "main"
    file: str | None = None
    first: Count | None = None
    min_gpt2_tokens: Count | None = None
    sample: Count | None = None
    skip: Natural = 0
    limit: Count | None = None
    expected: Count | None = None
    topics: bool = True

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        if isinstance(values, dict) and "min_words" in values:
            raise ValueError(
                "min_words does not exist any more: the published sets are filtered already, by 11 GPT-2 tokens and not"
                " by words; remove it, or set min_gpt2_tokens for a raw set"
            )
        return values


class PretrainConfig(Section):
    """A plain-text corpus: JSONL or parquet with a field `text`, or `.txt` with texts separated by blank lines.

    Attributes:
        hub: id of the hub dataset.
        hub_file: path of the file in that dataset.
        revision: branch, tag or commit of the hub dataset.
        file: a local file, relative to `data.root`, in place of the hub's.
        limit: maximum number of texts, the first ones; None is all.
    """

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


class PruneConfig(Section):
    """Pruning of the training set before the student's distillation: rows that tell a probe model least are left out.

    Attributes:
        share: the share of the rows that is left out: those whose response has the least mean negative log-likelihood
            per token under the probe.
        probe: the model: the student's start, or the teacher.
    """

    share: Annotated[float, Field(gt=0, lt=1)]
    probe: Literal["start", "teacher"] = "start"


class GeneratorConfig(Section):
    """Sizes of the generated data set.

    Attributes:
        seed: determines the generated facts and questions.
        train: examples of the training set.
        valid: examples of the validation set.
        eval: examples of each evaluation set.
        people: people about whom facts are asked.
        towns: towns about which facts are asked.
        names: names of people in texts, with a third as many of towns. A quarter as many of both, at least 12 and 4,
            are never in the training set.
    """

    seed: Seed
    train: Count
    valid: Count
    eval: Count
    people: Count = 40
    towns: Count = 12
    names: Annotated[int, Field(ge=16)] = 120


class DataConfig(Section):
    """Training, validation and evaluation sets and the prompt template.

    Attributes:
        name: name of the data in the results.
        title: name of the data for readers.
        root: folder of the local files; None reads from the hub.
        template: the prompt template; in a config its name.
        fields: the files' own names of the fields `instruction`, `input`, `output` and `topic`, where they differ.
        generator: sizes of a generated data set; None reads files.
        train: the training set.
        valid: the validation set.
        eval: the evaluation sets by name.
        pretrain: a plain-text corpus for an additional cross-entropy term; None is none. With `off` a loss whose recipe
            has such a term (`loss.w_lm`) trains without it.
        prune: pruning of the training set for the student; None is none.
        chunker: what finds the phrases of these texts, see `SpanConfig.chunker`.
        other_counts: whether a table of a paper's own pair may be measured on sets with other numbers of rows than the
            papers'.
    """

    name: Name
    title: str
    root: str | None
    template: TemplateConfig
    fields: dict[Literal["instruction", "input", "output", "topic"], str] = Field(default_factory=dict)
    generator: GeneratorConfig | None = None
    train: SplitConfig
    valid: SplitConfig
    eval: dict[Name, SplitConfig]
    pretrain: PretrainConfig | Literal["off"] | None = None
    prune: PruneConfig | None = None
    chunker: str = "spacy"
    other_counts: bool = False

    @field_validator("template", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return fields(value) if isinstance(value, str) else value

    @field_validator("pretrain", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        if value is False:  # as YAML reads the word
            return "off"
        if isinstance(value, str) and value != "off":
            raise ValueError(f"{value} is no corpus; set data.pretrain.file=FILE, or off")
        return value

    @property
    def corpus(self) -> PretrainConfig | None:
        """The plain-text corpus, if there is one."""
        return self.pretrain if isinstance(self.pretrain, PretrainConfig) else None

    @field_validator("eval")
    @classmethod
    def _not_reserved(cls, value: dict[str, SplitConfig]) -> dict[str, SplitConfig]:
        if taken := [name for name in value if name in RESERVED]:
            raise ValueError(
                f"{', '.join(taken)}: no name for a set, since results use it for other facts; choose another"
            )
        return value

    @model_validator(mode="after")
    def _root_is_used(self) -> DataConfig:
        if self.generator is not None and self.root is not None:
            raise ValueError(f"root={self.root} has no effect on generated data; choose data=jsonl or data=dolly")
        if self.generator is not None and self.fields:
            raise ValueError("fields has no effect on generated data; choose data=jsonl or data=dolly")
        return self


def evaluation_set_names() -> list[str]:
    """The names of the evaluation sets of all `data` options."""
    sections = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in locations.options("data").values()]
    return list(dict.fromkeys(name for section in sections for name in (section or {}).get("eval") or {}))
