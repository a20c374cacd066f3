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
from distill.generation.known import similar_lengths
from distill.generation.reader import Mixture
from distill.generation.requests import Decoding, Request, Response, stream_name
from distill.losses import Divergence, Drawn, Head
from distill.losses.logits import chunk_size
from distill.losses.mixtures import log_mixture
from distill.models.load import in_eval_mode, last_hidden, output_head
from distill.samplers.base import Origin, Sample
from distill.teacher.signal import NewTextTeacher
from distill.training.correction import Correction
from distill.training.scrg import Corrector


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

    def __post_init__(self) -> None:
        self._corrector = Corrector(self)

    def write(self, rows: Sequence[Encoded], stream: str, step: int, teacher_share: float = 0.0) -> list[Sample]:
        """See `distill.samplers.Writer`."""
        responses = iter(self.generate([self.request(row, stream) for row in rows if row.response], teacher_share))
        origin: Origin = "mixed" if teacher_share else "student"
        samples = []
        for row in rows:
            if not row.response:  # a filler row
                samples.append(Sample(row, step=step))
                continue
            response = next(responses)
            samples.append(Sample(self.row(row, response, stream), response.ended, step, teacher_share, origin))
        self._fresh += [sample for sample in samples if sample.origin == origin]
        return samples

    def generate(self, requests: Sequence[Request], teacher_share: float = 0.0, model: Any = None) -> list[Response]:
        """The student's responses.

        Args:
            requests: what to write.
            teacher_share: see `write`.
            model: what `generating_model` returned, if its weights are those of now.
        """
        settings = self.decode
        model = self.generating_model() if model is None else model
        if teacher_share:
            model = Mixture(model, self.teacher.live.model, teacher_share)
            halved = max(1, settings.batch_tokens // 2)  # each of the two models has a KV cache
            settings = settings.model_copy(update={"batch_tokens": halved})
        with in_eval_mode(self.student):
            return generate(model, requests, Decoding(settings, self.eos_id, self.pad_id, self.vocabulary))

    def correct(
        self, rows: Sequence[Encoded], samples: Sequence[Sample], stream: str, numbers: Sequence[int], greedy: bool
    ) -> list[Sample]:
        """See `distill.samplers.Writer`."""
        written = [(row, sample) for row, sample in zip(rows, samples, strict=True) if row.response]
        after = self._corrector.correct(written, stream, numbers, greedy)
        new = {id(sample): sample_after for (_, sample), sample_after in zip(written, after, strict=True)}
        self._fresh = [new.get(id(sample), sample) for sample in self._fresh]
        return [new.get(id(sample), sample) for sample in samples]

    def taken(self) -> list[Sample]:
        """The samples that this process has written since the last call."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def taken_corrections(self) -> list[tuple[Correction | None, ...]]:
        """The corrections of this process's texts since the last call; None where there was no error."""
        return self._corrector.taken()

    def request(self, row: Encoded, stream: str) -> Request:
        """The request for a response to a row's prompt.

        A response that EOS ends has, EOS included, at most `room` tokens, so it fits into `max_length`. Others are cut.
        """
        room = min(self.decode.max_new_tokens, max(0, self.max_length - len(row.prompt)))
        return Request(row.id, row.prompt, stream_name(self.seed, f"train {stream}", row.id), room)

    def row(self, row: Encoded, response: Response, stream: str) -> Encoded:
        """The training row with a row's prompt and a response."""
        prompt, tokens = row.prompt, [*response.tokens, *([self.eos_id] if response.ended else [])]
        if self.erased is not None:
            prompt, tokens = ([t for t in ids if t != self.erased] for ids in (prompt, tokens))
        extras = {STUDENT_TEXT: True, **({LATE: True} if self.late else {})}
        return Encoded(f"{row.id}@{stream}", prompt, tokens, extras)

    def generating_model(self) -> Any:
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
        """A copy of the student in eval mode whose parameters are rounded to `dtype`.

        Buffers, such as the rotary frequencies, stay in fp32, as they do when a model is loaded in `dtype`.
        """
        rounded = {id(p): nn.Parameter(p.detach().to(self.dtype), False) for p in self.student.parameters()}
        return copy.deepcopy(self.student, rounded).eval()

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
        device = self.student.device
        inputs = Collator(self.pad_id)(rows)
        ids, mask, labels = (inputs[k].to(device) for k in ("input_ids", "attention_mask", "labels"))
        valid = labels != IGNORE
        autocast = torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32)
        with in_eval_mode(self.student), autocast:
            student_hidden = last_hidden(self.student, ids, mask)[valid]
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
