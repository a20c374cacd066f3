"""The loss head in chunks: divergence and cross-entropy from hidden states, without ever holding `[N, V]` logits.

Gradients to hidden states and head are formed in the forward pass, chunk by chunk, so memory does not grow with the
number of tokens and nothing is computed twice. Within a chunk the passes over the vocabulary run on a few rows at a
time, which on a CPU keeps them in its cache.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill.base.memory import keep_freed_memory
from distill.losses.base import Divergence, value_and_gradient
from distill.losses.trainable import TrainableDivergence

CHUNK_BYTES = 100 * 2**20  # of student and teacher logits together, on a CPU
SHARE = 32  # one part of the memory in so many is what a chunk may take
CHUNK_COST = 24  # bytes that a chunk holds a token and class: logits, log-probabilities and their products
CACHE_BYTES = 2**21  # of logits that the passes of a divergence run over at once on a CPU


@dataclass(frozen=True)
class Head:
    """An output layer: `softcap * tanh(scale * (h W^T + bias) / softcap)`, each part optional.

    Attributes:
        weight: `[V, d]`.
        bias: `[V]`.
        scale: multiplies the logits (Cohere's logit_scale, Granite's 1 / logits_scaling).
        softcap: bounds them (Gemma 2's final_logit_softcapping).
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, hidden: Tensor, into: Tensor | None = None) -> Tensor:
        """Logits `[N, V]` of hidden states `[N, d]`, in fp32 or better.

        Args:
            into: rows to write them to, of the weight's dtype.
        """
        if into is None:
            logits = _mm(hidden, self.weight.t())
        else:
            logits = torch.mm(hidden, self.weight.t(), out=into[: hidden.shape[0]])
        if self.bias is not None:
            logits += self.bias
        if self.scale != 1.0:
            logits *= self.scale
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def to(self, dtype: torch.dtype) -> Head:
        """The same with weight and bias in `dtype`."""
        return replace(self, weight=self.weight.to(dtype), bias=None if self.bias is None else self.bias.to(dtype))


def _mm(a: Tensor, b: Tensor) -> Tensor:
    """A matrix product in fp32 or better: of bf16 factors too where the device can, else rounded once."""
    if a.is_cuda and a.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a, b).to(torch.promote_types(a.dtype, torch.float32))


_ROOM: dict[tuple[int, torch.dtype], Tensor] = {}


def _room(which: int, rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One buffer `[rows, width]` for all chunks; on a CPU it stays for the next call, since fresh pages cost time."""
    if device.type != "cpu":
        return torch.empty(rows, width, dtype=dtype, device=device)
    kept = _ROOM.get((which, dtype))
    if kept is None or kept.numel() < rows * width:
        with torch.inference_mode(False):  # what inference makes, training may not overwrite
            kept = _ROOM[which, dtype] = torch.empty(rows * width, dtype=dtype)
    return kept[: rows * width].view(rows, width)


def chunk_size(classes: int, device: torch.device, own: int = 0) -> int:
    """Tokens a chunk: on a CPU `CHUNK_BYTES` of logits, on a GPU a share of its memory.

    Of the whole memory, not of what is free: a training that goes on must sum in the same order.

    Args:
        classes: width of the widest head.
        own: parameters of the divergence; on a CPU the sums of their gradients come out of the same.
    """
    if device.type != "cuda":
        held = min(CHUNK_BYTES, psutil.virtual_memory().total // SHARE)
        return max(16, (held - 4 * own) // (8 * classes))
    whole = torch.cuda.get_device_properties(device).total_memory
    return int(min(2048, max(64, whole / SHARE / (CHUNK_COST * classes))))


def fused(
    divergence: Divergence | None,
    student_hidden: Tensor,
    student_head: Tensor | Head,
    teacher_hidden: Tensor | None = None,
    teacher_head: Tensor | Head | None = None,
    chunk_tokens: int | None = None,
    targets: Tensor | None = None,
    w_ce: float = 0.0,
    w_kd: float = 1.0,
    temperature: float = 1.0,
    parts: dict[str, Tensor] | None = None,
    rollout_data: Tensor | None = None,
) -> Tensor:
    """`w_ce` cross-entropy + `w_kd` divergence, summed over tokens: a scalar, differentiated once.

    Args:
        divergence: None for cross-entropy alone.
        student_hidden: last hidden states `[N, d]` of the valid positions, differentiated.
        student_head: `[V, d]` or a `Head`; weight and bias are differentiated where they require it.
        teacher_hidden, teacher_head: the teacher's, `[N, d']`, not differentiated. Vocabularies that differ by padding
            at the end are cut to the common width for the divergence.
        chunk_tokens: tokens whose logits are held at once; by default from the vocabulary and the memory at hand.
        targets: response tokens `[N]`, for cross-entropy and the divergences that read them.
        temperature: divides both sides' logits in the divergence.
        parts: gets the sum's detached parts, `ce_sum` (where there are targets) and `kd_sum`, in nats.
        rollout_data: how each token was drawn, `[N, k]`, for a divergence that reads it (`Divergence.rollout_data`).

    Raises:
        ValueError: what belongs together was not given together, or differs in length.
    """
    head = student_head if isinstance(student_head, Head) else Head(student_head)
    theirs = Head(teacher_head) if isinstance(teacher_head, Tensor) else teacher_head
    if (divergence is None) != (teacher_hidden is None or theirs is None):
        raise ValueError("a divergence needs teacher_hidden and teacher_head, and they a divergence")
    reads_targets = divergence is not None and (divergence.reads_targets or rollout_data is not None)
    if targets is None and (w_ce or reads_targets):
        raise ValueError("cross-entropy, or this divergence, reads the response tokens: pass targets")
    count = student_hidden.shape[0]
    for name, rows in (("teacher_hidden", teacher_hidden), ("targets", targets), ("rollout_data", rollout_data)):
        if rows is not None and rows.shape[0] != count:
            raise ValueError(f"{name} has {rows.shape[0]} rows, student_hidden {count}")
    if temperature <= 0 or (chunk_tokens is not None and chunk_tokens < 1):
        raise ValueError(f"temperature={temperature} must be positive and chunk_tokens={chunk_tokens} at least 1")
    own: tuple[Tensor, ...] = ()
    if isinstance(divergence, TrainableDivergence) and theirs is not None:
        divergence.prepare(min(head.weight.shape[0], theirs.weight.shape[0]), student_hidden.device)
        own = tuple(divergence.parameters())
    if divergence is not None:
        with torch.no_grad():
            divergence = divergence.for_batch(
                lambda one: fused(
                    one, student_hidden, head, teacher_hidden, theirs, chunk_tokens, targets, 0.0, 1.0, temperature
                )
            )
    job = _Job(divergence, theirs, chunk_tokens, w_ce, w_kd, temperature, torch.is_grad_enabled())
    total: Tensor
    tokens = None if targets is None else _Tokens(targets, rollout_data)
    total, ce, kd = _Fused.apply(student_hidden, head.weight, head.bias, head, teacher_hidden, tokens, job, *own)
    if parts is not None and targets is not None:
        parts["ce_sum"] = ce
    if parts is not None and divergence is not None:
        parts["kd_sum"] = kd
    return total


@dataclass(frozen=True)
class _Tokens:
    """Response tokens `[N]`, and how each was drawn `[N, k]`."""

    targets: Tensor
    rollout_data: Tensor | None

    def __getitem__(self, part: slice) -> _Tokens:
        return _Tokens(self.targets[part], None if self.rollout_data is None else self.rollout_data[part])


Grads = tuple[Tensor | None, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class _Job:
    divergence: Divergence | None
    teacher: Head | None
    chunk_tokens: int | None
    w_ce: float
    w_kd: float
    temperature: float
    differentiated: bool  # whether gradients are wanted at all

    @property
    def own(self) -> int:
        """Numbers in the divergence's own parameters."""
        trainable = isinstance(self.divergence, TrainableDivergence)
        return sum(p.numel() for p in self.divergence.parameters()) if trainable else 0  # type: ignore[union-attr]

    def run(
        self,
        hidden: Tensor,
        head: Head,
        teacher_hidden: Tensor | None,
        tokens: _Tokens | None,
        needed: tuple[bool, ...],
    ) -> tuple[tuple[Tensor, Tensor], Grads]:
        """Sums of CE and divergence, and the gradients of their weighted sum by hidden states, weight and bias."""
        if hidden.device.type == "cpu":
            keep_freed_memory()
        weight, bias, count = head.weight, head.bias, hidden.shape[0]
        exact = torch.promote_types(hidden.dtype, torch.float32)
        grad_hidden = torch.empty_like(hidden, dtype=exact) if needed[0] else None
        grad_weight = torch.empty_like(weight, dtype=exact) if needed[1] else None
        grad_bias = torch.zeros_like(bias, dtype=exact) if needed[2] and bias is not None else None
        ce = kd = torch.zeros((), dtype=exact, device=hidden.device)
        heads = [head, self.teacher] if self.teacher is not None else [head]
        most = self.chunk_tokens or chunk_size(max(h.weight.shape[0] for h in heads), hidden.device, self.own)
        step = max(1, -(-count // max(1, -(-count // most))))  # like chunks: a small last one would cost a whole pass
        room = [
            _room(i, min(step, count), h.weight.shape[0], exact, hidden.device) if h.weight.dtype == exact else None
            for i, h in enumerate(heads)
        ]
        if count == 0 and grad_weight is not None:
            grad_weight.zero_()
        for begin in range(0, count, step):
            part = slice(begin, begin + step)
            logits = head(hidden[part], room[0])
            theirs = None
            if self.teacher is not None and teacher_hidden is not None:
                theirs = self.teacher(teacher_hidden[part].to(self.teacher.weight.dtype), room[1])
            capped = logits.clone() if head.softcap is not None else None
            sums = self._overwrite(logits, theirs, None if tokens is None else tokens[part])
            ce, kd = ce + sums[0], kd + sums[1]
            if capped is not None and head.softcap is not None:  # d tanh(x) = 1 - tanh(x)^2
                logits.addcmul_(logits, capped.div_(head.softcap).square_(), value=-1)
            if head.scale != 1.0:
                logits *= head.scale
            gradient = logits.to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = _mm(gradient, weight)
            if grad_weight is not None and exact == weight.dtype:
                # The first chunk writes what the others add to: beta = 0 reads nothing
                torch.addmm(grad_weight, gradient.t(), hidden[part], beta=float(begin > 0), out=grad_weight)
            elif grad_weight is not None:
                product = _mm(gradient.t(), hidden[part])
                grad_weight = product if begin == 0 else grad_weight.add_(product)
            if grad_bias is not None:
                grad_bias += logits.sum(0)
        return (ce, kd), (grad_hidden, grad_weight, grad_bias)

    def _overwrite(self, student: Tensor, teacher: Tensor | None, tokens: _Tokens | None) -> tuple[Tensor, Tensor]:
        """Sums of CE and divergence over a chunk of logits; the student's are overwritten by the gradient."""
        # A divergence with products of its own reads its parameters once a block: larger ones pay.
        held = CACHE_BYTES * (4 if self.own else 1)
        rows = student.shape[0] if student.is_cuda else max(1, held // (4 * student.shape[1]))
        ce = kd = student.new_zeros(())
        for at in range(0, student.shape[0], rows):
            block = slice(at, at + rows)
            sums = self._gradient(
                student[block],
                None if teacher is None else teacher[block],
                None if tokens is None else tokens[block],
            )
            ce, kd = ce + sums[0], kd + sums[1]
        return ce, kd

    def _gradient(self, student: Tensor, teacher: Tensor | None, tokens: _Tokens | None) -> tuple[Tensor, Tensor]:
        """Sums of CE and divergence over rows of logits `[n, V]`, which are overwritten by the gradient."""
        ce = kd = student.new_zeros(())
        gradient: Tensor | None = None
        if self.divergence is not None and teacher is not None:
            width = min(student.shape[-1], teacher.shape[-1])
            ours, theirs = student[:, :width], teacher[:, :width]
            if self.temperature != 1.0:
                ours, theirs = ours / self.temperature, theirs / self.temperature
            divergence, targets = self.divergence, None if tokens is None else tokens.targets
            if tokens is not None and tokens.rollout_data is not None:
                divergence = divergence.with_rollout_data(tokens.rollout_data)
            value, gradient = value_and_gradient(divergence, ours, theirs, targets)
            kd = value.sum()
            if self.w_kd != self.temperature:
                gradient *= self.w_kd / self.temperature
        if tokens is not None:
            at, log_mass = tokens.targets.unsqueeze(-1), student.logsumexp(-1, keepdim=True)
            ce = (log_mass - student.gather(-1, at)).sum()
        if self.w_ce and tokens is not None:
            student.sub_(log_mass).exp_().mul_(self.w_ce)
            student.scatter_add_(-1, at, torch.full_like(log_mass, -self.w_ce))
        else:
            student.zero_()
        if gradient is not None:
            student[:, : gradient.shape[-1]] += gradient
        return ce, kd


class _Fused(torch.autograd.Function):
    """Sums and gradients, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        teacher_hidden: Tensor | None,
        tokens: _Tokens | None,
        job: _Job,
        *own: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        device = hidden.device.type
        mixed = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if mixed else weight.dtype
        needed = tuple(job.differentiated and wanted for wanted in ctx.needs_input_grad[:3])
        if isinstance(job.divergence, TrainableDivergence):
            job.divergence.collected()  # what a call outside left behind
        with torch.autocast(device, enabled=False):  # casts of our own: one of the head, not one a chunk
            (ce, kd), grads = job.run(hidden.to(dtype), head.to(dtype), teacher_hidden, tokens, needed)
        ctx.grads = list(grads)
        if isinstance(job.divergence, TrainableDivergence):
            ctx.grads += [g.mul_(job.w_kd) for g in job.divergence.collected()]
        like = (hidden, weight, bias, *own)
        ctx.dtypes = [None if x is None else x.dtype for x in like]
        ctx.mark_non_differentiable(ce, kd)
        return job.w_ce * ce + job.w_kd * kd, ce, kd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        if ctx.grads is None:
            raise RuntimeError("the chunked loss head forms its gradients once: it cannot be differentiated again")
        scaled = [
            None if g is None else g.mul_(grads[0].to(g.dtype)).to(dtype)
            for g, dtype in zip(ctx.grads, ctx.dtypes, strict=True)
        ]
        ctx.grads = None  # scaled in place, so they serve once
        return (*scaled[:3], None, None, None, None, *scaled[3:])
