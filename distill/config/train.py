"""The sections of `train`: how each stage trains."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from distill.config.section import Count, Natural, NotNegative, Overlong, Positive, Section, TrainSeed

Beta = Annotated[float, Field(ge=0, lt=1)]
Schedule = Literal["cosine", "linear", "constant"]


class StageTrainConfig(Section):
    """How one stage trains: the teacher, the student's start, or the distilled student.

    Attributes:
        lr: peak learning rate.
        epochs: passes over the training set; 0 skips the stage (possible for the student's start only).
        global_batch_size: rows per optimizer step, over all devices and accumulated micro-batches.
        select: the validation score by which the best checkpoint is selected.
        schedule: shape of the learning rate schedule; None is that of `train`.
        warmup_steps: optimizer steps of warm-up; None is that of `train`.
        weight_decay: of AdamW; None is that of `train`.
        betas: AdamW's two; None is 0.9 and 0.999.
        micro_batch_size: see `TrainConfig`; None is that of `train`.
    """

    lr: Positive
    epochs: Natural
    global_batch_size: Count
    select: Literal["rouge_l", "loss"]
    schedule: Schedule | None = None
    warmup_steps: Natural | None = None
    weight_decay: NotNegative | None = None
    betas: Annotated[list[Beta], Field(min_length=2, max_length=2)] | None = None
    micro_batch_size: Count | None = None


class TrainConfig(Section):
    """How models are trained.

    Attributes:
        teacher: fine-tuning of the teacher.
        start: fine-tuning of the student before distillation.
        student: distillation of the student.
        sft: fine-tuning of the student for the row SFT (`loss=sft`); None trains it as `student` says.
        rollout: training of the student on rollouts (MiniLLM); None trains it as `student` says.
        seed: training seed of the distilled student: data order, dropout, new adapters.
        shared_seed: the same for what all students share: random base weights, teacher, student start.
        precision: of the computation in training.
        micro_batch_size: rows of full length (`max_length`) that fit into a forward and backward pass on a device. It
            gives the number of passes, `global_batch_size` over devices and this; grouped by length, a pass may have
            more rows that are shorter.
        weight_decay: of AdamW.
        max_grad_norm: the limit that the gradients' norm is clipped to.
        schedule: shape of the learning rate schedule.
        warmup_steps: optimizer steps of warm-up.
        max_length: maximum number of tokens of prompt and response; longer responses are cut.
        max_prompt_length: maximum number of tokens of a prompt.
        overlong_prompt: what is done with longer prompts (`drop`, `cut`, `cut_right`).
        teacher_signal: `stored` reads the teacher's last hidden states, computed once for all data, from disk; `live`
            runs the teacher on every batch.
        save_steps: optimizer steps between checkpoints, besides the one after every epoch; None is none.
        valid_rows: rows of the validation set that are generated for ROUGE-L after each epoch; None is all.
    """

    teacher: StageTrainConfig
    start: StageTrainConfig
    student: StageTrainConfig
    sft: StageTrainConfig | None = None
    rollout: StageTrainConfig | None = None
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

    def rows_per_pass(self, stage: StageTrainConfig) -> int:
        """The micro-batch size of a stage."""
        return self.micro_batch_size if stage.micro_batch_size is None else stage.micro_batch_size

    @model_validator(mode="after")
    def _lengths(self) -> TrainConfig:
        if self.max_prompt_length >= self.max_length:
            raise ValueError(
                f"max_prompt_length={self.max_prompt_length} leaves no room for a response in"
                f" max_length={self.max_length}"
            )
        for name in ("teacher", "student", "sft", "rollout"):
            stage = getattr(self, name)
            if stage is not None and stage.epochs == 0:
                raise ValueError(
                    f"{name}.epochs must be at least 1; a supplied checkpoint is"
                    f" model.{'teacher' if name == 'teacher' else 'student'}.path"
                )
        return self
