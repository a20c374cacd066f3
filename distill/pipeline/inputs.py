"""What a process reads once, however many configs ask for it: data sets, templates, encoded rows."""

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
_READ: dict[tuple[str, str], Any] = {}


def once(kind: str, determinants: Any, read: Callable[[], T]) -> T:
    """What `read` gives; a second call with the same determinants (a JSON value) gives the same object."""
    at = kind, digest(determinants)
    if at not in _READ:
        _READ[at] = read()
    result: T = _READ[at]
    return result


def train_and_valid(config: Config) -> tuple[Dataset, Dataset]:
    """Training and validation sets."""
    named = _source(config.data) | config.data.model_dump(mode="json", include={"train", "valid"})
    return once("training", named, lambda: sets.train_and_valid(config))


def evaluation_sets(config: Config) -> dict[str, Dataset]:
    """The evaluation sets that a config names, by name; a set that two configs name is read once."""
    wanted = config.eval.sets or list(config.data.eval)
    read: dict[str, Dataset] = {}
    missing = []
    for name in wanted:
        at = "evaluation", digest(_set_source(config, name))
        if at in _READ:
            read[name] = _READ[at]
        else:
            missing.append(name)
    if missing:
        only = config.model_copy(update={"eval": config.eval.model_copy(update={"sets": missing})})
        for name, dataset in sets.evaluation(only).items():
            _READ["evaluation", digest(_set_source(config, name))] = read[name] = dataset
    return {name: read[name] for name in wanted}


def _set_source(config: Config, name: str) -> dict[str, Any]:
    own = config.data.eval[name].model_dump(mode="json")
    return _source(config.data) | {"name": name, "set": own, "smoke": config.debug.smoke}


def pretraining(config: Config) -> list[str]:
    """The texts of the plain-text corpus; none if there is none."""
    named = _source(config.data) | config.data.model_dump(mode="json", include={"pretrain"})
    return once("pretraining", named, lambda: sets.pretraining(config.data))


def _source(data: DataConfig) -> dict[str, Any]:
    return data.model_dump(mode="json", include={"root", "generator"})


def template_hash(data: DataConfig) -> str:
    """Hash of the prompt template's two texts."""
    return digest([data.template.without_input, data.template.with_input])


def tokenizer(weights: Weights) -> Any:
    """The tokenizer beside weights."""
    return once("tokenizer", [weights.base, weights.revision], lambda: load_tokenizer(weights))


def training_rows(config: Config, weights: Weights, dataset: Dataset) -> EncodedSet:
    """A set's prompts with their responses as a model's tokenizer encodes them for training."""
    limits = config.train.model_dump(include={"max_length", "max_prompt_length", "overlong_prompt"})
    own = tokenizer(weights)
    # A trained model has a copy of its base's tokenizer: what it does counts, not where it lies
    vocabulary = once("vocabulary", [weights.base, weights.revision], lambda: digest(_behaviour(own)))
    named = [vocabulary, template_hash(config.data), limits, dataset.fingerprint]

    def encode() -> EncodedSet:
        return training_encoder(config, own).pairs(dataset.examples, config.train.max_length)

    return once("rows", named, encode)


def _behaviour(own: Any) -> list[Any]:
    """All that a tokenizer's encodings depend on."""
    backend = getattr(own, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else [sorted(own.get_vocab().items()), repr(own)]
    return [type(own).__name__, content, own.bos_token_id, own.eos_token_id]
