"""The module that is trained: student, frozen teacher and objective in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distill.data.encode import IGNORE
from distill.losses import Divergence
from distill.models.load import in_eval_mode, last_hidden
from distill.teacher.signal import LiveTeacher, NewTextTeacher, StoredTeacher
from distill.training.micro_batch import MicroBatch
from distill.training.objective import Objective, Term, objective_terms


class Distiller(nn.Module):
    """A student and the objective that it is trained on, over response positions only.

    Terms read only the hidden states of response positions (`distill.training.objective`), so no logits are computed
    for prompts and padding. The teacher, live or stored (`distill.teacher.signal`), is a submodule, so it moves to a
    device together with the student.

    Args:
        student: a causal language model.
        teacher: the teacher; needed if the objective has a divergence.
        terms: the terms of the objective; by default cross-entropy alone.
        mean: `tokens`: the mean of a term is over everything that it counts in the global batch. `micro_batches`: it is
            the mean of the means of the micro-batches, as in published code.

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
        # Trainer reads this attribute. If it is true, Trainer passes the number of response tokens of the whole global
        # batch to `forward`; if not, it averages the losses of the micro-batches and processes.
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
        """As in torch, but the student stays in eval mode if a term needs it without dropout."""
        super().train(mode)
        if any(term.without_dropout for term in self.objective.terms):
            self.student.eval()
        return self

    @property
    def settles(self) -> bool:
        """Whether the divergence depends on all tokens of a global batch: `settle` must come before `forward`."""
        return self.divergence is not None and self.divergence.settles

    @torch.no_grad()
    def settle(
        self,
        batches: Sequence[dict[str, Any]],
        gather: Callable[[Tensor], Tensor] = lambda values: values,
        training: bool = False,
    ) -> None:
        """Let a divergence that depends on all tokens of a global batch make its choice for this global batch.

        For example, AlphaNet per batch picks the one of two divergences whose sum over the global batch is larger. The
        choice is used until the next call.

        Args:
            batches: keyword arguments of `forward`: all micro-batches of the global batch that this process has.
            gather: see `WholeBatch`.
            training: see `WholeBatch`.
        """
        alone = [{name: value for name, value in batch.items() if name != "data_rows"} for batch in batches]

        def total() -> Tensor:
            return gather(torch.stack([self(**batch)["kd_sum"] for batch in alone]).sum().view(1)).sum()

        with in_eval_mode(self):
            self.objective.settle(total, gather, training)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        example_ids: Sequence[str] = (),
        extras: Mapping[str, Any] | None = None,
        corpus: Tensor | None = None,
        data_rows: Mapping[str, Any] | None = None,
        num_items_in_batch: Tensor | int | None = None,
        counts: Mapping[str, int] | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """The contribution of a micro-batch to the objective of its global batch.

        Args:
            input_ids, attention_mask: `[B, T]`.
            labels: `[B, T]`, already shifted: `labels[b, t]` is the token that the logits at `t` predict, or -100 if
                position `t` has no target.
            example_ids: the ids of the rows, for a stored teacher.
            extras: further data of rows and tokens by name, as `distill.data.encode.Collator` gives it.
            corpus: blocks of plain text `[C, L]`.
            data_rows: a collated micro-batch of the data set's own responses, for the cross-entropy of a batch that the
                student wrote.
            num_items_in_batch: the number of response tokens of the whole global batch; by default that of this
                micro-batch.
            counts: for each term that does not count response tokens, by its name: its count over the whole global
                batch (`Objective.counts`); by default its count in this micro-batch.

        Returns:
            `loss`: the sum over terms of weight times sum over global count, a scalar; `tokens`: the number of response
            positions; for each term with something to count `<name>_sum`, detached and without weight, and
            `<name>_count`.
        """
        valid = labels != IGNORE
        student_hidden = last_hidden(self.student, input_ids, attention_mask)[valid]
        teacher_hidden, teacher_head = None, None
        if self.teacher is not None:
            teacher_hidden = self.teacher(input_ids, attention_mask, valid, example_ids)
            teacher_head = self.teacher.head
        inputs = {"labels": labels, "example_ids": example_ids, "extras": extras, "corpus": corpus}
        if data_rows is not None:
            inputs["data_rows"] = data_rows
        batch = MicroBatch(inputs, valid, self.student, student_hidden, teacher_hidden, teacher_head, self.training)
        loss: Tensor | None = None
        sums_and_counts: dict[str, Any] = {}
        texts = (counts or {}).get("span")
        per_text = None if not texts or num_items_in_batch is None else float(num_items_in_batch) / texts
        for part in self.objective(batch, per_text):
            whole = num_items_in_batch if part.counted is None else (counts or {}).get(part.counted)
            share = part.total / _at_least_one(part.count if whole is None else whole)
            loss = share if loss is None else loss + share
            for name, value in part.sums.items():
                sums_and_counts |= {f"{name}_sum": value, f"{name}_count": part.other_counts.get(name, part.count)}
        if loss is None:  # no term had anything to count; backward still needs a graph
            loss = student_hidden.sum() * 0.0
        return {"loss": loss, "tokens": valid.sum(), **sums_and_counts}


def _at_least_one(count: Tensor | int) -> Tensor | int:
    """The count as a divisor. A micro-batch that holds only filler rows has count 0, and its sums are 0."""
    return count.clamp(min=1) if isinstance(count, Tensor) else max(1, count)
