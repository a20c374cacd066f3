"""The base class of all config sections, and the field types that they share."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
TrainSeed = Annotated[int, Field(ge=0, lt=2**32)]  # the range that numpy.random.seed accepts
Overlong = Literal["drop", "cut", "cut_right"]


def _check_name(value: str) -> str:
    """A name that is a folder, a cell and a column: one word that no reader takes for a missing value."""
    if not re.fullmatch(r"\w[\w.+-]{0,99}", value):
        raise ValueError(
            f"{value!r} is no name; use letters, digits, _ . + and - (folders and columns are named after it)"
        )
    return value


Name = Annotated[str, AfterValidator(_check_name)]


class Section(BaseModel):
    """A config section: no unknown keys, no silent conversions, read-only."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, defer_build=True)
