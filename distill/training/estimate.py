"""Estimates of the memory and disk space that the stages need, shown before the first stage starts.

They say nothing of time: no formula foretells it well. `--dry-run` tells how long stages of the same kind took.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch
from rich.filesize import decimal

from distill.base.errors import UserError
from distill.config.model import LoraConfig
from distill.data.encode import Encoded
from distill.losses import Divergence
from distill.losses.logits import CHUNK_COST, chunk_size
from distill.losses.trainable import TrainableDivergence
from distill.models.load import Shape
from distill.samplers import Sampler
from distill.samplers.base import StudentText
from distill.teacher.signal import STORE_BATCH, store_bytes

OWN_BYTES = 20.0  # of a divergence's own parameter: weight, sum, gradient and two optimizer states, in fp32


@dataclass(frozen=True)
class Estimate:
    """What a stage needs.

    Attributes:
        parts: bytes of memory on each device, by the name of what needs them.
        disk: bytes that stay on disk.
    """

    parts: dict[str, float]
    disk: float = 0.0

    @property
    def bytes(self) -> float:
        """Bytes of memory of all parts together."""
        return sum(self.parts.values())

    def describe(self) -> str:
        """One line for the user: memory, disk, and what to change if the memory is not enough."""
        large = {name: size for name, size in self.parts.items() if size >= self.bytes / 20}
        parts = ", ".join(f"{name} {decimal(round(size))}" for name, size in large.items())
        free = free_memory()
        line = f"needs about {decimal(round(self.bytes))} of memory ({parts}; {decimal(round(free))} are free)"
        if self.disk:
            line += f" and {decimal(round(self.disk))} on disk"
        if self.bytes > free:
            line += "; that is more memory than is free: lower train.micro_batch_size or train.max_length"
        return line


def free_memory() -> float:
    """Free bytes of memory of the device that a training would run on."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0])
    return float(psutil.virtual_memory().available)


def estimate_training(
    student: Shape,
    lora: LoraConfig | None,
    rows: Sequence[Encoded],
    micro_batch_size: int,
    precision: str,
    teacher: Shape | None,
    live: bool,
    divergence: Divergence | None = None,
    sampler: Sampler | None = None,
    data_pass: bool = False,
    step_rows: int = 0,
    cached_tokens: int = 0,
) -> Estimate:
    """Memory of one training on one device.

    Args:
        student: the shape of the model that is trained.
        lora: the adapters that are trained in place of all weights.
        rows: the encoded training rows. The longest one determines the memory of a micro-batch.
        micro_batch_size: rows of a forward pass on one device.
        precision: `bf16` or `fp32`.
        teacher: the shape of the teacher; None for fine-tuning.
        live: whether the teacher runs on every batch. Otherwise its hidden states are stored.
        divergence: if it is a `TrainableDivergence`, its parameters must not exist yet: they are made here on the meta
            device.
        sampler: if the student generates responses in training, the memory of its rounded copy and of the teacher's
            remembered hidden states is included.
        data_pass: whether the student reads the data set's responses, too, in a pass of its own.
        step_rows: rows of a step on one device. If their texts are corrected, both models' keys and values are in
            memory, those of before a correction and those of after it.
        cached_tokens: the most tokens of texts that are corrected together, `eval.batch_tokens`.

    Raises:
        UserError: see `check_own_parameters`.
    """
    wide = 2 if precision == "bf16" else 4
    trained = student.lora_parameters(lora.r, lora.targets) if lora else student.parameters
    widest = max(student.classes, teacher.classes if teacher is not None else 0)
    loss_parameters = 0
    if isinstance(divergence, TrainableDivergence) and teacher is not None:
        check_own_parameters(divergence, student, lora, teacher)
        loss_parameters = own_parameters(divergence, min(student.classes, teacher.classes))
    device, longest = _device(), max(len(r.prompt) + len(r.response) for r in rows)
    batch_tokens = min(micro_batch_size, len(rows)) * longest
    chunk = min(chunk_size(widest, device, loss_parameters), batch_tokens)
    parts = {
        "weights": (4.0 if wide == 4 else 6.0) * student.parameters,  # under bf16 autocast keeps rounded copies too
        "gradients": 4.0 * trained,
        "optimizer": 8.0 * trained,
        "loss's own": OWN_BYTES * loss_parameters,
        "activations": _activations(student, batch_tokens, wide) * (2 if data_pass else 1),
        "loss head": float(chunk * widest * CHUNK_COST) + (0 if lora else 4.0 * student.classes * student.hidden),
    }
    if sampler is not None and sampler.writes and teacher is not None:
        parts["student that writes"] = float(0 if wide == 4 else wide * student.parameters)
        if isinstance(sampler, StudentText) and sampler.scrg.corrections:
            of_text = max(len(r.prompt) for r in rows) + sampler.max_new_tokens
            together = min(step_rows * of_text, max(cached_tokens, of_text))
            wide_columns = 2 * sum(m.layers * m.hidden for m in (student, teacher))  # a key and a value, at most hidden
            parts["texts to correct"] = 2.0 * together * wide_columns * wide
        if not live and device.type == "cpu":
            parts["texts that come again"] = float(sampler.holds * sampler.max_new_tokens * teacher.hidden * wide)
    if teacher is not None:
        teacher_runs = live or (sampler is not None and sampler.writes)
        parts["teacher"] = float(wide * (teacher.parameters if teacher_runs else teacher.classes * teacher.hidden))
    return Estimate(parts)


def own_parameters(divergence: TrainableDivergence, classes: int) -> int:
    """The number of parameters that a divergence makes for a vocabulary. None is in memory: they are on `meta`."""
    with torch.device("meta"):
        divergence.prepare(classes, torch.device("meta"))
    return sum(p.numel() for p in divergence.parameters())


def check_own_parameters(divergence: Divergence, student: Shape, lora: LoraConfig | None, teacher: Shape) -> None:
    """Refuse a divergence whose own parameters do not fit beside the two models.

    Args:
        divergence: its parameters must not exist yet, or be on `meta`.
        student: the shape of the model that is trained.
        lora: the adapters that are trained in place of all weights.
        teacher: the shape of the teacher.

    Raises:
        UserError: with the width that fits, if it has a width.
    """
    if not isinstance(divergence, TrainableDivergence):
        return
    count, memory = own_parameters(divergence, min(student.classes, teacher.classes)), total_memory()
    trained = student.lora_parameters(lora.r, lora.targets) if lora else student.parameters
    models = 4.0 * student.parameters + 12.0 * trained + 2.0 * teacher.classes * teacher.hidden
    if not 0 < memory - models < OWN_BYTES * count:
        return
    width = getattr(divergence, "width", None)
    most = int((width or 0) * (memory - models) / (OWN_BYTES * count))
    fits = f"; at most loss.width={most} fits" if most else ""
    raise UserError(
        f"the loss's own {count:,} parameters need {decimal(round(OWN_BYTES * count))} of memory, and"
        f" {decimal(round(memory))} less {decimal(round(models))} for the two models are there{fits}"
    )


def total_memory() -> float:
    """Bytes of memory of the device that a training would run on."""
    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory)
    return float(psutil.virtual_memory().total)


def estimate_signal(teacher: Shape, rows: Sequence[Encoded], precision: str) -> Estimate:
    """Memory and disk space of storing the teacher's hidden states of `rows`. One process does all of it."""
    wide = 2 if precision == "bf16" else 4
    longest = max(len(r.prompt) + len(r.response) for r in rows)
    # Without gradients only one layer's activations are in memory at a time
    parts = {
        "teacher": float(wide * teacher.parameters),
        "activations": float(STORE_BATCH * longest * (10 * teacher.hidden + 4 * teacher.inner) * wide),
    }
    disk = store_bytes(rows, teacher.hidden, wide) + wide * teacher.classes * teacher.hidden
    return Estimate(parts, disk)


def estimate_answers(teacher: Shape, columns: int, precision: str) -> Estimate:
    """Memory of the teacher while it answers.

    Args:
        columns: `batch_tokens`, the columns of the KV cache. In each layer a column holds a key and a value, each at
            most as wide as the hidden states.
    """
    wide = 2 if precision == "bf16" else 4
    parts = {
        "teacher": float(wide * teacher.parameters),
        "keys and values": float(columns * teacher.layers * 2 * teacher.hidden * wide),
    }
    return Estimate(parts)


def _activations(student: Shape, tokens: int, wide: int) -> float:
    """Bytes that a micro-batch of `tokens` tokens, padding included, keeps for the backward pass.

    Each token needs in each layer about 10 times the hidden width for norms, residuals and attention, and about 4 times
    the MLP's inner width. Under bf16 norms and residuals stay in fp32.

    Args:
        wide: bytes of a number: 2 for bf16, 4 for fp32.
    """
    return float(tokens * student.layers * (10 * student.hidden + 4 * student.inner) * (4 if wide == 4 else 3))


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def span(seconds: float) -> str:
    """`40 s`, `12 min` or `2.5 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
