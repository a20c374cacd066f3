"""Data sets, tokenizers and encoded rows, read once per process and shared by all configs that need them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from distill.config.data import DataConfig
from distill.config.schema import Config
from distill.data import sets
from distill.data.encode import EncodedSet
from distill.data.sets import Dataset
from distill.models.load import Weights, load_tokenizer
from distill.pipeline.store import digest
from distill.training.encoding import training_encoder

T = TypeVar("T")
_CACHE: dict[tuple[str, str], Any] = {}


def read_once(kind: str, determinants: Any, read: Callable[[], T]) -> T:
    """The result of `read()`, from a cache of the process if it was read before.

    Args:
        kind: what is read; part of the cache's key.
        determinants: everything that the result depends on, as a JSON value.
        read: called if the cache has no result for this kind and these determinants.
    """
    key = kind, digest(determinants)
    if key not in _CACHE:
        _CACHE[key] = read()
    result: T = _CACHE[key]
    return result


def train_and_valid(config: Config) -> tuple[Dataset, Dataset]:
    """The training set and the validation set."""
    determinants = _source(config.data) | config.data.model_dump(mode="json", include={"train", "valid"})
    return read_once("training", determinants, lambda: sets.train_and_valid(config))


def evaluation_sets(config: Config) -> dict[str, Dataset]:
    """The evaluation sets that a config selects, by name. A set that two configs select is read once."""
    names = config.eval.sets or list(config.data.eval)
    datasets: dict[str, Dataset] = {}
    missing = []
    for name in names:
        key = "evaluation", digest(_set_source(config, name))
        if key in _CACHE:
            datasets[name] = _CACHE[key]
        else:
            missing.append(name)
    if missing:
        missing_only = config.model_copy(update={"eval": config.eval.model_copy(update={"sets": missing})})
        for name, dataset in sets.evaluation(missing_only).items():
            _CACHE["evaluation", digest(_set_source(config, name))] = datasets[name] = dataset
    return {name: datasets[name] for name in names}


def _set_source(config: Config, name: str) -> dict[str, Any]:
    split = config.data.eval[name].model_dump(mode="json")
    return _source(config.data) | {"name": name, "set": split, "smoke": config.debug.smoke}


def pretraining(config: Config) -> list[str]:
    """The texts of the plain-text corpus; an empty list if the config has no corpus."""
    determinants = _source(config.data) | config.data.model_dump(mode="json", include={"pretrain"})
    return read_once("pretraining", determinants, lambda: sets.pretraining(config.data))


def _source(data: DataConfig) -> dict[str, Any]:
    return data.model_dump(mode="json", include={"root", "generator", "fields"})


def template_hash(data: DataConfig) -> str:
    """Hash of the prompt template's two texts."""
    return digest([data.template.without_input, data.template.with_input])


def encoding_hash(config: Config) -> str:
    """Hash of the prompt template and of how training rows are encoded, beside their lengths.

    It is the template's hash alone where the ids are those of before responses continued their prompts and BOS could be
    left out: then the artifacts that were made of them are still found.
    """
    encoding: dict[str, str] = {}
    if config.model.tokenizer == "llama":  # byte-level tokenizers encode prompt and response alike, apart or together
        encoding["responses"] = "continue their prompts"
    if config.preset.train_bos == "none" and config.model.tokenizer != "gpt2":  # which has no BOS
        encoding["bos"] = config.preset.train_bos
    template = template_hash(config.data)
    return digest([template, encoding]) if encoding else template


def tokenizer(weights: Weights) -> Any:
    """The tokenizer that is stored with the weights."""
    return read_once("tokenizer", [weights.base, weights.revision], lambda: load_tokenizer(weights))


def training_rows(config: Config, weights: Weights, dataset: Dataset) -> EncodedSet:
    """A set's prompts and responses, encoded for training with a model's tokenizer."""
    limits = config.train.model_dump(include={"max_length", "max_prompt_length", "overlong_prompt"})
    model_tokenizer = tokenizer(weights)
    # A trained model has a copy of its base's tokenizer. Both encode alike, so the cache's key holds what the tokenizer
    # does and not where it is stored.
    vocabulary = read_once("vocabulary", [weights.base, weights.revision], lambda: digest(_behaviour(model_tokenizer)))
    determinants = [vocabulary, encoding_hash(config), limits, dataset.fingerprint]

    def encode() -> EncodedSet:
        return training_encoder(config, model_tokenizer).pairs(dataset.examples, config.train.max_length)

    return read_once("rows", determinants, encode)


def _behaviour(model_tokenizer: Any) -> list[Any]:
    """Everything that a tokenizer's encodings depend on, as a JSON value."""
    backend = getattr(model_tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = backend.to_str()
    else:
        content = [sorted(model_tokenizer.get_vocab().items()), repr(model_tokenizer)]
    return [type(model_tokenizer).__name__, content, model_tokenizer.bos_token_id, model_tokenizer.eos_token_id]
