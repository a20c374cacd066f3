"""The module that is trained: student, frozen teacher and objective in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from distill.data.encode import IGNORE
from distill.losses import Divergence, fused
from distill.models.load import last_hidden, output_head
from distill.training.signal import LiveTeacher, StoredTeacher


class Distiller(nn.Module):
    """Student with objective `w_ce * CE + w_kd * divergence`, over response positions only.

    The heads read the hidden states of response positions alone and in chunks (`distill.losses.fused`), so prompts and
    padding cost no logits, and long batches no memory for them. The teacher, live or stored
    (`distill.training.signal`), is a submodule, so that it is moved with the student.
    """

    accepts_loss_kwargs = True  # asks Trainer for the valid tokens of the whole global batch

    def __init__(
        self,
        student: Any,
        teacher: LiveTeacher | StoredTeacher | None = None,
        divergence: Divergence | None = None,
        w_ce: float = 1.0,
        w_kd: float = 0.0,
        temperature: float = 1.0,
    ):
        super().__init__()
        if (divergence is None) != (w_kd == 0) or (teacher is None) != (w_kd == 0):
            raise ValueError("a divergence, a teacher and w_kd > 0 go together")
        self.student, self.teacher, self.divergence = student, teacher, divergence
        self.w_ce, self.w_kd, self.temperature = w_ce, w_kd, temperature

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        example_ids: Sequence[str] = (),
        num_items_in_batch: Tensor | int | None = None,
        **_: Any,
    ) -> dict[str, Tensor]:
        """The objective's sum over response tokens divided by `num_items_in_batch`, and its detached parts.

        Args:
            input_ids, attention_mask: `[B, T]`.
            labels: `[B, T]`, already shifted: `labels[b, t]` is what the logits at `t` predict, -100 where nothing is.
            example_ids: the rows' ids, for a stored teacher.
            num_items_in_batch: valid tokens of the whole global batch; without it, of this batch.

        Returns:
            `loss`; `ce_sum` (outside training, or if it is part of the objective) and `kd_sum` in nats; `tokens`.
        """
        valid = labels != IGNORE
        hidden, theirs, head = last_hidden(self.student, input_ids, attention_mask)[valid], None, None
        if self.teacher is not None:
            theirs, head = self.teacher(input_ids, attention_mask, valid, example_ids), self.teacher.head
        # Cross-entropy that is no part of the objective is measured in validation, and costs nothing in training.
        read = self.w_ce or not self.training or (self.divergence is not None and self.divergence.reads_targets)
        parts: dict[str, Tensor] = {}
        total = fused(
            self.divergence,
            hidden,
            output_head(self.student),
            theirs,
            head,
            targets=labels[valid] if read else None,
            w_ce=self.w_ce,
            w_kd=self.w_kd,
            temperature=self.temperature,
            parts=parts,
        )
        tokens = valid.sum()
        return {
            "loss": total / (tokens if num_items_in_batch is None else num_items_in_batch),
            "tokens": tokens,
            **parts,
        }
