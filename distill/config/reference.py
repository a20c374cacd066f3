"""Reference recipes: what published code ran for a method or a table's row, as overrides with their source."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Annotated

from pydantic import Field, field_validator

from distill.config.section import Section

SOURCE = r"[\w.-]+/[\w.-]+@[0-9a-f]{7,40}:\S+"


class ReferenceConfig(Section):
    """Overrides that `preset=reference` adds, and the published file that they were read in.

    Attributes:
        source: the file, as `owner/repository@commit:path`.
        overrides: config overrides; an empty list says that the file was read and differs in nothing.
        pairs: the pairs that they are for; None is every pair.
        note: what cannot be known of it, or is not followed.
    """

    source: Annotated[str, Field(pattern=f"^{SOURCE}$")]
    overrides: list[str] = Field(default_factory=list)
    pairs: list[str] | None = None
    note: str = ""

    @field_validator("overrides")
    @classmethod
    def _are_overrides(cls, value: list[str]) -> list[str]:
        if wrong := [text for text in value if not re.match(r"[\w.]+=\S", text)]:
            raise ValueError(f"{wrong[0]} is not an override; write key=value or group=option")
        return value

    @property
    def repository(self) -> str:
        """The repository on GitHub, as `owner/name`."""
        return self.source.split("@")[0]

    @property
    def commit(self) -> str:
        """The commit."""
        return self.source.split("@")[1].split(":")[0]

    @property
    def path(self) -> str:
        """The file's path in the repository."""
        return self.source.split(":", 1)[1]

    @property
    def link(self) -> str:
        """The source as a markdown link."""
        name = self.repository.split("/")[1]
        return f"[{name} {self.path}](https://github.com/{self.repository}/blob/{self.commit}/{self.path})"


def of_pair(references: Sequence[ReferenceConfig], pair: str) -> list[ReferenceConfig]:
    """Those of the references that are for a pair."""
    return [reference for reference in references if reference.pairs is None or pair in reference.pairs]


def applied(references: Sequence[ReferenceConfig], keys: Collection[str]) -> list[ReferenceConfig]:
    """A method's references without the overrides that do not apply beside other choices.

    These are the keys that are chosen otherwise and, where another loss or sampler is chosen, its parameters; the
    weight of the corpus term stays.

    Args:
        keys: the keys that are chosen, such as `loss` and `train.student.lr`.
    """
    replaced = {"loss", "sampler"} & set(keys)

    def applies(override: str) -> bool:
        key = override.partition("=")[0]
        return key not in keys and (key == "loss.w_lm" or key.split(".")[0] not in replaced)

    return [r.model_copy(update={"overrides": [o for o in r.overrides if applies(o)]}) for r in references]


def overrides_of(references: Sequence[ReferenceConfig]) -> list[str]:
    """The overrides of several references, in order."""
    return [override for reference in references for override in reference.overrides]
