"""Connects a sampler to the training: gets the samples of each step, measures the time, and gives values to log."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate.utils import broadcast_object_list

from distill.data.encode import FILLER, Encoded
from distill.samplers import Sample, Sampler, Step
from distill.training.writer import StudentWriter

WRITTEN = ("student", "replay", "mixed")  # origins of texts that the student wrote, alone or with the teacher
# Columns of a curve. student_share: the share of the step's rows that the student wrote; replay_share: that it wrote at
# an earlier step. buffer, buffer_age: the number of texts in the buffer, and their mean age in steps. threshold: of the
# adaptive sampler. response_length, eos_rate: the mean number of tokens of the responses that this process wrote in
# this step, and the percentage that EOS ended. seconds_writing, seconds_learning: of generation, and of the rest of the
# step.
LOG_COLUMNS = ("student_share", "replay_share", "buffer", "buffer_age", "threshold", "response_length", "eos_rate",
               "seconds_writing", "seconds_learning")  # fmt: skip
# Further ones where the teacher corrects texts. corrected: the share of this process's texts of this step in which a
# correction found an error; means over the errors, error_place: where, as a share of the text's length; error_kl:
# KL(student || teacher) there; error_changed: the share of the text's tokens that became others.
CORRECTION_COLUMNS = ("corrected", "error_place", "error_kl", "error_changed")


class Sampling:
    """A sampler together with the writer that generates the student's responses.

    Attributes:
        written: the number of texts, their tokens, and the texts cut by the length limit, that this process has written
            since the start of the training.
    """

    def __init__(self, sampler: Sampler, writer: StudentWriter):
        self.sampler, self.writer = sampler, writer
        self._values: dict[str, float] = {}
        self.written: dict[str, int] = {"texts": 0, "tokens": 0, "cut": 0}
        self._learning_since = 0.0

    def next(self, rows: Sequence[Encoded], step: Step) -> list[Sample]:
        """The samples that this process trains on at a step, as many as `rows`; fillers make up the number."""
        started = time.perf_counter()
        self.writer.teacher.computed.clear()
        samples = self.sampler.next(rows, step, self.writer)
        samples += [Sample(FILLER)] * (len(rows) - len(samples))
        self.writer.teacher.hold({sample.row.id for sample in self.sampler.held()})
        now = self._learning_since = time.perf_counter()
        count = len(samples)
        self._values = {
            "student_share": sum(s.origin in WRITTEN for s in samples) / count,
            "replay_share": sum(s.origin == "replay" or (s.origin in WRITTEN and s.step < step.number) for s in samples)
            / count,
            **self.sampler.log_values(),
            "seconds_writing": now - started,
        }
        if fresh := self.writer.taken():
            lengths = [len(sample.row.response) for sample in fresh]
            ended = sum(sample.ended for sample in fresh)
            self._values |= {"response_length": sum(lengths) / len(fresh), "eos_rate": 100 * ended / len(fresh)}
            for name, more in zip(self.written, (len(fresh), sum(lengths), len(fresh) - ended), strict=True):
                self.written[name] += more
        if of_texts := self.writer.taken_corrections():
            made = [c for of_text in of_texts for c in of_text if c is not None]
            self._values["corrected"] = sum(any(of_text) for of_text in of_texts) / len(of_texts)
            for name in ("place", "kl", "changed") if made else ():
                self._values[f"error_{name}"] = sum(getattr(c, name) for c in made) / len(made)
        return samples

    def log_values(self) -> dict[str, float]:
        """The values of the current step by column (`LOG_COLUMNS`). Call it at the end of the step."""
        return {**self._values, "seconds_learning": time.perf_counter() - self._learning_since}

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Give the sampler the main process's validation metrics, so that all processes decide alike."""
        watched = [{name: metrics[name] for name in ("eval_loss", "eval_ce")}]
        if self.writer.processes > 1:
            broadcast_object_list(watched, from_process=0)
        self.sampler.observe(watched[0])

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold: the sampler's state, the numbers of written texts, and remembered hidden states.

        The teacher's remembered hidden states are included because a second forward pass, in a batch with other rows,
        would round them differently. Only the main process saves a checkpoint, so it holds those of that process.
        """
        return {"sampler": self.sampler.state(), "written": self.written, "teacher": self.writer.teacher.remembered}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.sampler.restore(state["sampler"])
        self.written, self.writer.teacher.remembered = dict(state["written"]), dict(state["teacher"])
