"""MiniLLM's rollouts: texts that student and teacher write together, trained on in several passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distill.data.encode import Encoded
from distill.samplers.base import Sample, Sampler, Step, Writer, register


@register("rollout")
@dataclass
class Rollout(Sampler):
    """Student and teacher write `rollouts` texts together, which are trained on in several passes (MiniLLM; Gu et al.
    2024, section 2.2).

    Each token is drawn from `(1 - teacher_share) q + teacher_share p`. Sampling is plain, since the importance weights
    are those of plain samples: there is no temperature, top-p or top-k.

    Attributes:
        rollouts: texts written at once, over all processes; a multiple of the global batch.
        passes: how often each is trained on, in a new order each time, before the next are written.
        teacher_share: the teacher's part of the mixture, in [0, 1).
        max_new_tokens: where a text that does not end is cut.
    """

    rollouts: int = 256
    passes: int = 4
    teacher_share: float = 0.2
    max_new_tokens: int = 256
    prompts: list[Encoded] = field(default_factory=list, init=False, repr=False)
    texts: list[Sample] = field(default_factory=list, init=False, repr=False)
    batch: int = field(default=0, init=False, repr=False)
    now: int = field(default=0, init=False, repr=False)

    writes = True
    reads_data = False
    temperature, top_p, top_k = 1.0, 1.0, 0

    def __post_init__(self) -> None:
        if min(self.rollouts, self.passes, self.max_new_tokens) < 1 or not 0 <= self.teacher_share < 1:
            raise ValueError(
                f"rollouts={self.rollouts}, passes={self.passes} and max_new_tokens={self.max_new_tokens} must be at"
                f" least 1, and teacher_share={self.teacher_share} in [0, 1)"
            )

    @property
    def holds(self) -> int:
        """See the base class."""
        return self.rollouts

    def prepare(self, rows: Sequence[Encoded], global_batch_size: int) -> None:
        """See the base class."""
        if self.rollouts % global_batch_size:
            raise ValueError(f"{self.rollouts} rollouts are no whole number of batches of {global_batch_size}")
        self.prompts, self.batch = list(rows), global_batch_size

    def next(self, rows: Sequence[Encoded], step: Step, writer: Writer) -> list[Sample]:
        """See the base class."""
        self.now = step.number
        a_pass = self.rollouts // self.batch
        cycle, at = divmod(step.number, a_pass * self.passes)
        if at == 0:
            self._write(cycle, step, writer)
        number, place = divmod(at, a_pass)
        order = step.rng(f"pass {number}", cycle).permutation(len(self.texts))
        chosen = order[place * self.batch : (place + 1) * self.batch][: step.rows]
        return [self.texts[i] for i in chosen[writer.rank :: writer.processes]]

    def _write(self, cycle: int, step: Step, writer: Writer) -> None:
        """Write new texts for the prompts whose turn it is, in an order of their own each time round."""
        count, turn = len(self.prompts), range(cycle * self.rollouts, (cycle + 1) * self.rollouts)
        chosen: dict[int, list[Encoded]] = {}
        for rounds in sorted({i // count for i in turn}):
            order = step.rng("prompts", rounds).permutation(count)
            chosen[rounds] = [self.prompts[order[i % count]] for i in turn if i // count == rounds]
        mine: list[Sample] = []
        for rounds, prompts in chosen.items():  # a prompt that comes twice is answered by two streams
            share = prompts[writer.rank :: writer.processes]
            mine += writer.write(share, f"round {rounds}", step.number, self.teacher_share) if share else []
        self.texts = writer.with_rollout_data(writer.gather(mine))

    def held(self) -> list[Sample]:
        """See the base class."""
        return self.texts

    def log_values(self) -> dict[str, float]:
        """Texts of the rollout and their age in steps."""
        return {
            "buffer": float(len(self.texts)),
            "buffer_age": float(self.now - self.texts[0].step) if self.texts else 0.0,
        }

    def state(self) -> dict[str, Any]:
        """See the base class."""
        return {"texts": [sample.state() for sample in self.texts]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See the base class."""
        self.texts = [Sample.of(one) for one in state["texts"]]
