"""How the student writes in training: by the engine of evaluation, on the model that is being trained."""

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
from distill.data.encode import IGNORE, LATE, ROLLOUT, STUDENT_TEXT, Collator, Encoded, fitted
from distill.generation.engine import Generation, Mixture, Writing, generate
from distill.losses import Divergence, Drawn, Head
from distill.losses.fused import chunk_size
from distill.losses.mixtures import log_mixture
from distill.models.load import last_hidden, output_head
from distill.samplers.base import Origin, Sample
from distill.teacher.signal import NewTextTeacher

READ = 16  # rows that log-probabilities are read of at once


@dataclass
class StudentWriter:
    """Lets the student write, with one random stream a row: a text depends on the student's weights, the prompt, the
    training's seed and the step, not on the batch or the number of processes.

    Attributes:
        student: in training; it is put into eval mode to write, and back.
        divergence: what the texts are for; a policy gradient gets how their tokens were drawn.
        decode: sampling settings and `batch_tokens`, the memory that writing may take.
        max_length: tokens of prompt and response together, beyond which a text is cut.
        late: whether targets stand one position too far on (published quirk).
        erased: token that is taken out of prompts and responses (published quirk: EOS where it is the pad token).
        dtype: that evaluation runs in; other weights are rounded to it before they write.
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

    def write(self, rows: Sequence[Encoded], stream: str, step: int, teacher_share: float = 0.0) -> list[Sample]:
        """See `distill.samplers.Writer`."""
        prompts = [Encoded(row.id, row.prompt, []) for row in rows if row.response]
        writing = Writing(f"train {stream}", [self.seed], self.decode, self.eos_id, self.pad_id)
        training = self.student.training
        self.student.eval()
        model: Any = self._writing_model()
        if teacher_share:
            model = Mixture(model, self.teacher.live.model, teacher_share)
            halved = max(1, self.decode.batch_tokens // 2)  # each of the two holds a cache
            writing = replace(writing, decode=self.decode.model_copy(update={"batch_tokens": halved}))
        written = generate(model, prompts, writing)
        self.student.train(training)
        origin: Origin = "mixed" if teacher_share else "student"
        texts = {one.id: one for one in written}
        samples = [
            Sample(*self._row(row, texts[row.id], stream), step, teacher_share, origin)
            if row.id in texts
            else Sample(row, step=step)
            for row in rows
        ]
        self._fresh += [sample for sample in samples if sample.origin == origin]
        return samples

    def taken(self) -> list[Sample]:
        """What this process has written since the last time."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def _row(self, row: Encoded, one: Generation, stream: str) -> tuple[Encoded, bool]:
        """What was written as a row to train on, and whether it ended."""
        tokens = [*one.tokens, *([self.eos_id] if one.ended else [])]
        prompt, (tokens, cut) = row.prompt, fitted(row.prompt, tokens, self.max_length)
        if self.erased is not None:
            prompt, tokens = ([t for t in ids if t != self.erased] for ids in (prompt, tokens))
        extras = {STUDENT_TEXT: True, **({LATE: True} if self.late else {})}
        return Encoded(f"{row.id}@{stream}", prompt, tokens, extras), one.ended and not cut

    def _writing_model(self) -> Any:
        """The student, or a copy rounded to the dtype that evaluation runs in, which writes faster."""
        if self.dtype == torch.float32:
            return self.student
        with torch.no_grad():
            for ours, theirs in zip(self._rounded.parameters(), self.student.parameters(), strict=True):
                if theirs.requires_grad:
                    ours.copy_(theirs)
        return self._rounded

    @cached_property
    def _rounded(self) -> Any:
        """Parameters alone are rounded: buffers, such as rotary positions' frequencies, stay as loading has them."""
        rounded = {id(p): nn.Parameter(p.detach().to(self.dtype), False) for p in self.student.parameters()}
        return copy.deepcopy(self.student, rounded)

    def with_rollout_data(self, samples: Sequence[Sample]) -> list[Sample]:
        """See `distill.samplers.Writer`; the log-probabilities are those of the student as it is now."""
        if not self.divergence.reads_rollout:
            return list(samples)
        self.teacher.hold({sample.row.id for sample in samples})
        mine = list(samples[self.rank :: self.processes])
        drawn = self._together([self._drawn(mine[i : i + READ]) for i in range(0, len(mine), READ)])
        found: list[Any] = [None] * len(samples)
        for part, several in enumerate(drawn):
            found[part :: self.processes] = [one for batch in several for one in batch]
        return [
            replace(sample, row=replace(sample.row, extras={**sample.row.extras, ROLLOUT: data}))
            for sample, data in zip(samples, self.divergence.rollout_data(found), strict=True)
        ]

    @torch.no_grad()
    def _drawn(self, samples: Sequence[Sample]) -> list[Drawn]:
        """Log-probabilities of the samples' tokens, on the CPU."""
        device, training = self.student.device, self.student.training
        inputs = Collator(self.pad_id)([sample.row for sample in samples])
        ids, mask, labels = (inputs[k].to(device) for k in ("input_ids", "attention_mask", "labels"))
        valid = labels != IGNORE
        self.student.eval()
        with torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):  # as it will be trained
            ours = last_hidden(self.student, ids, mask)[valid]
        self.student.train(training)
        theirs = self.teacher(ids, mask, valid, inputs["example_ids"])
        heads = output_head(self.student).to(self.dtype), self.teacher.head
        width = min(head.weight.shape[0] for head in heads)  # as the divergence cuts them
        q, p = (
            _log_probs(head, hidden.to(head.weight.dtype), labels[valid], width)
            for head, hidden in zip(heads, (ours, theirs), strict=True)
        )
        share = samples[0].teacher_share
        m = log_mixture(p, q, share) if share else q
        lengths = valid.sum(1).tolist()
        return [Drawn(*one) for one in zip(*(x.cpu().split(lengths) for x in (q, p, m)), strict=True)]

    def gather(self, samples: Sequence[Sample]) -> list[Sample]:
        """See `distill.samplers.Writer`."""
        every = [sample for several in self._together(list(samples)) for sample in several]
        return sorted(every, key=lambda sample: sample.row.id)

    def _together(self, mine: Any) -> list[Any]:
        """Every process's object, in the order of the processes."""
        if self.processes == 1:
            return [mine]
        every: list[Any] = [None] * self.processes
        torch.distributed.all_gather_object(every, mine)
        return every


def _log_probs(head: Head, hidden: Tensor, targets: Tensor, width: int) -> Tensor:
    """Log-probabilities of tokens `[n]` over the first `width` classes, in fp32, from hidden states `[n, d]`."""
    found = [hidden.new_zeros(0, dtype=torch.float32)]
    step = chunk_size(head.weight.shape[0], hidden.device)
    for at in range(0, len(targets), step):
        logits = head(hidden[at : at + step])[:, :width]
        found.append(logits.log_softmax(-1).gather(-1, targets[at : at + step, None]).squeeze(-1))
    return torch.cat(found)
