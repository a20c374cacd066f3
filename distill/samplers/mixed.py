"""Now and then the student writes a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from distill.base.registry import SWITCH
from distill.data.encode import Encoded
from distill.samplers.base import Replaying, Sample, Step, Writer, one_of, register


@register("mixed")
@dataclass
class Mixed(Replaying):
    """With a probability the student writes the batch that is trained on, else it is the data set's (GKD; Agarwal et
    al. 2024, algorithm 1).

    Attributes:
        probability: of a batch that the student writes.
        draw: `fresh`: what was written is trained on; `buffer`: as in DistiLLM's and ABKD's code, it goes into a
            buffer, and a random draw from that is trained on.
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
        return {"capacity"} if self.draw == "fresh" else set()

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
