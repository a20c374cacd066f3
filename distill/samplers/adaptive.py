"""DistiLLM's adaptive use of the student's text, with a replay buffer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distill.base.registry import SWITCH
from distill.data.encode import Encoded
from distill.samplers.base import Replaying, Sample, Step, Writer, one_of, register

RISE = 0.1  # of the threshold


@register("adaptive")
@dataclass
class Adaptive(Replaying):
    """The student's text comes in as validation gets worse, and comes again from a buffer (DistiLLM; Ko et al. 2024).

    A batch is the student's with a probability, the threshold. It rises by 0.1 when the validation loss has risen by
    more than `eps` over what it was at the last rise (before that, at the start). Of the student's batches a share is
    written now and goes into the buffer, the rest is drawn from it; while it is not full, all are written.

    Attributes:
        threshold: at the start.
        eps: how far the validation loss must rise.
        fresh_share: what becomes of the share that is written now: `decreasing` from all to none over the training (the
            published default, there `replay_ratio`), `constant` at one half, or `increasing` from none to all.
        watched: the validation loss: the `objective`, or as in DistiLLM's code the cross-entropy (`ce`).
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
        """The share of the student's batches that is written now."""
        gone = step.number / step.of
        return {"decreasing": 1 - gone, "constant": 0.5, "increasing": gone}[self.fresh_share]

    def observe(self, metrics: Mapping[str, float]) -> None:
        """See the base class."""
        loss = metrics["eval_loss" if self.watched == "objective" else "eval_ce"]
        if self.reference is None:
            self.reference = loss
        elif loss > self.reference + self.eps:
            self.reference, self.current = loss, min(1.0, self.current + RISE)

    def log_values(self) -> dict[str, float]:
        """The buffer's, and the threshold."""
        return {**super().log_values(), "threshold": self.current}

    def state(self) -> dict[str, Any]:
        """See the base class."""
        return {**super().state(), "current": self.current, "reference": self.reference}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See the base class."""
        super().restore(state)
        self.current, self.reference = state["current"], state["reference"]
