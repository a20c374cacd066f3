"""The module that is trained: student, frozen teacher and objective in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distill.data.encode import IGNORE
from distill.losses import Divergence
from distill.models.load import last_hidden
from distill.teacher.signal import LiveTeacher, NewTextTeacher, StoredTeacher
from distill.training.micro_batch import MicroBatch
from distill.training.objective import Objective, Term, objective_terms


class Distiller(nn.Module):
    """A student and the objective that it is trained on, over response positions only.

    Terms read the hidden states of response positions alone (`distill.training.objective`), so prompts and padding cost
    no logits. The teacher, live or stored (`distill.teacher.signal`), is a submodule, so that it is moved with the
    student.

    Args:
        student: a causal language model.
        teacher: needed where a term compares with it.
        terms: of the objective; cross-entropy alone by default.
        mean: `tokens`: a term's mean is over all that it counts in the global batch. `micro_batches`: it is over the
            means of micro-batches, as published code has it.

    Raises:
        ValueError: there is a divergence without a teacher, or a teacher without a divergence.
    """

    def __init__(
        self,
        student: Any,
        teacher: LiveTeacher | StoredTeacher | NewTextTeacher | None = None,
        terms: Sequence[Term] | None = None,
        mean: Literal["tokens", "micro_batches"] = "tokens",
    ):
        super().__init__()
        # Whether Trainer hands in the valid tokens of the whole global batch; if not, it takes the mean of the
        # micro-batches' and processes' losses.
        self.accepts_loss_kwargs = mean == "tokens"
        self.student, self.teacher = student, teacher
        self.objective = Objective(objective_terms() if terms is None else terms)
        if (teacher is None) != (self.objective.kd is None):
            raise ValueError("a divergence and a teacher go together: give both or neither")

    @property
    def divergence(self) -> Divergence | None:
        """The divergence from the teacher, if one is part of the objective."""
        return None if self.objective.kd is None else self.objective.kd.divergence

    def train(self, mode: bool = True) -> Distiller:
        """As in torch; the student stays in eval mode where a term needs it without dropout."""
        super().train(mode)
        if any(term.without_dropout for term in self.objective.terms):
            self.student.eval()
        return self

    @property
    def settles(self) -> bool:
        """Whether the divergence depends on all tokens of a global batch, so that `settle` must come first."""
        return self.divergence is not None and self.divergence.settles

    @torch.no_grad()
    def settle(self, batches: Sequence[dict[str, Any]], together: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        """Let a divergence that depends on all tokens of a global batch choose what counts for it.

        AlphaNet per batch, for instance, takes the one of two divergences whose sum over the global batch is larger.
        The choice stands until the next call.

        Args:
            batches: keyword arguments of `forward`, all of a global batch that this process has.
            together: adds a sum up over processes.
        """
        training = self.training
        self.eval()
        self.objective.settle(lambda: together(torch.stack([self(**batch)["kd_sum"] for batch in batches]).sum()))
        self.train(training)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        example_ids: Sequence[str] = (),
        extras: Mapping[str, Any] | None = None,
        corpus: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        counts: Mapping[str, int] | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """The objective of a micro-batch, as its share of the global batch's.

        Args:
            input_ids, attention_mask: `[B, T]`.
            labels: `[B, T]`, already shifted: `labels[b, t]` is what the logits at `t` predict, -100 where nothing is.
            example_ids: the rows' ids, for a stored teacher.
            extras: what else is known of rows and tokens, as `distill.data.encode.Collator` gives it.
            corpus: blocks of plain text `[C, L]`.
            num_items_in_batch: response tokens of the whole global batch; without it, of this batch.
            counts: of terms that count something else, how many there are in the whole global batch, by their names
                (`Objective.counts`); without it, in this batch.

        Returns:
            `loss`: the sum over terms of weight times share of the mean, a scalar; `tokens`: the response positions;
            of each term that found something to count `<name>_sum`, detached and without weight, and `<name>_count`.
        """
        valid = labels != IGNORE
        hidden, theirs, head = last_hidden(self.student, input_ids, attention_mask)[valid], None, None
        if self.teacher is not None:
            theirs, head = self.teacher(input_ids, attention_mask, valid, example_ids), self.teacher.head
        inputs = {"labels": labels, "extras": extras, "corpus": corpus}
        batch = MicroBatch(inputs, valid, self.student, hidden, theirs, head, self.training)
        loss: Tensor | None = None
        found: dict[str, Any] = {}
        for part in self.objective(batch):
            whole = num_items_in_batch if part.counted is None else (counts or {}).get(part.counted)
            share = part.total / _at_least_one(part.count if whole is None else whole)
            loss = share if loss is None else loss + share
            for name, value in part.sums.items():
                found[f"{name}_sum"], found[f"{name}_count"] = value, part.count
        if loss is None:  # no term found anything: as a sum over nothing, with a gradient
            loss = hidden.sum() * 0.0
        return {"loss": loss, "tokens": valid.sum(), **found}


def _at_least_one(count: Tensor | int) -> Tensor | int:
    """A divisor: nothing was counted in a micro-batch of fillers alone, whose sums are 0."""
    return count.clamp(min=1) if isinstance(count, Tensor) else max(1, count)
