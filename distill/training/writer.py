"""Generates the student's responses in training, with the engine of evaluation on the model that is being trained."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from distill.base.processes import rank, world_size
from distill.config.evaluation import EvalConfig
from distill.data.encode import IGNORE, LATE, ROLLOUT, STUDENT_TEXT, Collator, Encoded
from distill.generation.engine import generate
from distill.generation.reader import Mixture
from distill.generation.requests import Decoding, Request, Response, stream_name
from distill.losses import Divergence, Drawn, Head
from distill.losses.fused import chunk_size
from distill.losses.mixtures import log_mixture
from distill.models.load import last_hidden, output_head
from distill.samplers.base import Origin, Sample
from distill.teacher.signal import NewTextTeacher
from distill.training.correction import Correction, Error, errors

ROLLOUT_BATCH = 16  # rows of a forward pass that reads texts before they are trained on


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

    def _generate(self, requests: Sequence[Request], teacher_share: float = 0.0) -> list[Response]:
        settings, training = self.decode, self.student.training
        self.student.eval()
        model: Any = self._generating_model()
        if teacher_share:
            model = Mixture(model, self.teacher.live.model, teacher_share)
            halved = max(1, settings.batch_tokens // 2)  # each of the two models has a KV cache
            settings = settings.model_copy(update={"batch_tokens": halved})
        responses = generate(model, requests, Decoding(settings, self.eos_id, self.pad_id))
        self.student.train(training)
        return responses

    def correct(
        self, rows: Sequence[Encoded], samples: Sequence[Sample], stream: str, number: int, greedy: bool
    ) -> list[Sample]:
        """See `distill.samplers.Writer`."""
        written = [(row, sample) for row, sample in zip(rows, samples, strict=True) if row.response]
        names = [stream_name(self.seed, f"train {stream} teacher {number}", row.id) for row, _ in written]
        plain = [self._plain(sample) for _, sample in written]
        found = self._errors(plain, names, greedy)
        requests = []
        for (row, _), text, error in zip(written, plain, found, strict=True):
            if error is not None and error.token != self.eos_id:
                beginning = [*text.response[: error.place], error.token]
                room = self._request(row, stream).room - len(beginning)
                name = stream_name(self.seed, f"train {stream} correction {number}", row.id)
                requests.append(Request(row.id, row.prompt, name, max(0, room), beginning))
        eos = [self.eos_id]
        responses, corrected = iter(zip(requests, self._generate(requests), strict=True)), {}
        for (row, sample), text, error in zip(written, plain, found, strict=True):
            if error is None:
                self._corrections.append(None)
                continue
            before = text.response[: error.place]
            if error.token == self.eos_id:
                response = Response(before, ended=True)
            else:
                request, rest = next(responses)
                response = Response([*request.beginning, *rest.tokens], rest.ended)
            new = self._row(row, response, f"{stream} correction {number}")
            corrected_tokens = [*response.tokens, *eos[: response.ended]]
            self._corrections.append(Correction.of(error, text.response, corrected_tokens))
            corrected[id(sample)] = replace(sample, row=new, ended=response.ended)
        self._fresh = [corrected.get(id(sample), sample) for sample in self._fresh]
        return [corrected.get(id(sample), sample) for sample in samples]

    def _plain(self, sample: Sample) -> Encoded:
        """A text as it was written: targets shifted, EOS in place. Quirks of published code change both."""
        response = [*sample.row.response, *([self.eos_id] if self.erased is not None and sample.ended else [])]
        extras = {name: value for name, value in sample.row.extras.items() if name != LATE}
        return replace(sample.row, response=response, extras=extras)

    def _errors(self, texts: Sequence[Encoded], names: Sequence[str], greedy: bool) -> list[Error | None]:
        """The place of each text to correct, with the teacher's token, from the current weights."""
        result: list[Error | None] = []
        for begin in range(0, len(texts), ROLLOUT_BATCH):  # bounds the memory; a text's error is its own
            part = slice(begin, begin + ROLLOUT_BATCH)
            valid, labels, hidden, heads = self._read_both(texts[part])
            result += errors(hidden, heads, labels[valid], valid.sum(1).tolist(), names[part], greedy)
        return result

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
        batches = [share[i : i + ROLLOUT_BATCH] for i in range(0, len(share), ROLLOUT_BATCH)]
        by_process = self._gathered([self._drawn(batch) for batch in batches])
        drawn: list[Any] = [None] * len(samples)
        for process, of_batches in enumerate(by_process):
            drawn[process :: self.processes] = [of_sample for of_batch in of_batches for of_sample in of_batch]
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
