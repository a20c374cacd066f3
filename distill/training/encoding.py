"""Training rows and sampling settings, as every stage of a config reads them."""

from __future__ import annotations

from typing import Any

from distill.config.evaluation import EvalConfig
from distill.config.schema import Config
from distill.data.encode import Encoder
from distill.samplers import Sampler


def training_encoder(config: Config, tokenizer: Any) -> Encoder:
    """The encoder of training rows."""
    settings = config.train
    return Encoder(tokenizer, config.data.template, settings.max_prompt_length, settings.overlong_prompt)


def plain_sampling(evaluation: EvalConfig, sampler: Sampler | None = None) -> EvalConfig:
    """Settings that sample plainly, or as a sampler says, within evaluation's bound on memory."""
    names = ("max_new_tokens", "temperature", "top_p", "top_k")
    own = {name: getattr(sampler, name) for name in names} if sampler is not None else {}
    plain = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "no_repeat_ngram_size": 0, "num_beams": 1}
    return evaluation.model_copy(update=plain | own)
