"""Some batches, chosen at random, are the student's text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from distill.base.registry import SWITCH
from distill.data.encode import Encoded
from distill.samplers.base import Replaying, Sample, Step, Writer, one_of, register


@register("mixed")
@dataclass
class Mixed(Replaying):
    """With a given probability the student generates the responses of a batch; otherwise they are the data set's.

    GKD; Agarwal et al. 2024, algorithm 1.

    Attributes:
        probability: the probability of a batch of the student's text, in (0, 1].
        draw: `fresh`: the step trains on the generated texts; `buffer`: as in DistiLLM's and ABKD's code, they are
            added to a buffer, and the step trains on a random draw from it.
    """

    probability: float = 0.5
    draw: str = field(default="fresh", metadata=SWITCH)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, draw=("fresh", "buffer"))
        if not 0 < self.probability <= 1:
            raise ValueError(f"probability={self.probability} must be in (0, 1]; at 0 it is sampler=fixed")

    @property
    def holds(self) -> int:
        """See the base class."""
        return 0 if self.draw == "fresh" else self.capacity

    def idle(self) -> set[str]:
        """See the base class."""
        return super().idle() | ({"capacity"} if self.draw == "fresh" else set())

    def next(self, rows: Sequence[Encoded], step: Step, writer: Writer) -> list[Sample]:
        """See the base class."""
        self.now = step.number
        if step.rng("mixed").random() >= self.probability:
            return super().next(rows, step, writer)
        written = self.fresh(rows, step, writer)
        if self.draw == "fresh":
            return written
        self.kept(written, writer)
        return self.replayed(step, writer)
