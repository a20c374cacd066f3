"""The sections of the student's objective: `loss`, `sampler`, `method` and `preset`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from distill.base.registry import LOSSES, SAMPLERS, Registry
from distill.config import neutral
from distill.config.reference import ReferenceConfig
from distill.config.section import Count, Natural, NotNegative, Overlong, Positive, Section


class RegisteredConfig(Section):
    """A registered class by name; further keys are its own parameters.

    Attributes:
        registry: where the class is registered.
        name: the class's name there.
    """

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False, defer_build=True)

    registry: ClassVar[Registry[Any]]

    name: str

    @property
    def parameters(self) -> dict[str, Any]:
        """The class's own parameters."""
        return dict(self.model_extra or {})

    @property
    def switches(self) -> dict[str, Any]:
        """The class's switches between this project's behaviour and that of published code, at their defaults."""
        return self.registry.switches(self.name)

    @property
    def chosen(self) -> dict[str, Any]:
        """The parameters that distinguish this choice, for names and hashes; see `Registry.chosen`."""
        return self.registry.chosen(self.name, self.parameters)


class LossOptimizerConfig(Section):
    """How a divergence's own parameters, such as those of a small network, are trained; null is as the student's.

    Attributes:
        lr: the peak learning rate; the schedule's shape and warm-up are the student's.
        weight_decay: of AdamW, on weights (not on biases).
        max_grad_norm: the limit that the norm of their gradients is clipped to, separately from the student's. With
            null they are clipped together with the student's, by one norm.
    """

    lr: Positive | None = None
    weight_decay: NotNegative | None = None
    max_grad_norm: Positive | None = None


AS_STUDENT = LossOptimizerConfig()


class SpanConfig(Section):
    """MGSR's span loss: which tokens of a text belong together, and what the loss divides by.

    Attributes:
        kind: `chunker` for phrases of the text; `adjacent` for all neighbouring tokens, as if the text were one span;
            `random` for chunks between random places, as many as the text has phrases; `none` for no span loss.
        chunker: what finds phrases: `spacy`, `punkt`, `micro` (the phrases of `data=micro`), or a function of the
            user's own as `module:function`, which takes a text and returns (first character, behind the last) of each
            phrase. None is `data.chunker`.
        pipeline: the spaCy pipeline, a package or a folder; None is an English one.
        per: what the distances inside a span are divided by: its `tokens`, as printed, or its `pairs`, one fewer.
        processes: the number of processes beside the training that find the spans of texts that the student writes.
    """

    kind: Literal["none", "adjacent", "random", "chunker"] = "chunker"
    chunker: str | None = None
    pipeline: str | None = None
    per: Literal["tokens", "pairs"] = "tokens"
    processes: Count = 2


PHRASES = SpanConfig()


class LossConfig(RegisteredConfig):
    """Objective `w_ce * CE + w_kd * divergence + w_span * span`; further keys are the divergence's own parameters.

    Attributes:
        w_ce: weight of the cross-entropy on the data set's responses.
        ce_on: what the cross-entropy is computed on where the student writes: `text` for the texts of the batch, of
            which the student's own do not count; `data` for the data set's response to the same prompt.
        w_kd: weight of the divergence.
        w_span: weight of the span loss.
        span: the spans of the span loss.
        temperature: divides the logits of teacher and student in the divergence.
        w_lm: weight of the cross-entropy on the corpus `data.pretrain`, which must be given if the weight is. None is 1
            if there is a corpus.
        w_lm_kd: weight, within that term, of the forward KL to the teacher on the corpus; the cross-entropy has the
            rest.
        optimizer: how the divergence's own parameters are trained.
    """

    registry = LOSSES

    w_ce: NotNegative
    w_kd: NotNegative
    temperature: Positive
    ce_on: Literal["text", "data"] = "text"
    w_span: NotNegative = 0.0
    span: SpanConfig = PHRASES
    w_lm: NotNegative | None = None
    w_lm_kd: Annotated[float, Field(ge=0, le=1)] = 0.0
    optimizer: LossOptimizerConfig = AS_STUDENT

    @property
    def switches(self) -> dict[str, Any]:
        """See the base class. The loss `sft` has no class and no switches."""
        return {} if self.name == "sft" else super().switches

    @property
    def chosen(self) -> dict[str, Any]:
        """See the base class."""
        return {} if self.name == "sft" else super().chosen

    @property
    def corpus_weight(self) -> float:
        """The weight of the corpus term where there is a corpus."""
        return 1.0 if self.w_lm is None else self.w_lm

    @property
    def has_spans(self) -> bool:
        """Whether the span loss is a term of the objective."""
        return bool(self.w_span) and self.span.kind != "none"

    @property
    def determining(self) -> dict[str, Any]:
        """All values that a result depends on, for hashing. The plan adds the chunker (`Plan.spans`)."""
        values = self if self.w_lm is not None else self.model_copy(update={"w_lm": self.corpus_weight})
        kind_and_per = neutral.determining(self.span, exclude={"chunker", "pipeline", "processes"})
        span = {"span": kind_and_per} if self.has_spans else {}
        without = {"span"} if self.has_spans else {"span", "w_span"}
        return {**neutral.determining(values, exclude=without), **span, **self.chosen}

    @model_validator(mode="after")
    def _known(self) -> LossConfig:
        if self.w_ce == 0 and self.w_kd == 0:
            raise ValueError("w_ce and w_kd are both 0; at least one must be positive")
        if self.has_spans and self.w_kd == 0:
            raise ValueError(
                f"w_span={self.w_span}: the span loss compares the student with a teacher, beside a divergence; set"
                " w_kd to more than 0, or w_span to 0"
            )
        if self.name == "sft":
            if self.w_kd or self.parameters or self.optimizer != AS_STUDENT:
                raise ValueError(
                    "sft has no divergence: w_kd must be 0, and parameters of a divergence must not be set"
                )
            return self
        LOSSES.build(self.name, **self.parameters)
        if self.optimizer == AS_STUDENT:
            return self
        from distill.losses.trainable import trainable_names

        if self.name not in (trainable := trainable_names()):
            raise ValueError(
                f"optimizer sets how the loss's own parameters are trained, and loss={self.name} has none; leave it"
                f" out, or choose a loss that has some ({', '.join(trainable)})"
            )
        return self


class SamplerConfig(RegisteredConfig):
    """Where training responses come from; further keys are the sampler's own parameters."""

    registry = SAMPLERS

    @property
    def kind(self) -> Any:
        """The sampler's class, a `distill.samplers.Sampler`."""
        return SAMPLERS.find(self.name)

    @property
    def determining(self) -> Any:
        """All values that a result depends on, for hashing."""
        idle = SAMPLERS.build(self.name, **self.parameters).idle()
        acting = {k: v for k, v in self.chosen.items() if k not in idle}
        return {"name": self.name, **acting} if acting else self.name

    @model_validator(mode="after")
    def _known(self) -> SamplerConfig:
        SAMPLERS.build(self.name, **self.parameters)
        return self


class MethodConfig(Section):
    """A named bundle of loss and sampler.

    Attributes:
        name: the bundle's name; None if loss and sampler were chosen separately.
        corrections: `scrg.corrections` of a sampler that lets the student write, unless it is set.
        reference: what published code ran for it by pair; `preset=reference` adds these overrides to `distill.run`, and
            to a table's row that has no reference recipe of its own.
    """

    name: str | None
    corrections: Natural = 0
    reference: list[ReferenceConfig] = Field(default_factory=list)


class PresetConfig(Section):
    """Which quirks of published code are on; the YAML files of losses, samplers and `eval` read theirs from here.

    Attributes:
        name: `clean` switches all of them off, `reference` on.
        akl_crossing: whether the class that crosses `mu` belongs to AKL's head or tail.
        ab_lines: the alpha-beta divergence where alpha, beta or their sum is 0: exact limits, or as published.
        alphanet_alphas: alpha of AlphaNet's two divergences.
        alphanet_per: whether AlphaNet takes the larger of them per token or per batch.
        fkl_entropy: whether the teacher's entropy is part of the value of forward KL.
        jsd_teacher_weight: the teacher's weight in the Jensen-Shannon divergence.
        no_repeat_ngram_size: length of n-grams that may not occur twice in the evaluation; 0 is off.
        loss_mean: whether the loss is a mean over all tokens of the global batch, or a mean of micro-batch means.
        micro_batch_size: rows of a pass, see `TrainConfig`; with `loss_mean=micro_batches` it changes the result.
        micro_batches: whether the rows of a global batch are put into micro-batches by length, or as they were drawn.
        train_bos: whether training and validation rows begin with the tokenizer's BOS; for evaluation prompts see
            `EvalConfig.bos`.
        train_overlong: what is done with over-long prompts of training rows: see `TrainConfig.overlong_prompt`.
        eval_overlong: what is done with over-long prompts of evaluation sets: see `EvalConfig.overlong_prompt`.
        student_labels: whether labels of text that the student writes in training are shifted, or one position late.
        student_eos: whether EOS is kept in that text, or erased where it is also the pad token.
        student_draw: whether `on_policy` and `mixed` train on text that was just written or on draws from a buffer.
        minillm_own_reward: whether a token's advantage has its own reward, and not only those after it.
        minillm_discount: the factor of a reward for each token that it lies ahead.
        minillm_whitened: whether advantages are whitened over the tokens of a rollout, or over those of each step with
            the padding behind its texts.
        minillm_weighted_kl: whether the closed-form KL has the importance weight.
        minillm_corpus_kd: the share of the forward KL to the teacher in MiniLLM's corpus term.
        adaptive_watched: the validation loss that `adaptive` watches: the objective, or cross-entropy.
    """

    name: Literal["clean", "reference"]
    akl_crossing: Literal["head", "tail"]
    ab_lines: Literal["exact", "published"]
    alphanet_alphas: list[float]
    alphanet_per: Literal["token", "batch"]
    fkl_entropy: bool
    jsd_teacher_weight: float
    no_repeat_ngram_size: Natural
    micro_batch_size: Count
    loss_mean: Literal["tokens", "micro_batches"]
    micro_batches: Literal["by_length", "random"]
    train_bos: Literal["added", "none"]
    train_overlong: Overlong
    eval_overlong: Overlong
    student_labels: Literal["shifted", "late"]
    student_eos: Literal["kept", "erased"]
    student_draw: Literal["fresh", "buffer"]
    minillm_own_reward: bool
    minillm_discount: float
    minillm_whitened: Literal["rollout", "step"]
    minillm_weighted_kl: bool
    minillm_corpus_kd: float
    adaptive_watched: Literal["objective", "ce"]
