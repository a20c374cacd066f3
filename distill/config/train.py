"""The sections of `train`: how each stage trains."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from distill.config.section import Count, Natural, NotNegative, Overlong, Positive, Section, TrainSeed

Schedule = Literal["cosine", "linear", "constant"]


class StageTrainConfig(Section):
    """Schedule of one training stage; `epochs: 0` leaves it out (student start only).

    `schedule` and `warmup_steps` are those of `train` if not given.
    """

    lr: Positive
    epochs: Natural
    global_batch_size: Count
    select: Literal["rouge_l", "loss"]
    schedule: Schedule | None = None
    warmup_steps: Natural | None = None


class TrainConfig(Section):
    """How models are trained."""

    teacher: StageTrainConfig
    start: StageTrainConfig
    student: StageTrainConfig
    seed: TrainSeed
    shared_seed: TrainSeed
    precision: Literal["fp32", "bf16"]
    micro_batch_size: Count
    weight_decay: NotNegative
    max_grad_norm: Positive
    schedule: Schedule
    warmup_steps: Natural
    max_length: Count
    max_prompt_length: Count
    overlong_prompt: Overlong
    teacher_signal: Literal["stored", "live"]
    save_steps: Count | None
    valid_rows: Count | None

    @model_validator(mode="after")
    def _lengths(self) -> TrainConfig:
        if self.max_prompt_length >= self.max_length:
            raise ValueError(
                f"max_prompt_length={self.max_prompt_length} leaves no room for a response in"
                f" max_length={self.max_length}"
            )
        for name in ("teacher", "student"):
            if getattr(self, name).epochs == 0:
                raise ValueError(f"{name}.epochs must be at least 1; a supplied checkpoint is model.{name}.path")
        return self
