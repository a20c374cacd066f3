"""MiniLLM's rollouts: texts drawn from a mixture of student and teacher, trained on in several passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distill.data.encode import Encoded
from distill.samplers.base import Sample, Sampler, Step, Writer, register


@register("rollout")
@dataclass
class Rollout(Sampler):
    """Trains in several passes on texts drawn from a mixture of student and teacher.

    MiniLLM; Gu et al. 2024, section 2.2. Each token is drawn from `(1 - teacher_share) q + teacher_share p`. Sampling
    is plain, without temperature, top-p or top-k, because the importance weights assume plain samples.

    Attributes:
        rollouts: the number of texts generated at once, over all processes; a multiple of the global batch size.
        passes: how often the texts are trained on, each time in a new order, before new ones are generated.
        teacher_share: the teacher's weight in the mixture, in [0, 1).
        max_new_tokens: the most tokens of a text; a longer one is cut.
        prompts: the training rows, whose prompts are used in turn.
        texts: the current rollout; the same in every process.
        batch: the global batch size.
        now: the number of the current step.
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
        steps_per_pass = self.rollouts // self.batch
        cycle, step_in_cycle = divmod(step.number, steps_per_pass * self.passes)
        if step_in_cycle == 0:
            self._write(cycle, step, writer)
        number, place = divmod(step_in_cycle, steps_per_pass)
        order = step.rng(f"pass {number}", cycle).permutation(len(self.texts))
        chosen = order[place * self.batch : (place + 1) * self.batch][: step.rows]
        return writer.for_step([self.texts[i] for i in chosen])[writer.rank :: writer.processes]

    def _write(self, cycle: int, step: Step, writer: Writer) -> None:
        """Generate new texts for the next `rollouts` prompts.

        The prompts are used in rounds; in each round all of them come once, in a new random order.
        """
        prompt_count, positions = len(self.prompts), range(cycle * self.rollouts, (cycle + 1) * self.rollouts)
        chosen: dict[int, list[Encoded]] = {}
        for round_ in sorted({i // prompt_count for i in positions}):
            order = step.rng("prompts", round_).permutation(prompt_count)
            chosen[round_] = [self.prompts[order[i % prompt_count]] for i in positions if i // prompt_count == round_]
        written: list[Sample] = []
        for round_, prompts in chosen.items():  # each round has its own random streams
            share = prompts[writer.rank :: writer.processes]
            written += writer.write(share, f"round {round_}", step.number, self.teacher_share) if share else []
        self.texts = writer.with_rollout_data(writer.gather(written))

    def held(self) -> list[Sample]:
        """See the base class."""
        return self.texts

    def log_values(self) -> dict[str, float]:
        """The number of texts of the rollout and their age in steps."""
        return {
            "buffer": float(len(self.texts)),
            "buffer_age": float(self.now - self.texts[0].step) if self.texts else 0.0,
        }

    def state(self) -> dict[str, Any]:
        """See the base class."""
        return {"texts": [sample.state() for sample in self.texts]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See the base class."""
        self.texts = [Sample.of(sample) for sample in state["texts"]]
