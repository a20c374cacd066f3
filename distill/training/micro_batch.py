"""A micro-batch as the objective's terms see it: hidden states at response positions, heads, and the rows' extras."""

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
    """A micro-batch as the terms see it. N are its response positions, row by row; B are its rows.

    Attributes:
        inputs: the collated micro-batch: `labels` `[B, T]`, `extras` as `distill.data.encode.Collator` gives them, and
            `corpus`, blocks of plain text `[C, L]`, where there are some.
        valid: which of the labels' `[B, T]` are response positions.
        student: the model that is trained.
        student_hidden: its last hidden states `[N, d]`, differentiated.
        teacher_hidden: the teacher's `[N, d']`, not differentiated; None without a teacher.
        teacher_head: from the teacher's hidden states to logits.
        training: whether the objective will be differentiated. In validation terms without weight are measured too.
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
        """From the student's hidden states to logits."""
        return output_head(self.student)

    @property
    def extras(self) -> Mapping[str, Any]:
        """What is known of rows (a list `[B]`) and tokens (a tensor `[N, k]`) besides ids, by name."""
        extras: Mapping[str, Any] = self.inputs.get("extras") or {}
        return extras

    @cached_property
    def rows(self) -> Tensor:
        """The row of each position `[N]`."""
        return self.valid.nonzero()[:, 0]

    @cached_property
    def places(self) -> Tensor:
        """The place of each position's target in its response `[N]`: 0 is the response's first token."""
        lengths = self.valid.sum(1)
        return torch.arange(len(self.rows), device=self.rows.device) - (lengths.cumsum(0) - lengths)[self.rows]

    @cached_property
    def student_text(self) -> Tensor | None:
        """Positions `[N]` in rows that the student wrote itself; None where it wrote none of them."""
        marks = self.extras.get(STUDENT_TEXT, ())
        return torch.tensor(marks, device=self.valid.device)[self.rows] if any(marks) else None
