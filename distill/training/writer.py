"""Generates the student's responses in training, with the engine of evaluation on the model that is being trained."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from distill.base.processes import rank, world_size
from distill.config.evaluation import EvalConfig
from distill.data.encode import IGNORE, LATE, ROLLOUT, STUDENT_TEXT, Collator, Encoded
from distill.generation.engine import generate
from distill.generation.known import Known, read, similar_lengths
from distill.generation.reader import Mixture
from distill.generation.requests import Decoding, Request, Response, stream_name
from distill.losses import Divergence, Drawn, Head
from distill.losses.fused import chunk_size
from distill.losses.mixtures import log_mixture
from distill.models.load import last_hidden, output_head
from distill.samplers.base import Origin, Sample
from distill.teacher.signal import NewTextTeacher
from distill.training.correction import Correction, errors


@dataclass
class StudentWriter:
    """Generates responses with the student; each response has its own random stream.

    A response depends on the student's weights, the prompt, the training seed and the step, not on the batch or on the
    number of processes.

    Attributes:
        student: the model in training. It is in eval mode while it generates.
        teacher: the second model of a mixture. It also computes the log-probabilities of the rollout data.
        divergence: the divergence that the responses are for. A policy gradient needs the log-probabilities that their
            tokens were drawn with.
        decode: sampling settings, the most new tokens, and `batch_tokens`, which bounds the memory.
        seed: the training seed.
        eos_id: the token that ends a response.
        pad_id: the token that fills shorter rows of a batch.
        max_length: the most tokens of prompt and response together; a response that reaches it is cut.
        late: whether targets are one position too late (a quirk of published code).
        erased: a token that is removed from prompts and responses (a quirk of published code: EOS, if it is also the
            pad token).
        vocabulary: the number of ids that are written, see `Decoding`.
        dtype: the dtype of evaluation. Weights of another dtype are rounded to it for generation.
        rank: this process's rank in the distributed run.
        processes: the number of processes.
    """

    student: Any
    teacher: NewTextTeacher
    divergence: Divergence
    decode: EvalConfig
    seed: int
    eos_id: int
    pad_id: int
    max_length: int
    vocabulary: int | None = None
    late: bool = False
    erased: int | None = None
    dtype: torch.dtype = torch.float32
    rank: int = field(default_factory=rank)
    processes: int = field(default_factory=world_size)
    _fresh: list[Sample] = field(default_factory=list, init=False)
    _corrections: list[Correction | None] = field(default_factory=list, init=False)

    def write(self, rows: Sequence[Encoded], stream: str, step: int, teacher_share: float = 0.0) -> list[Sample]:
        """See `distill.samplers.Writer`."""
        responses = iter(self._generate([self._request(row, stream) for row in rows if row.response], teacher_share))
        origin: Origin = "mixed" if teacher_share else "student"
        samples = []
        for row in rows:
            if not row.response:  # a filler row
                samples.append(Sample(row, step=step))
                continue
            response = next(responses)
            samples.append(Sample(self._row(row, response, stream), response.ended, step, teacher_share, origin))
        self._fresh += [sample for sample in samples if sample.origin == origin]
        return samples

    def _generate(self, requests: Sequence[Request], teacher_share: float = 0.0, model: Any = None) -> list[Response]:
        settings, training = self.decode, self.student.training
        self.student.eval()
        model = self._generating_model() if model is None else model
        if teacher_share:
            model = Mixture(model, self.teacher.live.model, teacher_share)
            halved = max(1, settings.batch_tokens // 2)  # each of the two models has a KV cache
            settings = settings.model_copy(update={"batch_tokens": halved})
        responses = generate(model, requests, Decoding(settings, self.eos_id, self.pad_id, self.vocabulary))
        self.student.train(training)
        return responses

    def correct(
        self, rows: Sequence[Encoded], samples: Sequence[Sample], stream: str, number: int, greedy: bool
    ) -> list[Sample]:
        """See `distill.samplers.Writer`."""
        written = [(row, sample) for row, sample in zip(rows, samples, strict=True) if row.response]
        corrected: dict[int, Sample] = {}
        for part in self._cached_together([sample for _, sample in written]):
            corrected |= self._corrected(written[part], stream, number, greedy)
        self._fresh = [corrected.get(id(sample), sample) for sample in self._fresh]
        return [corrected.get(id(sample), sample) for sample in samples]

    def _cached_together(self, samples: Sequence[Sample]) -> Iterator[slice]:
        """Parts of the samples whose texts have at most `batch_tokens` tokens: both models' KV caches are kept."""
        start = tokens = 0
        for i, sample in enumerate(samples):
            length = len(sample.row.prompt) + len(sample.row.response)
            if i > start and tokens + length > self.decode.batch_tokens:
                yield slice(start, i)
                start, tokens = i, 0
            tokens += length
        if start < len(samples):
            yield slice(start, len(samples))

    def _corrected(
        self, written: Sequence[tuple[Encoded, Sample]], stream: str, number: int, greedy: bool
    ) -> dict[int, Sample]:
        """The new sample of each text that the teacher corrects, by the `id` of the old one.

        Both models read each text once; what they have read of it before the error they do not read again. The
        teacher's hidden states of the new texts are kept for the step (`NewTextTeacher.computed`).
        """
        texts = [self._as_written(sample) for _, sample in written]
        prompts = [row.prompt for row, _ in written]
        before = [[*prompt, *text[:-1]] for prompt, text in zip(prompts, texts, strict=True)]
        training, model, teacher = self.student.training, self._generating_model(), self.teacher.live.model
        self.student.eval()
        by_student, by_teacher = (read(m, before, self.pad_id) for m in (model, teacher))
        self.student.train(training)
        at_response = [
            [hidden[-len(text) :] for (hidden, _), text in zip(of_model, texts, strict=True)]
            for of_model in (by_student, by_teacher)
        ]
        text_errors = errors(
            (torch.cat(at_response[0]), torch.cat(at_response[1])),
            (output_head(model), output_head(teacher)),
            torch.tensor([token for text in texts for token in text]),
            [len(text) for text in texts],
            [stream_name(self.seed, f"train {stream} teacher {number}", row.id) for row, _ in written],
            greedy,
            self.vocabulary,
        )
        requests = []
        for (row, _), text, error, (_, known) in zip(written, texts, text_errors, by_student, strict=True):
            if error is not None and error.token != self.eos_id:
                beginning = [*text[: error.place], error.token]
                room = max(0, self._request(row, stream).room - len(beginning))
                name = stream_name(self.seed, f"train {stream} correction {number}", row.id)
                of_prefix = known.first(len(row.prompt) + error.place)
                requests.append(Request(row.id, row.prompt, name, room, beginning, of_prefix))
        responses = iter(zip(requests, self._generate(requests, model=model), strict=True))
        corrected, after = {}, []
        for (row, sample), text, error in zip(written, texts, text_errors, strict=True):
            if error is None:
                self._corrections.append(None)
                after.append((sample, text, len(text)))
                continue
            response = Response(text[: error.place], ended=True)
            if error.token != self.eos_id:
                request, rest = next(responses)
                response = Response([*request.beginning, *rest.tokens], rest.ended)
            new_text = [*response.tokens, *([self.eos_id] if response.ended else [])]
            self._corrections.append(Correction.of(error, text, new_text))
            new_row = self._row(row, response, f"{stream} correction {number}")
            new = replace(sample, row=new_row, ended=response.ended)
            corrected[id(sample)] = new
            after.append((new, new_text, error.place))
        if self.erased is None and not self.late:  # the row that is trained on is the text that was read
            self._compute(after, at_response[1], [known for _, known in by_teacher], prompts)
        return corrected

    def _compute(
        self,
        texts: Sequence[tuple[Sample, list[int], int]],
        hidden: Sequence[Tensor],
        known: Sequence[Known],
        prompts: Sequence[Sequence[int]],
    ) -> None:
        """Compute the teacher's hidden states of texts whose beginning it has read.

        Args:
            texts: each sample with its response, and the number of its first tokens that were read.
            hidden: of each text `[n, d]` at the positions of the response that was read.
            known: the keys and values of what was read.
            prompts: the texts' prompts.
        """
        new = [i for i, (_, text, place) in enumerate(texts) if place < len(text) - 1]
        to_read = [texts[i][1][texts[i][2] : -1] for i in new]
        before = [known[i].first(len(prompts[i]) + texts[i][2]) for i in new]
        results = read(self.teacher.live.model, to_read, self.pad_id, before)
        read_on = {i: hidden_of_new for i, (hidden_of_new, _) in zip(new, results, strict=True)}
        for i, (sample, _, place) in enumerate(texts):
            parts = [hidden[i][: place + 1], *([read_on[i]] if i in read_on else [])]
            self.teacher.computed[sample.row.id] = torch.cat(parts)

    def _as_written(self, sample: Sample) -> list[int]:
        """A text's tokens as they were written. A quirk of published code erases EOS."""
        return [*sample.row.response, *([self.eos_id] if self.erased is not None and sample.ended else [])]

    def taken(self) -> list[Sample]:
        """The samples that this process has written since the last call."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def taken_corrections(self) -> list[Correction | None]:
        """The corrections of this process's texts since the last call; None where there was no error."""
        corrections, self._corrections = self._corrections, []
        return corrections

    def _request(self, row: Encoded, stream: str) -> Request:
        """The request for a response to a row's prompt.

        A response that EOS ends has, EOS included, at most `room` tokens, so it fits into `max_length`. Others are cut.
        """
        room = min(self.decode.max_new_tokens, max(0, self.max_length - len(row.prompt)))
        return Request(row.id, row.prompt, stream_name(self.seed, f"train {stream}", row.id), room)

    def _row(self, row: Encoded, response: Response, stream: str) -> Encoded:
        """The training row with a row's prompt and a response."""
        prompt, tokens = row.prompt, [*response.tokens, *([self.eos_id] if response.ended else [])]
        if self.erased is not None:
            prompt, tokens = ([t for t in ids if t != self.erased] for ids in (prompt, tokens))
        extras = {STUDENT_TEXT: True, **({LATE: True} if self.late else {})}
        return Encoded(f"{row.id}@{stream}", prompt, tokens, extras)

    def _generating_model(self) -> Any:
        """The student, or a copy of it rounded to the dtype of evaluation, which generates faster."""
        if self.dtype == torch.float32:
            return self.student
        with torch.no_grad():
            for rounded, trained in zip(self._rounded.parameters(), self.student.parameters(), strict=True):
                if trained.requires_grad:
                    rounded.copy_(trained)
        return self._rounded

    @cached_property
    def _rounded(self) -> Any:
        """A copy of the student whose parameters are rounded to `dtype`.

        Buffers, such as the rotary frequencies, stay in fp32, as they do when a model is loaded in `dtype`.
        """
        rounded = {id(p): nn.Parameter(p.detach().to(self.dtype), False) for p in self.student.parameters()}
        return copy.deepcopy(self.student, rounded)

    def with_rollout_data(self, samples: Sequence[Sample]) -> list[Sample]:
        """See `distill.samplers.Writer`. The log-probabilities are computed with the student's current weights."""
        if not self.divergence.reads_rollout:
            return list(samples)
        self.teacher.hold({sample.row.id for sample in samples})
        share = list(samples[self.rank :: self.processes])
        of_share: list[Any] = [None] * len(share)
        for part in similar_lengths([len(sample.row.prompt) + len(sample.row.response) for sample in share]):
            for i, of_sample in zip(part, self._drawn([share[i] for i in part]), strict=True):
                of_share[i] = of_sample
        drawn: list[Any] = [None] * len(samples)
        for process, of_process in enumerate(self._gathered(of_share)):
            drawn[process :: self.processes] = of_process
        data = self.divergence.rollout_data(drawn)
        return [_with_data(sample, tokens) for sample, tokens in zip(samples, data, strict=True)]

    def for_step(self, samples: Sequence[Sample]) -> list[Sample]:
        """See `distill.samplers.Writer`."""
        if not self.divergence.reads_rollout:
            return list(samples)
        data = [sample.row.extras[ROLLOUT] for sample in samples]
        of_step = self.divergence.step_data(data, self.decode.max_new_tokens)
        return [_with_data(sample, tokens) for sample, tokens in zip(samples, of_step, strict=True)]

    @torch.no_grad()
    def _drawn(self, samples: Sequence[Sample]) -> list[Drawn]:
        """The log-probabilities of each sample's response tokens, on the CPU."""
        valid, labels, both, heads = self._read_both([sample.row for sample in samples])
        width = min(head.weight.shape[0] for head in heads)  # the divergence cuts both vocabularies to this width, too
        q, p = (_log_probs(head, hidden, labels[valid], width) for head, hidden in zip(heads, both, strict=True))
        share = samples[0].teacher_share
        m = log_mixture(p, q, share) if share else q
        lengths = valid.sum(1).tolist()
        return [Drawn(*parts) for parts in zip(*(x.cpu().split(lengths) for x in (q, p, m)), strict=True)]

    @torch.no_grad()
    def _read_both(self, rows: Sequence[Encoded]) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], tuple[Head, Head]]:
        """What student and teacher make of texts, in the precision of training.

        Returns:
            A mask `[B, T]` of the response positions, the labels `[B, T]`, last hidden states `[N, d]` of student and
            teacher, and their heads.
        """
        device, training = self.student.device, self.student.training
        inputs = Collator(self.pad_id)(rows)
        ids, mask, labels = (inputs[k].to(device) for k in ("input_ids", "attention_mask", "labels"))
        valid = labels != IGNORE
        self.student.eval()
        with torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
            student_hidden = last_hidden(self.student, ids, mask)[valid]
        self.student.train(training)
        teacher_hidden = self.teacher(ids, mask, valid, inputs["example_ids"])
        heads = output_head(self.student).to(self.dtype), self.teacher.head
        hidden = student_hidden.to(heads[0].weight.dtype), teacher_hidden.to(heads[1].weight.dtype)
        return valid, labels, hidden, heads

    def gather(self, samples: Sequence[Sample]) -> list[Sample]:
        """See `distill.samplers.Writer`."""
        gathered = [sample for of_process in self._gathered(list(samples)) for sample in of_process]
        return sorted(gathered, key=lambda sample: sample.row.id)

    def _gathered(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of their ranks."""
        if self.processes == 1:
            return [value]
        values: list[Any] = [None] * self.processes
        torch.distributed.all_gather_object(values, value)
        return values


def _with_data(sample: Sample, data: Tensor) -> Sample:
    """The sample with rollout data of its tokens `[n, k]`."""
    return replace(sample, row=replace(sample.row, extras={**sample.row.extras, ROLLOUT: data}))


def _log_probs(head: Head, hidden: Tensor, targets: Tensor, width: int) -> Tensor:
    """Log-probabilities `[n]` of the targets in fp32, from hidden states `[n, d]` and the first `width` classes."""
    chunks = [hidden.new_zeros(0, dtype=torch.float32)]
    step = chunk_size(head.weight.shape[0], hidden.device)
    for start in range(0, len(targets), step):
        logits = head(hidden[start : start + step])[:, :width]
        chunks.append(logits.log_softmax(-1).gather(-1, targets[start : start + step, None]).squeeze(-1))
    return torch.cat(chunks)
