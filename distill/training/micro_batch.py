"""The input of the objective's terms: hidden states at response positions, output heads, and the rows' extras."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from distill.data.encode import STUDENT_TEXT
from distill.losses import Head
from distill.models.load import output_head


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """A micro-batch for the terms. N is the number of its response positions, row by row; B is the number of its rows.

    Attributes:
        inputs: the collated micro-batch: `labels` `[B, T]`, `example_ids`, `extras` as `distill.data.encode.Collator`
            gives them; if the objective has a corpus loss `corpus`, blocks of plain text `[C, L]`; and for a batch that
            the student wrote maybe `data_rows`, the collated rows of the data set with the same prompts.
        valid: a mask `[B, T]` of the response positions.
        student: the model that is trained.
        student_hidden: the student's last hidden states `[N, d]`, with gradient.
        teacher_hidden: the teacher's last hidden states `[N, d']`, without gradient; None without a teacher.
        teacher_head: maps the teacher's hidden states to logits; None without a teacher.
        training: whether the objective will be differentiated. In validation terms of weight 0 are measured too.
    """

    inputs: Mapping[str, Any]
    valid: Tensor
    student: Any
    student_hidden: Tensor
    teacher_hidden: Tensor | None = None
    teacher_head: Head | None = None
    training: bool = True

    @cached_property
    def targets(self) -> Tensor:
        """The tokens `[N]` that the logits of the response positions predict."""
        labels: Tensor = self.inputs["labels"]
        return labels[self.valid]

    @property
    def student_head(self) -> Head:
        """Maps the student's hidden states to logits."""
        return output_head(self.student)

    @property
    def extras(self) -> Mapping[str, Any]:
        """Further data by name: of rows a list `[B]`, of tokens a tensor `[N, k]`."""
        extras: Mapping[str, Any] = self.inputs.get("extras") or {}
        return extras

    @cached_property
    def rows(self) -> Tensor:
        """The index of each response position's row `[N]`."""
        return self.valid.nonzero()[:, 0]

    @cached_property
    def places(self) -> Tensor:
        """The index of each position's target within its response `[N]`: 0 is the response's first token."""
        lengths = self.valid.sum(1)
        return torch.arange(len(self.rows), device=self.rows.device) - (lengths.cumsum(0) - lengths)[self.rows]

    @cached_property
    def student_text(self) -> Tensor | None:
        """A mask `[N]` of the positions in rows that the student wrote; None if it wrote none of the rows."""
        marks = self.extras.get(STUDENT_TEXT, ())
        return torch.tensor(marks, device=self.valid.device)[self.rows] if any(marks) else None
