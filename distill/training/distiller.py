"""The module that is trained: student, frozen teacher and objective in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distill.data.encode import IGNORE
from distill.losses import Divergence, fused
from distill.models.load import last_hidden, output_head
from distill.training.signal import LiveTeacher, StoredTeacher


class Distiller(nn.Module):
    """Student with objective `w_ce * CE + w_kd * divergence`, over response positions only.

    The heads read the hidden states of response positions alone and in chunks (`distill.losses.fused`), so prompts and
    padding cost no logits, and long batches no memory for them. The teacher, live or stored
    (`distill.training.signal`), is a submodule, so that it is moved with the student. A batch's mean is over its valid
    tokens, or with `mean="micro_batches"`, as published code has it, over the token means of its micro-batches.
    """

    def __init__(
        self,
        student: Any,
        teacher: LiveTeacher | StoredTeacher | None = None,
        divergence: Divergence | None = None,
        w_ce: float = 1.0,
        w_kd: float = 0.0,
        temperature: float = 1.0,
        mean: Literal["tokens", "micro_batches"] = "tokens",
    ):
        super().__init__()
        # Whether Trainer hands in the valid tokens of the whole global batch; if not, it takes the mean of the
        # micro-batches' and processes' losses.
        self.accepts_loss_kwargs = mean == "tokens"
        if (divergence is None) != (w_kd == 0) or (teacher is None) != (w_kd == 0):
            raise ValueError("a divergence, a teacher and w_kd > 0 go together")
        self.student, self.teacher, self.divergence = student, teacher, divergence
        self.w_ce, self.w_kd, self.temperature = w_ce, w_kd, temperature
        self.settled: Divergence | None = None  # what a divergence that reads the whole batch came to, by `settle`

    @property
    def settling(self) -> bool:
        """Whether the divergence depends on all tokens of a batch."""
        return self.divergence is not None and self.divergence.settles

    @torch.no_grad()
    def settle(self, batches: Sequence[dict[str, Any]], together: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        """Let a divergence that depends on all tokens of a batch choose what counts for these micro-batches.

        Args:
            batches: keyword arguments of `forward`, all of a global batch that this process has.
            together: adds a sum up over processes.
        """
        assert self.divergence is not None
        training = self.training
        self.eval()

        def total(one: Divergence) -> Tensor:
            self.settled = one
            return together(torch.stack([self(**batch)["kd_sum"] for batch in batches]).sum())

        self.settled = self.divergence.for_batch(total)
        self.train(training)

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
            self.divergence if self.settled is None else self.settled,
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
        tokens = valid.sum()  # none in a micro-batch of fillers alone: its loss is 0
        return {
            "loss": total / (tokens.clamp(min=1) if num_items_in_batch is None else num_items_in_batch),
            "tokens": tokens,
            **parts,
        }
