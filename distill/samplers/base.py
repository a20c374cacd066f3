"""The sampler interface, its registry, and base classes of samplers for which the student generates text."""

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
        row: prompt and response as token ids. Its id names the text: for a generated response it is the example's id,
            followed by the step or round in which it was generated.
        ended: whether EOS ended the response; otherwise the length limit cut it.
        step: the training step at which it was generated.
        teacher_share: the teacher's weight in the mixture that its tokens were drawn from.
        origin: who wrote it. `mixed`: student and teacher together; `replay`: the student at an earlier step.
    """

    row: Encoded
    ended: bool = True
    step: int = 0
    teacher_share: float = 0.0
    origin: Origin = "dataset"

    def state(self) -> dict[str, Any]:
        """The sample as a dictionary of plain values and tensors, for a checkpoint."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"row": dict(vars(self.row))}

    @staticmethod
    def of(state: Mapping[str, Any]) -> Sample:
        """The sample whose `state` this is."""
        return Sample(**{**state, "row": Encoded(**state["row"])})


@dataclass(frozen=True)
class Step:
    """A training step.

    Attributes:
        number: the number of steps before this one.
        of: the number of steps of the whole training.
        seed: the training seed.
        rows: the rows of the step's global batch. The last step of an epoch may have fewer.
    """

    number: int
    of: int
    seed: int
    rows: int

    def rng(self, purpose: str, part: int | None = None) -> np.random.Generator:
        """A random generator, a function of seed, purpose and step (or another `part` of the training)."""
        name = hashlib.sha256(f"{self.seed}/{purpose}/{self.number if part is None else part}".encode()).digest()
        return np.random.default_rng(int.from_bytes(name[:8], "little"))


def one_of(settings: object, **allowed: Sequence[str]) -> None:
    """Check that parameters have one of their allowed values.

    Args:
        settings: the object whose attributes are checked.
        allowed: the allowed values by attribute name.

    Raises:
        ValueError: an attribute has another value; with the allowed ones.
    """
    for name, values in allowed.items():
        if (value := getattr(settings, name)) not in values:
            raise ValueError(f"{name}={value} is none of {', '.join(values)}")


@dataclass(frozen=True)
class Scrg:
    """Sequence correction and re-generation (MGSR 4.1): the teacher corrects the student's texts as they are written.

    Attributes:
        corrections: how often each text is corrected; 0 is off.
        teacher: its token at a place: `sample`, drawn from its distribution, or its likeliest one (`greedy`).
    """

    corrections: int = 0
    teacher: str = "sample"

    def __post_init__(self) -> None:
        if self.corrections < 0:
            raise ValueError(f"scrg.corrections={self.corrections} must be 0 (off) or more")
        one_of(self, teacher=("sample", "greedy"))


class Writer(Protocol):
    """What a sampler can use at a step: generation with the student, and communication with the other processes.

    Attributes:
        rank: this process's rank in the distributed run.
        processes: the number of processes.
    """

    rank: int
    processes: int

    def write(self, rows: Sequence[Encoded], stream: str, step: int, teacher_share: float = 0.0) -> list[Sample]:
        """The student's response to each row's prompt, marked as the student's (`distill.data.encode.STUDENT_TEXT`).

        A row without a response is a filler and is returned unchanged.

        Args:
            stream: part of the names of the random streams, besides the training seed and the ids of the rows.
            step: the number of the training step.
            teacher_share: if it is not 0, tokens are drawn from the mixture of student and teacher with this weight.
        """
        ...

    def correct(
        self, rows: Sequence[Encoded], samples: Sequence[Sample], stream: str, numbers: Sequence[int], greedy: bool
    ) -> list[Sample]:
        """The samples after corrections: in each the teacher corrects one token, and the student writes on from there.

        A text in which teacher and student agree on every token stays as it is.

        Args:
            rows: the rows that the samples were written for.
            samples: what `write` or an earlier correction returned for them.
            stream: as given to `write`.
            numbers: of the corrections, from 1; they name random streams.
            greedy: whether the teacher's token is its likeliest one, and not drawn.
        """
        ...

    def with_rollout_data(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples with the divergence's rollout data of each token as an extra (`distill.data.encode.ROLLOUT`).

        If the divergence reads no rollout data, the samples are returned unchanged.

        Args:
            samples: the samples of a whole rollout, those of all processes.
        """
        ...

    def for_step(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples with the rollout data that the divergence reads in this step (`Divergence.step_data`).

        Args:
            samples: the samples of a step's global batch, those of all processes.
        """
        ...

    def gather(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples of all processes, in an order that does not depend on the number of processes."""
        ...


class Sampler:
    """Decides which samples a step trains on.

    Subclasses are dataclasses. The fields that their constructor takes are the sampler's parameters. Random choices are
    functions of seed and step (`Step.rng`), the same in every process. Everything else that changes during training is
    the sampler's `state`, which is saved with each checkpoint.

    Attributes:
        origin: who wrote the responses of the training rows: the data set or the teacher.
        writes: whether the student generates text during training.
        max_new_tokens: the most tokens of a generated text.
        reads_data: whether the data set's own responses are trained on.
        asks_teacher: whether the teacher answers the training prompts before the training (`distill.pipeline.stages`).
        needs_reference: whether the sampler needs a validation before the first step.
    """

    origin: Origin = "dataset"
    writes = False
    max_new_tokens: int = 0
    reads_data = True
    asks_teacher = False
    needs_reference = False

    def prepare(self, rows: Sequence[Encoded], global_batch_size: int) -> None:
        """Receive the training rows before the first step.

        Raises:
            ValueError: the sampler does not work with this global batch size.
        """

    @property
    def holds(self) -> int:
        """The largest number of generated texts that may be trained on again in a later step."""
        return 0

    def idle(self) -> set[str]:
        """The names of parameters that have no effect with the values of the others."""
        return set()

    def next(self, rows: Sequence[Encoded], step: Step, writer: Writer) -> list[Sample]:
        """The samples that this process trains on at a step: as many as `rows`, or fewer.

        The base class returns the rows unchanged.

        Args:
            rows: this process's share of the data set's next global batch. With several processes it may contain filler
                rows, which have no response.
            step: the training step.
            writer: generates responses with the student.
        """
        return [Sample(row, step=step.number, origin=self.origin) for row in rows]

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Receive the metrics of a validation: `eval_loss` (the objective) and `eval_ce`."""

    def held(self) -> list[Sample]:
        """The generated texts that may be trained on again in a later step."""
        return []

    def log_values(self) -> dict[str, float]:
        """Values to log, by column of the training's curve."""
        return {}

    def state(self) -> dict[str, Any]:
        """Everything that changes during training, as plain values and tensors."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""


@dataclass
class StudentText(Sampler):
    """Base class of samplers for which the student generates text.

    Attributes:
        max_new_tokens: the most tokens of a text; a longer one is cut.
        temperature, top_p, top_k: of sampling. The divergence has its own temperature.
        labels: `shifted`: targets are at the right positions; `late`: they are one position too late, as in DistiLLM's
            and ABKD's code, so that the divergence misses each response's first token.
        eos: `kept`, or as in their code `erased`: removed if EOS is also the pad token.
        scrg: correction of each text by the teacher (MGSR).
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    labels: str = field(default="shifted", metadata=SWITCH)
    eos: str = field(default="kept", metadata=SWITCH)
    scrg: Scrg = Scrg()

    writes = True

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature <= 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens} must be at least 1, temperature={self.temperature} larger than"
                f" 0, top_p={self.top_p} in (0, 1] and top_k={self.top_k} 0 (off) or more"
            )
        one_of(self, labels=("shifted", "late"), eos=("kept", "erased"))

    def idle(self) -> set[str]:
        """See the base class."""
        return set() if self.scrg.corrections else {"scrg"}

    def fresh(self, rows: Sequence[Encoded], step: Step, writer: Writer) -> list[Sample]:
        """The student's responses to the prompts of the rows, generated and corrected now."""
        stream = f"step {step.number}"
        samples = writer.write(rows, stream, step.number)
        if self.scrg.corrections:
            numbers, greedy = range(1, self.scrg.corrections + 1), self.scrg.teacher == "greedy"
            samples = writer.correct(rows, samples, stream, numbers, greedy)
        return samples


@dataclass
class Replaying(StudentText):
    """Base class of samplers with a replay buffer of the student's texts.

    Attributes:
        capacity: the most texts in the buffer; the oldest are removed first.
        buffer: the texts, oldest first; the same in every process.
        now: the number of the current step.
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
        """Add the samples that all processes have generated to the buffer, and return those of this process."""
        texts = [sample for sample in writer.gather(written) if sample.origin == "student"]
        self.buffer = [*self.buffer, *texts][-self.capacity :]
        return written

    def replayed(self, step: Step, writer: Writer) -> list[Sample]:
        """This process's share of a random draw from the buffer, without repetition if the buffer has enough texts."""
        drawn = step.rng("replay").choice(len(self.buffer), step.rows, replace=step.rows > len(self.buffer))
        return [replace(self.buffer[i], origin="replay") for i in drawn[writer.rank :: writer.processes]]

    def held(self) -> list[Sample]:
        """See the base class."""
        return self.buffer

    def log_values(self) -> dict[str, float]:
        """The number of texts in the buffer and their mean age in steps."""
        ages = [self.now - sample.step for sample in self.buffer]
        return {"buffer": float(len(ages)), "buffer_age": sum(ages) / len(ages) if ages else 0.0}

    def state(self) -> dict[str, Any]:
        """See the base class."""
        return {"buffer": [sample.state() for sample in self.buffer]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See the base class."""
        self.buffer = [Sample.of(sample) for sample in state["buffer"]]


_REGISTRY: Registry[Sampler] = SAMPLERS
register, names, find = _REGISTRY.register, _REGISTRY.names, _REGISTRY.find
build, defaults, switches = _REGISTRY.build, _REGISTRY.defaults, _REGISTRY.switches
