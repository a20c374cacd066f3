"""The schema of a whole run. An unknown key, a wrong type or a value out of range is an error."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from distill.base.registry import LOSSES
from distill.config.data import DataConfig
from distill.config.evaluation import EvalConfig
from distill.config.model import ModelConfig
from distill.config.objective import LossConfig, MethodConfig, PresetConfig, SamplerConfig
from distill.config.section import Section, Seed
from distill.config.train import StageTrainConfig, TrainConfig


class TrackerConfig(Section):
    """Where training curves are written besides the CSV files.

    Attributes:
        name: `csv` writes nothing else, `wandb` also logs to Weights & Biases.
        project: the project's name there.
    """

    name: Literal["csv", "wandb"]
    project: str


class PathsConfig(Section):
    """Folders. Everything that a run writes is under `store` and `results`.

    Attributes:
        store: artifacts: weights, generations, logs.
        results: tables and runs; small, kept in git.
        shared: JSONL files for runs without the hub.
    """

    store: Annotated[str, Field(min_length=1)]
    results: Annotated[str, Field(min_length=1)]
    shared: str


class DebugConfig(Section):
    """Switches for quick runs.

    Attributes:
        smoke: whether weights and data are replaced by tiny ones (`distill.config.smoke`).
    """

    smoke: bool


class Config(Section):
    """A whole run. The attributes but the last two are config groups, see `conf/`.

    Attributes:
        data: sets of examples and the prompt template.
        train: how each stage trains.
        eval: what is generated and measured.
        model: the teacher-student pair.
        loss: the objective of the distilled student.
        sampler: where its training responses come from.
        method: the bundle of loss and sampler that was chosen, if any.
        preset: which quirks of published code are on.
        tracker: where training curves are written besides the CSV files.
        paths: folders.
        debug: switches for quick runs.
        seed: generation seeds of the evaluation; a single one may be given as a number.
        plugins: the user's modules that register losses and samplers.
    """

    data: DataConfig
    train: TrainConfig
    eval: EvalConfig
    model: ModelConfig
    loss: LossConfig
    sampler: SamplerConfig
    method: MethodConfig
    preset: PresetConfig
    tracker: TrackerConfig
    paths: PathsConfig
    debug: DebugConfig
    seed: Annotated[list[Seed], Field(min_length=1)]
    plugins: list[str] = Field(default_factory=list)

    @property
    def stage(self) -> Literal["student", "sft", "rollout"]:
        """The section of `train` that says how the student is trained: `sft` or `rollout` for such a row, if given."""
        if not self.loss.w_kd and not self.sampler.kind.asks_teacher and self.train.sft is not None:
            return "sft"
        return "rollout" if self.sampler.name == "rollout" and self.train.rollout is not None else "student"

    @property
    def schedule(self) -> StageTrainConfig:
        """How the student is trained."""
        schedule: StageTrainConfig = getattr(self.train, self.stage)
        return schedule

    @property
    def chunker(self) -> str | None:
        """What finds the phrases of the span loss; None if the loss needs none."""
        if not self.loss.has_spans or self.loss.span.kind == "adjacent":
            return None
        return self.loss.span.chunker or self.data.chunker

    @property
    def scrg_is_greedy(self) -> bool:
        """Whether the teacher corrects with its likeliest token; a sampler without corrections draws it."""
        scrg = self.sampler.parameters.get("scrg") or {}
        return bool(scrg.get("teacher") == "greedy")

    @property
    def missing_corpus(self) -> list[str]:
        """A message if the loss has a corpus term and there is no corpus; otherwise empty.

        It is no part of the check of a config, so that the recipe of a row can be shown without a corpus.
        """
        if not self.loss.w_lm or self.data.pretrain is not None:
            return []
        return [
            f"loss.w_lm={self.loss.w_lm} adds the cross-entropy of a plain-text corpus, and data.pretrain names none;"
            " set data.pretrain.file=FILE (JSONL, parquet or .txt), or data.pretrain.hub=ID and"
            " data.pretrain.hub_file=PATH, or data.pretrain=off to train without this term"
        ]

    @field_validator("seed", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        if isinstance(value, float):
            raise ValueError(f"{value} is no whole number; write seed=[10,20,30]")
        if isinstance(value, str):
            ends = re.fullmatch(r"\[?(\d+)\s*(?:-|:|\.\.)\s*(\d+)\]?", value)
            listed = range(int(ends[1]), int(ends[2]) + 1) if ends else range(10, 31, 10)
            several = ",".join(map(str, listed[:20])) or "10,20,30"
            several += ",..." if len(listed[:21]) > 20 else ""
            raise ValueError(f"{value} is no list of numbers; write seed=[{several}]")
        return [value] if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _loss_and_sampler(self) -> Config:
        loss, sampler = self.loss, self.sampler.name
        rewarded = loss.name != "sft" and LOSSES.find(loss.name).reads_rollout
        if self.sampler.kind.writes and not loss.w_kd:
            why = "mixes in the teacher's" if sampler == "rollout" else "trains on the student's own"
            raise ValueError(
                f"sampler={sampler} {why} text, and loss={loss.name} with w_kd=0 has no teacher to learn from; choose a"
                " divergence, or sampler=fixed"
            )
        if rewarded and sampler != "rollout":
            raise ValueError(
                f"loss={loss.name} reads the rewards of a rollout, which sampler={sampler} does not bring; choose"
                " sampler=rollout"
            )
        if self.sampler.kind.writes and not self.sampler.kind.reads_data and loss.w_ce and loss.ce_on == "text":
            raise ValueError(
                f"loss.w_ce={loss.w_ce}: cross-entropy is computed on the data set's responses only, and"
                f" sampler={sampler} trains on none of them; set it to 0, or loss.ce_on=data for a pass over the data"
                " set's own response to each prompt"
            )
        batch, rollouts = self.schedule.global_batch_size, self.sampler.parameters.get("rollouts", 0)
        if rollouts % batch and not self.debug.smoke:
            near = rollouts // batch * batch
            raise ValueError(
                f"sampler.rollouts={rollouts} is no multiple of the global batch size {batch}; take"
                f" {near + batch}{f' or {near}' if near else ''}"
            )
        if rewarded and loss.temperature != 1:
            raise ValueError(
                f"loss.temperature={loss.temperature}: {loss.name}'s probability ratios are those of plain samples,"
                " drawn at temperature 1; set it to 1"
            )
        return self

    @model_validator(mode="after")
    def _corpus_term(self) -> Config:
        loss, kind = self.loss, self.sampler.kind
        if loss.w_lm and not loss.w_kd and not kind.asks_teacher:
            raise ValueError(
                f"loss.w_lm={loss.w_lm}: the corpus term goes with distillation, and loss={loss.name} has no teacher;"
                " leave it out"
            )
        reads_corpus = kind.writes or self.train.teacher_signal == "live"
        if loss.w_lm_kd and loss.corpus_weight and self.data.corpus is not None and not (loss.w_kd and reads_corpus):
            raise ValueError(
                f"loss.w_lm_kd={loss.w_lm_kd}: forward KL on the corpus needs a divergence from a teacher that runs"
                " during training; set train.teacher_signal=live, or loss.w_lm_kd=0"
            )
        return self

    @model_validator(mode="after")
    def _pruned_for_a_student(self) -> Config:
        if self.data.prune is not None and not self.loss.w_kd:
            raise ValueError(
                f"data.prune.share={self.data.prune.share}: pruning is for a student that learns from a teacher's"
                f" distributions, and loss={self.loss.name} has w_kd=0; leave data.prune out"
            )
        return self

    @model_validator(mode="after")
    def _sets_exist(self) -> Config:
        if len(set(self.seed)) != len(self.seed):
            raise ValueError(f"seed={self.seed} names a seed twice")
        unknown = [name for name in self.eval.sets or [] if name not in self.data.eval]
        if unknown:
            raise ValueError(f"eval.sets names {unknown}, but data={self.data.name} has {sorted(self.data.eval)}")
        return self
