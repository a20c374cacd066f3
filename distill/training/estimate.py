"""What the stages will need: memory by part, disk, and about how long they take. Shown before the first one starts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from rich.filesize import decimal

from distill.base.processes import world_size
from distill.config.model import LoraConfig
from distill.data.encode import Encoded
from distill.losses import Divergence
from distill.losses.fused import CHUNK_COST, chunk_size
from distill.losses.trainable import TrainableDivergence
from distill.models.load import Shape
from distill.samplers import Sampler
from distill.teacher.signal import STORE_BATCH, store_bytes

EFFICIENCY = 0.6  # of plain matrix products that a training is taken to reach


@dataclass(frozen=True)
class Estimate:
    """Bytes in memory by part, seconds, and bytes that stay on disk."""

    parts: dict[str, float]
    seconds: float
    disk: float = 0.0

    @property
    def bytes(self) -> float:
        """All parts together."""
        return sum(self.parts.values())

    def describe(self) -> str:
        """One line for a person: memory, time, disk, and what to do where memory does not reach."""
        large = {name: size for name, size in self.parts.items() if size >= self.bytes / 20}
        parts = ", ".join(f"{name} {decimal(round(size))}" for name, size in large.items())
        free = free_memory()
        line = f"needs about {decimal(round(self.bytes))} of memory ({parts}; {decimal(round(free))} are free)"
        line += f" and {_span(self.seconds)}"
        if self.disk:
            line += f", and {decimal(round(self.disk))} on disk"
        if self.bytes > free:
            line += "; that is more memory than is free: lower train.micro_batch_size or train.max_length"
        return line


def free_memory() -> float:
    """Bytes that the device a training would run on has left."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0])
    return float(psutil.virtual_memory().available)


def estimate_training(
    ours: Shape,
    lora: LoraConfig | None,
    rows: Sequence[Encoded],
    epochs: int,
    micro_batch_size: int,
    precision: str,
    teacher: Shape | None,
    live: bool,
    divergence: Divergence | None = None,
    sampler: Sampler | None = None,
) -> Estimate:
    """Memory and time of one training on one device.

    Args:
        rows: the encoded training rows; the longest decides what a micro-batch may hold.
        teacher: None for fine-tuning.
        live: whether the teacher runs on every batch, or its hidden states are stored.
        divergence: not built yet, or with parameters that hold no memory.
        sampler: one whose student writes adds the copy that writes and the teacher's memory of texts that come again;
            how long writing takes depends on texts that are not there yet, and is left out.
    """
    wide = 2 if precision == "bf16" else 4
    trained = ours.lora_parameters(lora.r, lora.targets) if lora else ours.parameters
    widest = max(ours.classes, teacher.classes if teacher is not None else 0)
    own = 0
    if isinstance(divergence, TrainableDivergence) and teacher is not None:
        divergence.prepare(min(ours.classes, teacher.classes), torch.device("meta"))
        own = sum(p.numel() for p in divergence.parameters())
    device, longest = _device(), max(len(r.prompt) + len(r.response) for r in rows)
    held = min(micro_batch_size, len(rows)) * longest
    chunk = min(chunk_size(widest, device, own), held)
    parts = {
        "weights": (4.0 if wide == 4 else 6.0) * ours.parameters,  # under bf16 the products take rounded copies
        "gradients": 4.0 * trained,
        "optimizer": 8.0 * trained,
        "loss's own": 20.0 * own,  # weights, sums, gradients, and the optimizer's two
        "activations": _activations(ours, held, wide),
        "loss head": float(chunk * widest * CHUNK_COST) + (0 if lora else 4.0 * ours.classes * ours.hidden),
    }
    if sampler is not None and sampler.writes and teacher is not None:
        parts["student that writes"] = float(0 if wide == 4 else wide * ours.parameters)
        if not live and device.type == "cpu":
            parts["texts that come again"] = float(sampler.holds * sampler.max_new_tokens * teacher.hidden * wide)
    answers = sum(len(r.response) for r in rows)
    every = answers + sum(len(r.prompt) for r in rows)
    passes = 4.0 if lora else 6.0  # frozen weights need no gradient product
    flops = passes * (ours.body * every + ours.classes * ours.hidden * answers)
    if teacher is not None:
        reads = live or (sampler is not None and sampler.writes)
        parts["teacher"] = float(wide * (teacher.parameters if reads else teacher.classes * teacher.hidden))
        flops += 2.0 * teacher.classes * teacher.hidden * answers + (2.0 * teacher.body * every if reads else 0.0)
    speed = world_size() * EFFICIENCY * _throughput(ours.hidden, ours.inner, precision)
    return Estimate(parts, epochs * flops / speed)


def estimate_signal(teacher: Shape, rows: Sequence[Encoded], precision: str) -> Estimate:
    """Memory, time and disk of storing the teacher's hidden states of `rows` once, which one process does."""
    wide = 2 if precision == "bf16" else 4
    longest = max(len(r.prompt) + len(r.response) for r in rows)
    # Without gradients a layer's activations go when the next one's are there
    parts = {
        "teacher": float(wide * teacher.parameters),
        "activations": float(STORE_BATCH * longest * (10 * teacher.hidden + 4 * teacher.inner) * wide),
    }
    flops = 2.0 * teacher.body * sum(len(r.prompt) + len(r.response) for r in rows)
    disk = store_bytes(rows, teacher.hidden, wide) + wide * teacher.classes * teacher.hidden
    return Estimate(parts, flops / (EFFICIENCY * _throughput(teacher.hidden, teacher.inner, precision)), disk)


def estimate_answers(
    teacher: Shape, rows: Sequence[Encoded], new_tokens: int, columns: int, precision: str
) -> Estimate:
    """Memory and time of the teacher's answers, of at most `new_tokens` each, to the prompts of `rows`.

    Args:
        columns: `batch_tokens`, each of which holds a layer's keys and values, at most two hidden widths.
    """
    wide = 2 if precision == "bf16" else 4
    parts = {
        "teacher": float(wide * teacher.parameters),
        "keys and values": float(columns * teacher.layers * 2 * teacher.hidden * wide),
    }
    tokens = sum(len(r.prompt) + new_tokens for r in rows)
    flops = 2.0 * (teacher.body + teacher.classes * teacher.hidden) * tokens
    return Estimate(parts, flops / (EFFICIENCY * _throughput(teacher.hidden, teacher.inner, precision)))


def _activations(ours: Shape, held: int, wide: int) -> float:
    """Bytes that a micro-batch of `held` tokens keeps for the backward pass.

    A token and layer: norms, residuals and attention about 10 hidden widths, the MLP about 4 of its own; norms and
    residuals stay fp32 under bf16.
    """
    return float(held * ours.layers * (10 * ours.hidden + 4 * ours.inner) * (4 if wide == 4 else 3))


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _throughput(hidden: int, inner: int, precision: str) -> float:
    """Operations a second of a matrix product as the model's MLP has it, on this machine now."""
    device = _device()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.ones(shape, device=device, dtype=dtype) for shape in ((512, hidden), (hidden, inner)))
    done, started = 0, 0.0
    while done < 3 or time.perf_counter() - started < 0.05:
        if done == 1:  # the first warms up
            started = time.perf_counter()
        _finish(a @ b)
        done += 1
    return 2.0 * a.shape[0] * hidden * inner * (done - 1) / (time.perf_counter() - started)


def _finish(x: Any) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


def _span(seconds: float) -> str:
    """`40 s`, `12 min` or `2.5 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
