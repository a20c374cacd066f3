"""The schema of every config group. An unknown key, a wrong type or a value out of range is an error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

if TYPE_CHECKING:
    from distill.samplers import Sampler

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Schedule = Literal["cosine", "linear", "constant"]
Overlong = Literal["drop", "cut", "cut_right"]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
TrainSeed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy takes


class Section(BaseModel):
    """A config section: no unknown keys, no silent conversions, read-only."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class LoraConfig(Section):
    """Low-rank adapters (peft) for teacher and student."""

    r: Count
    alpha: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)]
    targets: list[str]


class WeightsConfig(Section):
    """Where one model's weights come from: exactly one of `id`, `hidden` (from scratch) and `keep_layers`.

    `path` supplies a finished checkpoint (a folder, or a hub id with `@revision`) in place of a trained one.
    """

    id: str | None = None
    revision: str = "main"
    path: str | None = None
    layers: Count | None = None
    hidden: Count | None = None
    heads: Count | None = None
    keep_layers: Count | None = None

    @model_validator(mode="after")
    def _one_source(self) -> WeightsConfig:
        if sum(x is not None for x in (self.id, self.hidden, self.keep_layers)) != 1:
            raise ValueError("needs exactly one of id (pretrained), hidden (from scratch) and keep_layers (pruned)")
        if self.hidden is not None and (self.layers is None or self.heads is None or self.hidden % self.heads):
            raise ValueError("from scratch needs layers, hidden and heads, with hidden a multiple of heads")
        return self


class ModelConfig(Section):
    """A teacher-student pair."""

    name: str
    architecture: Literal["gpt2", "opt", "llama"]
    tokenizer: Literal["gpt2", "opt", "llama"]
    source: Literal["hub", "wheel", "scratch"]
    lora: LoraConfig | None
    teacher: WeightsConfig
    student: WeightsConfig
    vocab_size: Count | None = None

    @model_validator(mode="after")
    def _sources(self) -> ModelConfig:
        if (self.source == "scratch") != (self.vocab_size is not None):
            raise ValueError("source=scratch and vocab_size go together")
        if self.teacher.keep_layers is not None:
            raise ValueError("keep_layers is for the student, which is cut out of the teacher")
        if self.source == "wheel" and self.name != "smollm2":
            raise ValueError(f"source=wheel holds SmolLM2 only, not {self.name}; use model.source=hub")
        return self


class SplitConfig(Section):
    """One set of examples: a hub file (dataset id, revision, rows `a:b`) or a local one, and which of its rows.

    First those with references of `min_words` words and more, then a fixed choice of `sample`, then skip and limit.
    """

    title: str | None = None
    hub: str | None = None
    hub_file: str | None = None
    hub_rows: Annotated[str, Field(pattern=r"^\d*:\d*$")] = ":"
    revision: str = "main"
    file: str | None = None
    min_words: Count | None = None
    sample: Count | None = None
    skip: Annotated[int, Field(ge=0)] = 0
    limit: Count | None = None
    expected: Count | None = None


class PretrainConfig(Section):
    """A plain-text corpus, on the hub or local: JSONL or parquet with `text`, or `.txt` with blank lines between."""

    hub: str | None = None
    hub_file: str | None = None
    revision: str = "main"
    file: str | None = None
    limit: Count | None = None

    @model_validator(mode="after")
    def _one_source(self) -> PretrainConfig:
        if (self.file is None) == (self.hub is None or self.hub_file is None):
            raise ValueError("needs either file, or hub and hub_file")
        return self


class GeneratorConfig(Section):
    """Sizes of the generated data set."""

    seed: Seed
    train: Count
    valid: Count
    eval: Count


class DataConfig(Section):
    """Training, validation and evaluation sets and the prompt template."""

    name: str
    title: str
    root: str | None
    template: Literal["alpaca", "short"]
    generator: GeneratorConfig | None = None
    train: SplitConfig
    valid: SplitConfig
    eval: dict[str, SplitConfig]
    pretrain: PretrainConfig | None = None

    @model_validator(mode="after")
    def _root_is_used(self) -> DataConfig:
        if self.generator is not None and self.root is not None:
            raise ValueError(f"root={self.root} has no effect on generated data; choose data=jsonl or data=dolly")
        return self


class StageTrainConfig(Section):
    """Schedule of one training stage; `epochs: 0` leaves it out (student start only).

    `schedule` and `warmup_steps` are those of `train` if not given.
    """

    lr: Positive
    epochs: Annotated[int, Field(ge=0)]
    global_batch_size: Count
    select: Literal["rouge_l", "loss"]
    schedule: Schedule | None = None
    warmup_steps: Annotated[int, Field(ge=0)] | None = None


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
    warmup_steps: Annotated[int, Field(ge=0)]
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


class BertScoreConfig(Section):
    """The encoder of BERTScore: a hub id, a folder or a wheel's name; None measures none.

    `layers`: which layer is read; None is the package's choice, or the last of an encoder that it does not know.
    """

    encoder: str | None
    layers: Count | None = None


class JudgeConfig(Section):
    """A judge model over the OpenAI-compatible interface (OPENAI_BASE_URL, OPENAI_API_KEY); None is none.

    `price`: dollars for a million tokens read and written; `timeout` in seconds.
    """

    model: str | None = None
    max_tokens: Count = 16
    parallel: Count = 4
    requests_per_minute: Positive | None = None
    timeout: Positive = 120.0
    price: Annotated[list[NotNegative], Field(min_length=2, max_length=2)] | None = None


class BenchmarksConfig(Section):
    """lm-eval's: a folder of task files of one's own, the first so many questions of each task, rows at a time."""

    tasks: str | None = None
    limit: Count | None = None
    batch_size: Count = 16


class EvalConfig(Section):
    """What is generated and measured."""

    sets: list[str] | None
    max_new_tokens: Count
    do_sample: bool
    temperature: Positive
    top_p: Fraction
    top_k: Annotated[int, Field(ge=0)]
    no_repeat_ngram_size: Annotated[int, Field(ge=0)] = 0
    num_beams: Count = 1
    overlong_prompt: Overlong
    batch_tokens: Count
    engine: Literal["transformers", "vllm"] = "transformers"
    bertscore: BertScoreConfig = BertScoreConfig(encoder=None)
    judge: JudgeConfig = JudgeConfig()
    benchmarks: BenchmarksConfig = BenchmarksConfig()

    @model_validator(mode="after")
    def _decoding(self) -> EvalConfig:
        if self.num_beams > 1 and self.do_sample:
            raise ValueError(f"num_beams={self.num_beams} searches, it does not sample; set do_sample=false")
        if self.engine == "vllm" and (self.no_repeat_ngram_size or self.num_beams > 1):
            raise ValueError("engine=vllm has no no_repeat_ngram_size and no num_beams; take engine=transformers")
        return self


class RegisteredConfig(Section):
    """A registered class by name; further keys are its own parameters."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)

    name: str

    @property
    def parameters(self) -> dict[str, Any]:
        """The class's own parameters."""
        return dict(self.model_extra or {})

    @property
    def switches(self) -> dict[str, Any]:
        """Those of them that choose between ours and published code, at ours."""
        raise NotImplementedError

    @property
    def chosen(self) -> dict[str, Any]:
        """The parameters that tell it apart: a switch counts where it is on."""
        off = self.switches
        return {k: v for k, v in self.parameters.items() if k not in off or v != off[k]}


class LossConfig(RegisteredConfig):
    """Objective `w_ce * CE + w_kd * divergence`; further keys are the divergence's own parameters.

    `w_lm` weighs the cross-entropy of `data.pretrain`, where that is given.
    """

    w_ce: NotNegative
    w_kd: NotNegative
    temperature: Positive
    w_lm: NotNegative = 1.0

    @property
    def switches(self) -> dict[str, Any]:
        """See the base class."""
        from distill.losses import switches

        return {} if self.name == "sft" else switches(self.name)

    @property
    def determining(self) -> dict[str, Any]:
        """All that a result depends on."""
        declared = self.model_dump(exclude_defaults=True, include=set(type(self).model_fields))
        return {**declared, **self.chosen}

    @model_validator(mode="after")
    def _known(self) -> LossConfig:
        from distill.losses import build, describe

        if self.w_ce == 0 and self.w_kd == 0:
            raise ValueError("w_ce and w_kd are both 0; at least one must be larger")
        if self.name == "sft":
            if self.w_kd or self.parameters:
                raise ValueError("sft has no divergence: w_kd must be 0 and nothing but w_ce is set")
            return self
        describe(self.name)
        build(self.name, **self.parameters)
        return self


class SamplerConfig(RegisteredConfig):
    """Where training responses come from; further keys are the sampler's own parameters."""

    @property
    def kind(self) -> type[Sampler]:
        """The sampler's class."""
        from distill.samplers import find

        return find(self.name)

    @property
    def switches(self) -> dict[str, Any]:
        """See the base class."""
        from distill.samplers import switches

        return switches(self.name)

    @property
    def determining(self) -> Any:
        """All that a result depends on."""
        from distill.samplers import build

        idle = build(self.name, **self.parameters).idle()
        acting = {k: v for k, v in self.chosen.items() if k not in idle}
        return {"name": self.name, **acting} if acting else self.name

    @model_validator(mode="after")
    def _known(self) -> SamplerConfig:
        from distill.samplers import build

        build(self.name, **self.parameters)
        return self


class MethodConfig(Section):
    """A named bundle of loss and sampler."""

    name: str | None


class PresetConfig(Section):
    """Which of the published code's quirks are on; the files of losses and samplers read theirs from here."""

    name: Literal["clean", "reference"]
    akl_crossing: Literal["head", "tail"]
    ab_lines: Literal["exact", "published"]
    alphanet_alphas: list[float]
    alphanet_per: Literal["token", "batch"]
    fkl_entropy: bool
    jsd_teacher_weight: float
    no_repeat_ngram_size: Annotated[int, Field(ge=0)]
    loss_mean: Literal["tokens", "micro_batches"]
    student_labels: Literal["shifted", "late"] = "shifted"
    student_eos: Literal["kept", "erased"] = "kept"
    student_draw: Literal["fresh", "buffer"] = "fresh"
    adaptive_watched: Literal["objective", "ce"] = "objective"


class TrackerConfig(Section):
    """Where training curves go beside the CSV."""

    name: Literal["csv", "wandb"]
    project: str


class PathsConfig(Section):
    """Folders; everything a run writes lies under `store` and `results`."""

    store: str
    results: str
    shared: str


class DebugConfig(Section):
    """Switches for quick runs."""

    smoke: bool


class Config(Section):
    """A whole run."""

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

    @field_validator("seed", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _loss_and_sampler(self) -> Config:
        from distill.losses.base import find

        loss, sampler = self.loss, self.sampler.name
        rewarded = loss.name != "sft" and find(loss.name).reads_figures
        if self.sampler.kind.writes and not loss.w_kd:
            why = "mixes in the teacher's" if sampler == "rollout" else "trains on the student's own"
            raise ValueError(
                f"sampler={sampler} {why} text, and loss={loss.name} with w_kd=0 has no teacher to learn from; choose a"
                " divergence, or sampler=fixed"
            )
        if rewarded and sampler != "rollout":
            raise ValueError(f"loss={loss.name} reads the rewards of a rollout, which sampler={sampler} does not bring")
        if self.sampler.kind.writes and not self.sampler.kind.reads_data and loss.w_ce:
            raise ValueError(
                f"loss.w_ce={loss.w_ce}: cross-entropy counts on the data set's text, of which sampler={sampler} trains"
                " on none; set it to 0"
            )
        batch, rollouts = self.train.student.global_batch_size, self.sampler.parameters.get("rollouts", 0)
        if rollouts % batch and not self.debug.smoke:
            near = rollouts // batch * batch
            raise ValueError(
                f"sampler.rollouts={rollouts} is no multiple of train.student.global_batch_size={batch}; take"
                f" {near + batch}{f' or {near}' if near else ''}"
            )
        if rewarded and loss.temperature != 1:
            raise ValueError(
                f"loss.temperature={loss.temperature}: {loss.name}'s ratios are those of plain samples, at 1"
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
