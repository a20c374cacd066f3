"""The sampler interface, its registry, and what samplers whose student writes have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Protocol

import numpy as np

from distill.base.registry import SAMPLERS, SWITCH, Registry
from distill.data.encode import Encoded

Origin = Literal["dataset", "teacher", "student", "replay", "mixed"]


@dataclass(frozen=True)
class Sample:
    """A row to train on, and where its response came from.

    Attributes:
        row: its id names the text: one that was written has the step behind the example's.
        ended: whether EOS ended the response; one that never ends is cut at the limit.
        step: the training step that it was written at.
        teacher_share: the teacher's part of the mixture that its tokens were drawn from.
        origin: `mixed` is written by student and teacher together, `replay` by the student at an earlier step.
    """

    row: Encoded
    ended: bool = True
    step: int = 0
    teacher_share: float = 0.0
    origin: Origin = "dataset"

    def state(self) -> dict[str, Any]:
        """As plain values and tensors."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"row": dict(vars(self.row))}

    @staticmethod
    def of(state: Mapping[str, Any]) -> Sample:
        """The sample that `state` gave."""
        return Sample(**{**state, "row": Encoded(**state["row"])})


@dataclass(frozen=True)
class Step:
    """A training step: how many were done before, of how many, the training's seed, and the rows of its global batch,
    which are fewer at an epoch's end."""

    number: int
    of: int
    seed: int
    rows: int

    def rng(self, purpose: str, part: int | None = None) -> np.random.Generator:
        """Random numbers of this step (or of another `part` of the training) for one purpose, and no state to keep."""
        name = hashlib.sha256(f"{self.seed}/{purpose}/{self.number if part is None else part}".encode()).digest()
        return np.random.default_rng(int.from_bytes(name[:8], "little"))


class Writer(Protocol):
    """What a sampler has at hand at a step: the student as it writes, and the other processes of the run."""

    rank: int
    processes: int

    def write(self, rows: Sequence[Encoded], stream: str, step: int, teacher_share: float = 0.0) -> list[Sample]:
        """A response of the student to each row's prompt, or of its mixture with the teacher, marked as such
        (`distill.data.encode.STUDENT_TEXT`). A row without a response, which fills a batch, stays as it is.

        Args:
            stream: names the random streams beside the training's seed and the rows' ids.
        """
        ...

    def with_rollout_data(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples of a whole rollout (of all processes), each with what the divergence reads of how its tokens were
        drawn as an extra (`distill.data.encode.ROLLOUT`); as they are where it reads nothing."""
        ...

    def gather(self, samples: Sequence[Sample]) -> list[Sample]:
        """All processes' samples, in an order that does not depend on how many there are."""
        ...


class Sampler:
    """Decides what a step trains on. Subclasses are dataclasses; the fields that a maker gives are its parameters.

    Random choices are functions of seed and step (`Step.rng`), the same in every process. What else a sampler knows is
    its `state`, which is saved with each checkpoint.

    Attributes:
        origin: where the rows of its data come from.
        writes: whether the student writes during training, at most `max_new_tokens` a text.
        reads_data: whether the data set's own responses are trained on.
        asks_teacher: whether the teacher answers the training prompts first (`distill.pipeline.stages`).
        needs_reference: whether the validation before the first step counts.
    """

    origin: Origin = "dataset"
    writes = False
    max_new_tokens: int = 0
    reads_data = True
    asks_teacher = False
    needs_reference = False

    def prepare(self, rows: Sequence[Encoded], global_batch_size: int) -> None:
        """Take note of the training rows before the first step.

        Raises:
            ValueError: the batch does not suit the sampler.
        """

    @property
    def holds(self) -> int:
        """The most texts that may come again."""
        return 0

    def idle(self) -> set[str]:
        """Its parameters that change nothing, given the others."""
        return set()

    def next(self, rows: Sequence[Encoded], step: Step, writer: Writer) -> list[Sample]:
        """What this process trains on at a step: as many samples as rows, or fewer.

        Args:
            rows: this process's share of the data set's next global batch. With several processes some may be there to
                fill a share: they have no response.

        Returns:
            The rows as they are, unless a sampler does otherwise.
        """
        return [Sample(row, step=step.number, origin=self.origin) for row in rows]

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Take note of a validation: `eval_loss` (the objective), `eval_ce`."""

    def held(self) -> list[Sample]:
        """The texts that may come again."""
        return []

    def log_values(self) -> dict[str, float]:
        """What to log of its state, by column of a training's curve."""
        return {}

    def state(self) -> dict[str, Any]:
        """All that it knows beyond its parameters, as plain values and tensors."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Know again what `state` gave."""


@dataclass
class StudentText(Sampler):
    """What samplers have in common that let the student write.

    Attributes:
        max_new_tokens: where a text that does not end is cut.
        temperature, top_p, top_k: of sampling; the divergence has a temperature of its own.
        labels: whether targets are `shifted`, or stand one position `late` as in DistiLLM's and ABKD's code, so that
            the divergence misses each response's first token.
        eos: whether EOS is `kept`, or `erased` where it is the pad token too, as there.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    labels: str = field(default="shifted", metadata=SWITCH)
    eos: str = field(default="kept", metadata=SWITCH)

    writes = True

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature <= 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens} must be at least 1, temperature={self.temperature} larger than"
                f" 0, top_p={self.top_p} in (0, 1] and top_k={self.top_k} 0 (off) or more"
            )
        one_of(self, labels=("shifted", "late"), eos=("kept", "erased"))

    def fresh(self, rows: Sequence[Encoded], step: Step, writer: Writer) -> list[Sample]:
        """The student's responses to the rows' prompts, written now."""
        return writer.write(rows, f"step {step.number}", step.number)


@dataclass
class Replaying(StudentText):
    """What samplers have in common that keep the student's texts.

    Attributes:
        capacity: texts in the buffer; the oldest leave first.
    """

    capacity: int = 1000
    buffer: list[Sample] = field(default_factory=list, init=False, repr=False)
    now: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.capacity < 1:
            raise ValueError(f"capacity={self.capacity} must be at least 1")

    @property
    def holds(self) -> int:
        """See the base class."""
        return self.capacity

    def kept(self, written: list[Sample], writer: Writer) -> list[Sample]:
        """The samples, which go into the buffer with those of the other processes."""
        texts = [sample for sample in writer.gather(written) if sample.origin == "student"]
        self.buffer = [*self.buffer, *texts][-self.capacity :]
        return written

    def replayed(self, step: Step, writer: Writer) -> list[Sample]:
        """This process's share of a random draw from the buffer, without repetition where it holds enough."""
        drawn = step.rng("replay").choice(len(self.buffer), step.rows, replace=step.rows > len(self.buffer))
        return [replace(self.buffer[i], origin="replay") for i in drawn[writer.rank :: writer.processes]]

    def held(self) -> list[Sample]:
        """See the base class."""
        return self.buffer

    def log_values(self) -> dict[str, float]:
        """Texts in the buffer and their mean age in steps."""
        ages = [self.now - sample.step for sample in self.buffer]
        return {"buffer": float(len(ages)), "buffer_age": sum(ages) / len(ages) if ages else 0.0}

    def state(self) -> dict[str, Any]:
        """See the base class."""
        return {"buffer": [sample.state() for sample in self.buffer]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See the base class."""
        self.buffer = [Sample.of(one) for one in state["buffer"]]


def one_of(settings: object, **allowed: Sequence[str]) -> None:
    """Refuse a word that a parameter does not know.

    Raises:
        ValueError: with the words that it does.
    """
    for name, words in allowed.items():
        if (found := getattr(settings, name)) not in words:
            raise ValueError(f"{name}={found} is none of {', '.join(words)}")


_REGISTRY: Registry[Sampler] = SAMPLERS
register, names, find = _REGISTRY.register, _REGISTRY.names, _REGISTRY.find
build, defaults, switches = _REGISTRY.build, _REGISTRY.defaults, _REGISTRY.switches
