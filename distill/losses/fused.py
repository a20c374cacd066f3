"""The loss head in chunks: divergence and cross-entropy from hidden states, without `[N, V]` logits in memory.

Gradients to hidden states and head are computed in the forward pass, chunk by chunk, so memory does not grow with the
number of tokens and nothing is computed twice. Within a chunk the passes over the vocabulary process a few rows at a
time, so that on a CPU these rows stay in its cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distill.base.memory import keep_freed_memory
from distill.losses.base import Divergence, WholeBatch, value_and_gradient
from distill.losses.logits import Head, buffer, chunk_size, mm
from distill.losses.span import SpanPass
from distill.losses.trainable import TrainableDivergence

CACHE_BYTES = 2**21  # of logits that the passes of a divergence process at once on a CPU


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
    pairs: Tensor | None = None,
    w_span: float = 1.0,
) -> Tensor:
    """`w_ce` cross-entropy + `w_kd` divergence, summed over tokens: a scalar that can be differentiated once.

    With `pairs` MGSR's span loss is added, from the same logits.

    Args:
        divergence: None for cross-entropy alone.
        student_hidden: last hidden states `[N, d]` of the valid positions, differentiated.
        student_head: `[V, d]` or a `Head`; weight and bias are differentiated if they require it.
        teacher_hidden: the teacher's last hidden states `[N, d']`, not differentiated.
        teacher_head: `[V', d']` or a `Head`, not differentiated. If V and V' differ (by padding at the end), the
            divergence is computed on the smaller number of classes.
        chunk_tokens: tokens per chunk of logits; None chooses by vocabulary and memory (`chunk_size`).
        targets: response tokens `[N]`, for cross-entropy and the divergences that read them.
        w_ce: weight of the cross-entropy.
        w_kd: weight of the divergence.
        temperature: divides the logits of student and teacher in the divergence.
        parts: a dictionary that receives the sums, detached: `ce_sum` (if there are targets) and `kd_sum` (if there is
            a divergence), in nats, and `span_sum` (if there are pairs), all without the weights `w_`.
        rollout_data: how each token was sampled, `[N, k]`, for a divergence that reads it (`Divergence.rollout_data`).
        pairs: `[N]`, at each token the weight in the span loss of its pair with the next one
            (`distill.losses.span.pair_weights`); at most places 0, and at the last. No chunk ends inside a span.
        w_span: weight of the span loss.

    Raises:
        ValueError: arguments that belong together were not given together, or differ in length.
    """
    head = student_head if isinstance(student_head, Head) else Head(student_head)
    teacher = Head(teacher_head) if isinstance(teacher_head, Tensor) else teacher_head
    rows = {"teacher_hidden": teacher_hidden, "targets": targets, "rollout_data": rollout_data, "pairs": pairs}
    _check_arguments(divergence, teacher, student_hidden.shape[0], rows, w_ce, temperature, chunk_tokens)
    own: tuple[Tensor, ...] = ()
    if isinstance(divergence, TrainableDivergence) and teacher is not None:
        divergence.prepare(min(head.weight.shape[0], teacher.weight.shape[0]), student_hidden.device)
        own = tuple(divergence.parameters())
    if divergence is not None:
        rest = student_hidden, head, teacher_hidden, teacher, chunk_tokens, targets
        with torch.no_grad():
            whole = WholeBatch(lambda candidate: fused(candidate, *rest, temperature=temperature))
            divergence = divergence.for_batch(whole)
    job = _Job(divergence, teacher, chunk_tokens, w_ce, w_kd, w_span, temperature, torch.is_grad_enabled())
    total: Tensor
    tokens = None if targets is None else _Tokens(targets, rollout_data)
    given = (teacher_hidden, tokens, None if pairs is None else pairs.to(student_hidden.device))
    total, ce, kd, span = _Fused.apply(student_hidden, head.weight, head.bias, head, given, job, *own)
    if parts is not None and targets is not None:
        parts["ce_sum"] = ce
    if parts is not None and divergence is not None:
        parts["kd_sum"] = kd
    if parts is not None and pairs is not None:
        parts["span_sum"] = span
    return total


def _check_arguments(
    divergence: Divergence | None,
    teacher: Head | None,
    count: int,
    rows: Mapping[str, Tensor | None],
    w_ce: float,
    temperature: float,
    chunk_tokens: int | None,
) -> None:
    """Raise the errors of `fused`.

    Args:
        count: how many tokens the student's hidden states have.
        rows: the other tensors with one row a token, by the name of their argument.
    """
    if (divergence is None) != (rows["teacher_hidden"] is None or teacher is None):
        raise ValueError("divergence, teacher_hidden and teacher_head must be given together, or none of them")
    reads_targets = divergence is not None and (divergence.reads_targets or rows["rollout_data"] is not None)
    if rows["pairs"] is not None and divergence is None:
        raise ValueError(
            "the span loss of pairs is against a teacher: give a divergence and the teacher's hidden states"
        )
    if rows["targets"] is None and (w_ce or reads_targets):
        raise ValueError("cross-entropy or this divergence reads the response tokens: pass targets")
    for name, tensor in rows.items():
        if tensor is not None and tensor.shape[0] != count:
            raise ValueError(f"{name} has {tensor.shape[0]} rows, student_hidden {count}")
    if temperature <= 0 or (chunk_tokens is not None and chunk_tokens < 1):
        raise ValueError(f"temperature={temperature} must be positive and chunk_tokens={chunk_tokens} at least 1")


@dataclass(frozen=True)
class _Tokens:
    """Response tokens `[N]`, and how each was sampled `[N, k]`."""

    targets: Tensor
    rollout_data: Tensor | None

    def __getitem__(self, part: slice) -> _Tokens:
        return _Tokens(self.targets[part], None if self.rollout_data is None else self.rollout_data[part])


Grads = tuple[Tensor | None, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class _Job:
    """The arguments of `fused` that are not tensors to differentiate, and the computation."""

    divergence: Divergence | None
    teacher: Head | None
    chunk_tokens: int | None
    w_ce: float
    w_kd: float
    w_span: float
    temperature: float
    differentiated: bool  # whether any gradient is needed

    @property
    def own(self) -> int:
        """Number of the divergence's own parameters."""
        trainable = isinstance(self.divergence, TrainableDivergence)
        return sum(p.numel() for p in self.divergence.parameters()) if trainable else 0  # type: ignore[union-attr]

    def run(
        self,
        hidden: Tensor,
        head: Head,
        given: tuple[Tensor | None, _Tokens | None, Tensor | None],
        needed: tuple[bool, ...],
    ) -> tuple[tuple[Tensor, ...], Grads]:
        """The sums of CE, divergence and span loss, and the gradients of their weighted sum.

        Args:
            given: the teacher's hidden states, the response tokens, and the weights of pairs.
            needed: which gradients are needed: by hidden states, weight and bias.
        """
        teacher_hidden, tokens, pairs = given
        if hidden.device.type == "cpu":
            keep_freed_memory()
        weight, bias, count = head.weight, head.bias, hidden.shape[0]
        exact = torch.promote_types(hidden.dtype, torch.float32)
        grad_hidden = torch.empty_like(hidden, dtype=exact) if needed[0] else None
        grad_weight = torch.empty_like(weight, dtype=exact) if needed[1] else None
        grad_bias = torch.zeros_like(bias, dtype=exact) if needed[2] and bias is not None else None
        sums = [torch.zeros((), dtype=exact, device=hidden.device)] * 3
        heads = [head, self.teacher] if self.teacher is not None else [head]
        most = self.chunk_tokens or chunk_size(max(h.weight.shape[0] for h in heads), hidden.device, self.own)
        parts = _chunks(count, most, pairs)
        longest = max((part.stop - part.start for part in parts), default=0)
        buffers = [
            buffer(i, longest, h.weight.shape[0], exact, hidden.device) if h.weight.dtype == exact else None
            for i, h in enumerate(heads)
        ]
        if count == 0 and grad_weight is not None:
            grad_weight.zero_()
        for part in parts:
            logits = head(hidden[part], buffers[0])
            teacher_logits = None
            if self.teacher is not None and teacher_hidden is not None:
                teacher_logits = self.teacher(teacher_hidden[part].to(self.teacher.weight.dtype), buffers[1])
            capped = logits.clone() if head.softcap is not None else None
            of_part = (None if tokens is None else tokens[part], None if pairs is None else pairs[part])
            sums = [a + b for a, b in zip(sums, self._overwrite(logits, teacher_logits, *of_part), strict=True)]
            if capped is not None and head.softcap is not None:  # d tanh(x) = 1 - tanh(x)^2
                logits.addcmul_(logits, capped.div_(head.softcap).square_(), value=-1)
            if head.scale != 1.0:
                logits *= head.scale
            gradient = logits.to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = mm(gradient, weight)
            if grad_weight is not None and exact == weight.dtype:
                # The first chunk overwrites the buffer, which is uninitialised (beta = 0); the others add to it
                torch.addmm(grad_weight, gradient.t(), hidden[part], beta=float(part.start > 0), out=grad_weight)
            elif grad_weight is not None:
                product = mm(gradient.t(), hidden[part])
                grad_weight = product if part.start == 0 else grad_weight.add_(product)
            if grad_bias is not None:
                grad_bias += logits.sum(0)
        return tuple(sums), (grad_hidden, grad_weight, grad_bias)

    def _overwrite(
        self, student: Tensor, teacher: Tensor | None, tokens: _Tokens | None, pairs: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The sums of CE, divergence and span loss over a chunk of logits, which the gradient overwrites."""
        # A trainable divergence reads its parameters once per block, so larger blocks are faster
        block_bytes = CACHE_BYTES * (4 if self.own else 1)
        rows = student.shape[0] if student.is_cuda else max(1, block_bytes // (4 * student.shape[1]))
        ce = kd = span = student.new_zeros(())
        spans = None if pairs is None or teacher is None else SpanPass(student, teacher, pairs)
        for begin in range(0, student.shape[0], rows):
            block = slice(begin, min(begin + rows, student.shape[0]))
            if spans is not None:
                spans.read(block)
            sums = self._gradient(
                student[block],
                None if teacher is None else teacher[block],
                None if tokens is None else tokens[block],
            )
            ce, kd = ce + sums[0], kd + sums[1]
            if spans is not None:
                span = span + spans.add_gradient(self.w_span)
        return ce, kd, span

    def _gradient(self, student: Tensor, teacher: Tensor | None, tokens: _Tokens | None) -> tuple[Tensor, Tensor]:
        """Sums of CE and divergence over rows of logits `[n, V]`. The student's are overwritten by the gradient."""
        ce = kd = student.new_zeros(())
        gradient: Tensor | None = None
        if self.divergence is not None and teacher is not None:
            width = min(student.shape[-1], teacher.shape[-1])
            student_logits, teacher_logits = student[:, :width], teacher[:, :width]
            if self.temperature != 1.0:
                student_logits, teacher_logits = student_logits / self.temperature, teacher_logits / self.temperature
            divergence, targets = self.divergence, None if tokens is None else tokens.targets
            if tokens is not None and tokens.rollout_data is not None:
                divergence = divergence.with_rollout_data(tokens.rollout_data)
            value, gradient = value_and_gradient(divergence, student_logits, teacher_logits, targets)
            kd = value.sum()
            if self.w_kd != self.temperature:
                gradient *= self.w_kd / self.temperature
        if tokens is not None:
            index, log_mass = tokens.targets.unsqueeze(-1), student.logsumexp(-1, keepdim=True)
            ce = (log_mass - student.gather(-1, index)).sum()
        if self.w_ce and tokens is not None:
            student.sub_(log_mass).exp_().mul_(self.w_ce)
            student.scatter_add_(-1, index, torch.full_like(log_mass, -self.w_ce))
        else:
            student.zero_()
        if gradient is not None:
            student[:, : gradient.shape[-1]] += gradient
        return ce, kd


def _chunks(count: int, most: int, pairs: Tensor | None) -> list[slice]:
    """The chunks of `count` tokens, about `most` each, of equal size: a small last one would read the head for little.

    With pairs, a chunk ends a little earlier, so that none ends inside a span; it ends later only if it is one span.
    """
    step = max(1, -(-count // max(1, -(-count // most))))
    if pairs is None:
        return [slice(begin, min(begin + step, count)) for begin in range(0, count, step)]
    inside = [weight != 0 for weight in pairs.tolist()]  # whether a token's span goes on at the next one
    chunks, begin = [], 0
    while begin < count:
        end = min(begin + step, count)
        while end > begin + 1 and end < count and inside[end - 1]:
            end -= 1
        while end < count and inside[end - 1]:
            end += 1
        chunks.append(slice(begin, end))
        begin = end
    return chunks


class _Fused(torch.autograd.Function):
    """The weighted sum of `fused`; gradients are computed in the forward pass, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        given: tuple[Tensor | None, _Tokens | None, Tensor | None],
        job: _Job,
        *own: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        device = hidden.device.type
        mixed = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if mixed else weight.dtype
        needed = tuple(job.differentiated and needs_grad for needs_grad in ctx.needs_input_grad[:3])
        if isinstance(job.divergence, TrainableDivergence):
            job.divergence.collected()  # discards gradient sums of earlier calls of value_and_slope
        with torch.autocast(device, enabled=False):  # autocast would cast the head once per chunk; here it is cast once
            (ce, kd, span), grads = job.run(hidden.to(dtype), head.to(dtype), given, needed)
        ctx.grads = list(grads)
        if isinstance(job.divergence, TrainableDivergence):
            ctx.grads += [g.mul_(job.w_kd) for g in job.divergence.collected()]
        like = (hidden, weight, bias, *own)
        ctx.dtypes = [None if x is None else x.dtype for x in like]
        ctx.mark_non_differentiable(ce, kd, span)
        return job.w_ce * ce + job.w_kd * kd + job.w_span * span, ce, kd, span

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        if ctx.grads is None:
            raise RuntimeError("the chunked loss head computes its gradients once: it cannot be differentiated again")
        scaled = [
            None if g is None else g.mul_(grads[0].to(g.dtype)).to(dtype)
            for g, dtype in zip(ctx.grads, ctx.dtypes, strict=True)
        ]
        ctx.grads = None  # scaled in place, so they cannot be used again
        return (*scaled[:3], None, None, None, *scaled[3:])
