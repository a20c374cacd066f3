"""DistiLLM's adaptive use of the student's text, with a replay buffer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distill.base.registry import SWITCH
from distill.data.encode import Encoded
from distill.samplers.base import Replaying, Sample, Step, Writer, one_of, register

RISE = 0.1  # how much the threshold rises at once


@register("adaptive")
@dataclass
class Adaptive(Replaying):
    """Uses the student's text more often as validation gets worse, with a replay buffer (DistiLLM; Ko et al. 2024).

    With a probability, the threshold, a batch is the student's text. The threshold rises by 0.1 when the validation
    loss exceeds by more than `eps` its value at the last rise (before the first rise: its value at the start). A share
    of the student's batches is generated now and added to the buffer; the others are drawn from the buffer. While the
    buffer is not full, all are generated.

    Attributes:
        threshold: its value at the start, in [0, 1].
        eps: how much the validation loss must exceed its earlier value, 0 or more.
        fresh_share: the share of the student's batches that is generated now. `decreasing`: from all to none over the
            training (the published default, there `replay_ratio`); `constant`: one half; `increasing`: from none to
            all.
        watched: which validation loss: the `objective`, or as in DistiLLM's code the cross-entropy (`ce`).
        current: the threshold now.
        reference: the validation loss at the last rise, or at the start; None before the first validation.
    """

    threshold: float = 0.0
    eps: float = 0.1
    fresh_share: str = "decreasing"
    watched: str = field(default="objective", metadata=SWITCH)
    current: float = field(default=0.0, init=False, repr=False)
    reference: float | None = field(default=None, init=False, repr=False)

    needs_reference = True

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, fresh_share=("decreasing", "constant", "increasing"), watched=("objective", "ce"))
        if not 0 <= self.threshold <= 1 or self.eps < 0:
            raise ValueError(f"threshold={self.threshold} must be in [0, 1] and eps={self.eps} 0 or more")
        self.current = self.threshold

    def next(self, rows: Sequence[Encoded], step: Step, writer: Writer) -> list[Sample]:
        """See the base class."""
        self.now = step.number
        drawn = step.rng("adaptive").random()
        if drawn >= self.current:
            return super().next(rows, step, writer)
        if drawn < self.current * self.share(step) or len(self.buffer) < self.capacity:
            return self.kept(self.fresh(rows, step, writer), writer)
        return self.replayed(step, writer)

    def share(self, step: Step) -> float:
        """The probability that a batch of the student's is generated now, in [0, 1]."""
        progress = step.number / step.of
        return {"decreasing": 1 - progress, "constant": 0.5, "increasing": progress}[self.fresh_share]

    def observe(self, metrics: Mapping[str, float]) -> None:
        """See the base class."""
        loss = metrics["eval_loss" if self.watched == "objective" else "eval_ce"]
        if self.reference is None:
            self.reference = loss
        elif loss > self.reference + self.eps:
            self.reference, self.current = loss, min(1.0, self.current + RISE)

    def log_values(self) -> dict[str, float]:
        """The values of the buffer, and the threshold."""
        return {**super().log_values(), "threshold": self.current}

    def state(self) -> dict[str, Any]:
        """See the base class."""
        return {**super().state(), "current": self.current, "reference": self.reference}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See the base class."""
        super().restore(state)
        self.current, self.reference = state["current"], state["reference"]
