"""SCRG (MGSR 4.1): the teacher corrects a student's text at one token, and the student writes on from there.

Each model reads a text once; after a correction it goes on from the keys and values of the tokens before the error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from distill.data.encode import Encoded
from distill.generation.known import Reading, read
from distill.generation.requests import Request, Response, stream_name
from distill.models.load import output_head
from distill.samplers.base import Sample
from distill.training.correction import Correction, Error, errors

if TYPE_CHECKING:
    from distill.training.writer import StudentWriter


@dataclass(frozen=True)
class Text:
    """A text of the student, with what both models have read of it.

    Attributes:
        row: the row that it was written for.
        sample: the training sample.
        tokens: the response as it was written, EOS included. Quirks of published code change the sample's.
        student: the student's hidden states `[n, d]` that predict the n tokens, and its keys and values of all tokens
            but the last.
        teacher: the teacher's.
    """

    row: Encoded
    sample: Sample
    tokens: list[int]
    student: Reading
    teacher: Reading


@dataclass(frozen=True)
class Change:
    """A text after a correction: its sample, its tokens, and how many of the first are those of before."""

    sample: Sample
    tokens: list[int]
    place: int


class Corrector:
    """Corrects the texts of a `StudentWriter`.

    Args:
        writer: generates, and has both models.

    Attributes:
        log: what each correction did since the last call of `taken`; None where there was no error.
    """

    def __init__(self, writer: StudentWriter):
        self.writer = writer
        self.log: list[Correction | None] = []

    def taken(self) -> list[Correction | None]:
        """The log since the last call."""
        log, self.log = self.log, []
        return log

    def correct(
        self, written: Sequence[tuple[Encoded, Sample]], stream: str, numbers: Sequence[int], greedy: bool
    ) -> list[Sample]:
        """The samples after all corrections; one in which no error was found is the given one.

        The teacher's hidden states of the texts are kept for the step (`NewTextTeacher.computed`).

        Args:
            written: rows with the samples that were written for them.
            stream, numbers, greedy: see `distill.samplers.Writer.correct`.
        """
        model, teacher = self.writer.generating_model(), self.writer.teacher
        samples: list[Sample] = []
        for part in self._cached_together([sample for _, sample in written]):
            texts = self._read(written[part], model)
            for number in numbers:
                found = self._errors(texts, model, stream, number, greedy)
                changes = self._changes(texts, found, model, stream, number)
                by_teacher = self._read_on(teacher.live.model, texts, [text.teacher for text in texts], changes)
                if number == numbers[-1]:
                    break
                by_student = self._read_on(model, texts, [text.student for text in texts], changes)
                texts = [
                    Text(text.row, change.sample, change.tokens, student, of_teacher)
                    for text, change, student, of_teacher in zip(texts, changes, by_student, by_teacher, strict=True)
                ]
            samples += [change.sample for change in changes]
            if self.writer.erased is None and not self.writer.late:  # the row is the text that was read
                for change, (hidden, _) in zip(changes, by_teacher, strict=True):
                    teacher.computed[change.sample.row.id] = hidden
        return samples

    def _cached_together(self, samples: Sequence[Sample]) -> Iterator[slice]:
        """Parts of the samples whose texts have at most `batch_tokens` tokens: both models' KV caches are kept."""
        start = tokens = 0
        for i, sample in enumerate(samples):
            length = len(sample.row.prompt) + len(sample.row.response)
            if i > start and tokens + length > self.writer.decode.batch_tokens:
                yield slice(start, i)
                start, tokens = i, 0
            tokens += length
        if start < len(samples):
            yield slice(start, len(samples))

    def _read(self, written: Sequence[tuple[Encoded, Sample]], model: Any) -> list[Text]:
        """The texts, read by both models."""
        writer = self.writer
        responses = [self._as_written(sample) for _, sample in written]
        before = [[*row.prompt, *tokens[:-1]] for (row, _), tokens in zip(written, responses, strict=True)]
        of_models = [
            [(hidden[-len(tokens) :], known) for tokens, (hidden, known) in zip(responses, of_model, strict=True)]
            for of_model in (self._in_eval_mode(m, before) for m in (model, writer.teacher.live.model))
        ]
        return [
            Text(row, sample, tokens, by_student, by_teacher)
            for (row, sample), tokens, by_student, by_teacher in zip(written, responses, *of_models, strict=True)
        ]

    def _as_written(self, sample: Sample) -> list[int]:
        """A text's tokens as they were written. A quirk of published code erases EOS."""
        ended = self.writer.erased is not None and sample.ended
        return [*sample.row.response, *([self.writer.eos_id] if ended else [])]

    def _in_eval_mode(self, model: Any, tokens: Sequence[Sequence[int]], known: Any = None) -> list[Reading]:
        training = model.training
        model.eval()
        readings = read(model, tokens, self.writer.pad_id, known)
        model.train(training)
        return readings

    def _errors(self, texts: Sequence[Text], model: Any, stream: str, number: int, greedy: bool) -> list[Error | None]:
        writer = self.writer
        return errors(
            (torch.cat([text.student[0] for text in texts]), torch.cat([text.teacher[0] for text in texts])),
            (output_head(model), output_head(writer.teacher.live.model)),
            torch.tensor([token for text in texts for token in text.tokens]),
            [len(text.tokens) for text in texts],
            [stream_name(writer.seed, f"train {stream} teacher {number}", text.row.id) for text in texts],
            greedy,
            writer.vocabulary,
        )

    def _changes(
        self, texts: Sequence[Text], found: Sequence[Error | None], model: Any, stream: str, number: int
    ) -> list[Change]:
        """Each text with the teacher's token in the place of its error and the student's tokens after it."""
        writer = self.writer
        requests = {
            i: self._request(text, error, stream, number)
            for i, (text, error) in enumerate(zip(texts, found, strict=True))
            if error is not None and error.token != writer.eos_id
        }
        responses = dict(zip(requests, writer.generate([*requests.values()], model=model), strict=True))
        changes = []
        for i, (text, error) in enumerate(zip(texts, found, strict=True)):
            if error is None:
                self.log.append(None)
                changes.append(Change(text.sample, text.tokens, len(text.tokens)))
                continue
            response = Response(text.tokens[: error.place], ended=True)
            if i in requests:
                response = Response([*requests[i].beginning, *responses[i].tokens], responses[i].ended)
            tokens = [*response.tokens, *([writer.eos_id] if response.ended else [])]
            self.log.append(Correction.of(error, text.tokens, tokens))
            row = writer.row(text.row, response, f"{stream} correction {number}")
            changes.append(Change(replace(text.sample, row=row, ended=response.ended), tokens, error.place))
        return changes

    def _request(self, text: Text, error: Error, stream: str, number: int) -> Request:
        """The request for the rest of a text, from the teacher's token on."""
        beginning = [*text.tokens[: error.place], error.token]
        room = max(0, self.writer.request(text.row, stream).room - len(beginning))
        name = stream_name(self.writer.seed, f"train {stream} correction {number}", text.row.id)
        known = text.student[1].first(len(text.row.prompt) + error.place)
        return Request(text.row.id, text.row.prompt, name, room, beginning, known)

    def _read_on(
        self, model: Any, texts: Sequence[Text], readings: Sequence[Reading], changes: Sequence[Change]
    ) -> list[Reading]:
        """A model's readings of the changed texts, from its readings of the texts as they were."""
        result = []
        for text, (hidden, known), change in zip(texts, readings, changes, strict=True):
            place = min(change.place, len(change.tokens) - 1)
            result.append((hidden[: place + 1], known.first(len(text.row.prompt) + place)))
        new = [i for i, change in enumerate(changes) if change.place < len(change.tokens) - 1]
        to_read = [changes[i].tokens[changes[i].place : -1] for i in new]
        of_new = self._in_eval_mode(model, to_read, [result[i][1] for i in new])
        for i, (hidden, known) in zip(new, of_new, strict=True):
            result[i] = torch.cat((result[i][0], hidden)), known
        return result
