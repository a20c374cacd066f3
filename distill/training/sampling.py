"""A sampler at work in training: what it gives each step, how long that takes, and what of it is logged."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate.utils import broadcast_object_list

from distill.data.encode import FILLER, Encoded
from distill.samplers import Sample, Sampler, Step
from distill.training.writer import StudentWriter

OWN = ("student", "replay", "mixed")  # origins of text that the student wrote, alone or with the teacher
# Columns of a curve: shares of the step's rows that the student wrote, and that it wrote at an earlier step; the
# buffer's texts and their mean age in steps; the adaptive threshold; of what this process wrote in this step the mean
# length in tokens and the share that EOS ended; seconds of writing and of learning
LOG_COLUMNS = ("student_share", "replay_share", "buffer", "buffer_age", "threshold", "response_length", "eos_rate",
               "seconds_writing", "seconds_learning")  # fmt: skip


class Sampling:
    """A sampler with the student as it writes."""

    def __init__(self, sampler: Sampler, writer: StudentWriter):
        self.sampler, self.writer = sampler, writer
        self._values: dict[str, float] = {}
        self.written: dict[str, int] = {"texts": 0, "tokens": 0, "cut": 0}  # by this process, since the start
        self._learning_since = 0.0

    def next(self, rows: Sequence[Encoded], step: Step) -> list[Sample]:
        """What this process trains on at a step."""
        started = time.perf_counter()
        samples = self.sampler.next(rows, step, self.writer)
        samples += [Sample(FILLER)] * (len(rows) - len(samples))
        self.writer.teacher.hold({sample.row.id for sample in self.sampler.held()})
        now = self._learning_since = time.perf_counter()
        count = len(samples)
        self._values = {
            "student_share": sum(s.origin in OWN for s in samples) / count,
            "replay_share": sum(s.origin == "replay" or (s.origin in OWN and s.step < step.number) for s in samples)
            / count,
            **self.sampler.log_values(),
            "seconds_writing": now - started,
        }
        if fresh := self.writer.taken():
            lengths = [len(one.row.response) for one in fresh]
            ended = sum(one.ended for one in fresh)
            self._values |= {"response_length": sum(lengths) / len(fresh), "eos_rate": 100 * ended / len(fresh)}
            for name, more in zip(self.written, (len(fresh), sum(lengths), len(fresh) - ended), strict=True):
                self.written[name] += more
        return samples

    def log_values(self) -> dict[str, float]:
        """The step's values by column (`LOG_COLUMNS`), to be logged when it has been learned from."""
        return {**self._values, "seconds_learning": time.perf_counter() - self._learning_since}

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Let the sampler take note of a validation, as the first process saw it: the others must decide alike."""
        seen = [{name: metrics[name] for name in ("eval_loss", "eval_ce")}]
        if self.writer.processes > 1:
            broadcast_object_list(seen, from_process=0)
        self.sampler.observe(seen[0])

    def state(self) -> dict[str, Any]:
        """The sampler's state, what was written, and what the teacher remembers: read again in other company its hidden
        states would be rounded otherwise. Of several processes the first one's memory is kept."""
        return {"sampler": self.sampler.state(), "written": self.written, "teacher": self.writer.teacher.remembered}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Know again what `state` gave."""
        self.sampler.restore(state["sampler"])
        self.written, self.writer.teacher.remembered = dict(state["written"]), dict(state["teacher"])
