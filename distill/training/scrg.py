"""SCRG (MGSR 4.1): the teacher corrects a student's text at one token, and the student writes on from there.

Each model reads a text once; after a correction it goes on from the keys and values of the tokens before the error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from distill.data.encode import Encoded
from distill.generation.known import Known, Reading, read
from distill.generation.requests import Request, Response, stream_name
from distill.models.load import in_eval_mode, output_head
from distill.samplers.base import Sample
from distill.training.correction import Correction, Error, errors

if TYPE_CHECKING:
    from distill.training.writer import StudentWriter


@dataclass(frozen=True)
class Text:
    """A text of the student.

    Attributes:
        row: the row that it was written for.
        sample: the training sample.
        tokens: the response as it was written, EOS included. Quirks of published code change the sample's.
        same: how many of its first tokens are those of before its correction.
        corrections: what each correction did so far; None where there was no error.
    """

    row: Encoded
    sample: Sample
    tokens: list[int]
    same: int = 0
    corrections: tuple[Correction | None, ...] = ()


class Corrector:
    """Corrects the texts of a `StudentWriter`.

    Args:
        writer: generates, and has both models.

    Attributes:
        log: what each correction of each text did since the last call of `taken`.
    """

    def __init__(self, writer: StudentWriter):
        self.writer = writer
        self.log: list[tuple[Correction | None, ...]] = []

    def taken(self) -> list[tuple[Correction | None, ...]]:
        """The log since the last call: of each text all its corrections, None where there was no error."""
        log, self.log = self.log, []
        return log

    def correct(
        self, written: Sequence[tuple[Encoded, Sample]], stream: str, numbers: Sequence[int], greedy: bool
    ) -> list[Sample]:
        """The samples after all corrections; a sample without an error is returned as it is.

        The teacher's hidden states of the texts are left for the training step (`NewTextTeacher.computed`).

        Args:
            written: rows with the samples that were written for them.
            stream, numbers, greedy: see `distill.samplers.Writer.correct`.
        """
        model, teacher = self.writer.generating_model(), self.writer.teacher
        samples: list[Sample] = []
        for part in self._cached_together([row for row, _ in written]):
            texts = [Text(row, sample, self._as_written(sample)) for row, sample in written[part]]
            by_student, by_teacher = (self._read(m, texts) for m in (model, teacher.live.model))
            for number in numbers:
                text_errors = self._errors(texts, by_student, by_teacher, model, stream, number, greedy)
                corrected = self._corrected(texts, by_student, text_errors, model, stream, number)
                # Nobody reads the student's keys and values after the last correction
                by_student = self._read_on(model, corrected, by_student) if number != numbers[-1] else []
                by_teacher = self._read_on(teacher.live.model, corrected, by_teacher)
                texts = corrected
            samples += [text.sample for text in texts]
            self.log += [text.corrections for text in texts]
            if self.writer.erased is None and not self.writer.late:  # the row is the text that was read
                for text, (hidden, _) in zip(texts, by_teacher, strict=True):
                    teacher.computed[text.sample.row.id] = hidden.clone()  # not a view of a whole batch
        return samples

    def _cached_together(self, rows: Sequence[Encoded]) -> Iterator[slice]:
        """Parts of the rows whose texts have at most `batch_tokens` tokens: both models' KV caches are in memory."""
        start = tokens = 0
        for i, row in enumerate(rows):
            length = len(row.prompt) + self.writer.request(row, "").room  # a correction may make it longer
            if i > start and tokens + length > self.writer.decode.batch_tokens:
                yield slice(start, i)
                start, tokens = i, 0
            tokens += length
        if start < len(rows):
            yield slice(start, len(rows))

    def _read(self, model: Any, texts: Sequence[Text]) -> list[Reading]:
        """A model's readings: hidden states `[n, d]` that predict n tokens, keys and values of all before the last."""
        before = [[*text.row.prompt, *text.tokens[:-1]] for text in texts]
        with in_eval_mode(model):
            readings = read(model, before, self.writer.pad_id)
        return [(hidden[-len(text.tokens) :], known) for text, (hidden, known) in zip(texts, readings, strict=True)]

    def _as_written(self, sample: Sample) -> list[int]:
        """A text's tokens as they were written. A quirk of published code erases EOS."""
        ended = self.writer.erased is not None and sample.ended
        return [*sample.row.response, *([self.writer.eos_id] if ended else [])]

    def _errors(
        self,
        texts: Sequence[Text],
        by_student: Sequence[Reading],
        by_teacher: Sequence[Reading],
        model: Any,
        stream: str,
        number: int,
        greedy: bool,
    ) -> list[Error | None]:
        writer = self.writer
        return errors(
            (torch.cat([hidden for hidden, _ in by_student]), torch.cat([hidden for hidden, _ in by_teacher])),
            (output_head(model), output_head(writer.teacher.live.model)),
            torch.tensor([token for text in texts for token in text.tokens]),
            [len(text.tokens) for text in texts],
            [stream_name(writer.seed, f"train {stream} teacher {number}", text.row.id) for text in texts],
            greedy,
            writer.vocabulary,
        )

    def _corrected(
        self,
        texts: Sequence[Text],
        by_student: Sequence[Reading],
        text_errors: Sequence[Error | None],
        model: Any,
        stream: str,
        number: int,
    ) -> list[Text]:
        """Each text with the teacher's token in the place of its error and the student's tokens after it."""
        writer = self.writer
        requests = {
            i: self._request(text, error, known, stream, number)
            for i, (text, error, (_, known)) in enumerate(zip(texts, text_errors, by_student, strict=True))
            if error is not None and error.token != writer.eos_id
        }
        responses = dict(zip(requests, writer.generate([*requests.values()], model=model), strict=True))
        corrected = []
        for i, (text, error) in enumerate(zip(texts, text_errors, strict=True)):
            if error is None:
                corrected.append(replace(text, same=len(text.tokens), corrections=(*text.corrections, None)))
                continue
            response = Response(text.tokens[: error.place], ended=True)
            if i in requests:
                response = Response([*requests[i].beginning, *responses[i].tokens], responses[i].ended)
            tokens = [*response.tokens, *([writer.eos_id] if response.ended else [])]
            row = writer.row(text.row, response, f"{stream} correction {number}")
            sample = replace(text.sample, row=row, ended=response.ended)
            corrections = (*text.corrections, Correction.of(error, text.tokens, tokens))
            corrected.append(Text(text.row, sample, tokens, error.place, corrections))
        return corrected

    def _request(self, text: Text, error: Error, known: Known, stream: str, number: int) -> Request:
        """The request for the rest of a text, from the teacher's token on."""
        beginning = [*text.tokens[: error.place], error.token]
        room = max(0, self.writer.request(text.row, stream).room - len(beginning))
        name = stream_name(self.writer.seed, f"train {stream} correction {number}", text.row.id)
        before = known.first(len(text.row.prompt) + error.place)
        return Request(text.row.id, text.row.prompt, name, room, beginning, before)

    def _read_on(self, model: Any, texts: Sequence[Text], before: Sequence[Reading]) -> list[Reading]:
        """A model's readings of corrected texts, from its readings of the texts as they were before."""
        readings = []
        for text, (hidden, known) in zip(texts, before, strict=True):
            same = min(text.same, len(text.tokens) - 1)
            readings.append((hidden[: same + 1], known.first(len(text.row.prompt) + same)))
        new = [i for i, text in enumerate(texts) if text.same < len(text.tokens) - 1]
        to_read = [texts[i].tokens[texts[i].same : -1] for i in new]
        with in_eval_mode(model):
            of_new = read(model, to_read, self.writer.pad_id, [readings[i][1] for i in new])
        for i, (hidden, known) in zip(new, of_new, strict=True):
            readings[i] = torch.cat((readings[i][0], hidden)), known
        return readings
