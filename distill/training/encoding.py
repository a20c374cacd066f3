"""Encoders and sampling settings, as every stage of a config has them."""

from __future__ import annotations

from typing import Any

from distill.config.evaluation import EvalConfig
from distill.config.schema import Config
from distill.data.encode import Encoder
from distill.samplers import Sampler


def training_encoder(config: Config, tokenizer: Any) -> Encoder:
    """The encoder of training rows."""
    settings = config.train
    bos = config.preset.train_bos == "added"
    return Encoder(tokenizer, config.data.template, settings.max_prompt_length, settings.overlong_prompt, bos)


def evaluation_encoder(config: Config, tokenizer: Any) -> Encoder:
    """The encoder of prompts that responses are generated for in the evaluation."""
    limit, evaluation = config.train.max_prompt_length, config.eval
    return Encoder(tokenizer, config.data.template, limit, evaluation.overlong_prompt, evaluation.bos == "added")


def plain_sampling(evaluation: EvalConfig, sampler: Sampler | None = None) -> EvalConfig:
    """Evaluation settings changed to plain sampling: temperature 1, no top-k, top-p, n-gram ban or beams.

    Args:
        evaluation: gives all other settings, such as `batch_tokens`, which bounds the memory.
        sampler: if given, its length limit, temperature, top-p and top-k are used.
    """
    names = ("max_new_tokens", "temperature", "top_p", "top_k")
    of_sampler = {name: getattr(sampler, name) for name in names} if sampler is not None else {}
    plain = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "no_repeat_ngram_size": 0, "num_beams": 1}
    return evaluation.model_copy(update=plain | of_sampler)
