"""BERTScore F1 of responses (Zhang et al. 2020) by the bert-score package."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

from distill.base import hub
from distill.base.errors import UserError
from distill.config.evaluation import WHEEL, BertScoreConfig
from distill.data.examples import folder_hash
from distill.models.checkpoint import examine_encoder
from distill.models.folders import TOKENIZER, determining_files, weight_files

CHUNK = 1000  # responses scored in one call, which holds the embeddings of all its texts in memory
BATCH = 64
UNLIMITED = 10**6  # transformers has a huge number where a tokenizer names no limit


def metric_name(config: BertScoreConfig) -> str:
    """`bertscore:roberta-large`: scores of different encoders are different metrics."""
    return f"bertscore:{encoder_name(config)}"


def encoder_name(config: BertScoreConfig) -> str:
    """The encoder's hub id, or a folder's name and the start of its content hash; then `@layer` if it is set."""
    place = Path(config.encoder or "").expanduser()
    name = f"{place.name}-{_content(place)[:6]}" if place.is_dir() else config.encoder
    return f"{name}{f'@{config.layers}' if config.layers else ''}"


@lru_cache
def _content(folder: Path) -> str:
    return folder_hash(folder, determining_files(folder))


def locate(config: BertScoreConfig) -> str:
    """The encoder's folder or hub id.

    Raises:
        UserError: the wheel that it is named after is not installed.
    """
    assert config.encoder is not None
    if config.encoder != WHEEL:
        return config.encoder
    spec = importlib.util.find_spec(WHEEL.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"eval.bertscore.encoder={WHEEL} is a wheel that is not installed; run make encoder, or name a hub encoder"
            " such as roberta-large, or set eval.bertscore.encoder=null to leave BERTScore out"
        )
    return str(Path(spec.submodule_search_locations[0]) / "model")


def check(config: BertScoreConfig) -> None:
    """Check that the encoder is available and sound, without loading it.

    Raises:
        UserError: it is not available, with the alternatives; its weights or its tokenizer are damaged, or nothing says
            how long a text it reads.
    """
    place = locate(config)
    if Path(place).is_dir():
        if config.encoder != WHEEL:
            _check_folder(Path(place))
        _check_layers(config, place)
        return
    try:
        hub.refuse_missing_folder(place)
    except UserError as error:
        raise UserError(f"eval.bertscore.encoder={error}") from None
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        cached = Path(hf_hub_download(place, "config.json")).parent
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        problem, alternatives = hub.problems(place, None, "model", error)
        message = f"eval.bertscore.encoder={place}: {problem}, or set it to {WHEEL} (make encoder) or null"
        raise UserError([message, alternatives]) from None
    if constants.HF_HUB_OFFLINE and not (weight_files(cached) and any(any(cached.glob(name)) for name in TOKENIZER)):
        raise UserError(
            f"eval.bertscore.encoder={place}: the hub's cache has its config.json and not its weights and"
            f" tokenizer; run first: hf download {place}"
        )


def _check_layers(config: BertScoreConfig, place: str) -> int:
    """The number of an encoder's layers.

    Raises:
        UserError: the config asks for a deeper one.
    """
    from transformers import AutoConfig

    deepest = int(AutoConfig.from_pretrained(place).num_hidden_layers)
    if config.layers is not None and config.layers > deepest:
        raise UserError(f"eval.bertscore.layers={config.layers}: {config.encoder} has {deepest}")
    return deepest


@cache
def _check_folder(folder: Path) -> None:
    try:
        examine_encoder(folder)
        _limit(folder)
    except UserError as error:
        raise UserError([f"eval.bertscore.encoder: {problem}" for problem in error.problems]) from None


def _limit(folder: str | Path) -> int:
    """The most tokens of a text that an encoder reads: what its tokenizer says, else its number of positions.

    Raises:
        UserError: neither says it.
    """
    from transformers import AutoConfig, AutoTokenizer

    named = AutoTokenizer.from_pretrained(folder).model_max_length
    settings = AutoConfig.from_pretrained(folder)
    positions = getattr(settings, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        if named < UNLIMITED:
            return int(named)
        raise UserError(
            f"{folder}: neither tokenizer_config.json (model_max_length) nor config.json (max_position_embeddings) says"
            " how many tokens the encoder reads; add model_max_length"
        )
    # RoBERTa's positions begin behind the padding id
    readable = positions - (settings.pad_token_id + 1 if "roberta" in settings.model_type else 0)
    return int(min(named, readable))


class BertScorer:
    """Computes BERTScore with one encoder, which is loaded once.

    Args:
        config: if `layers` is None, the layer is the one that the package recommends for a known encoder, and the last
            one for another encoder.

    Raises:
        UserError: the encoder has fewer layers than `layers`.
    """

    def __init__(self, config: BertScoreConfig):
        from bert_score import BERTScorer
        from bert_score.utils import model2layers

        from distill.models.load import quiet_transformers

        quiet_transformers()
        place = locate(config)
        deepest = _check_layers(config, place)
        layers = config.layers or model2layers.get(place, deepest)
        self._scorer = BERTScorer(place, num_layers=layers, batch_size=BATCH)
        self._scorer._tokenizer.model_max_length = _limit(place)

    def score(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """F1 of each prediction, 0 to 100, without idf weights and without rescaling.

        A prediction's score is the largest over its references. An empty text has no embeddings, so it scores 0.
        """
        scores = [0.0] * len(predictions)
        full = [
            (index, text, nonempty)
            for index, (text, of_text) in enumerate(zip(predictions, references, strict=True))
            if text.strip() and (nonempty := [reference for reference in of_text if reference.strip()])
        ]
        for begin in range(0, len(full), CHUNK):
            indices, texts, targets = zip(*full[begin : begin + CHUNK], strict=True)
            _, _, f1 = self._scorer.score(list(texts), list(targets), batch_size=BATCH)
            for index, value in zip(indices, f1.tolist(), strict=True):
                scores[index] = 100.0 * value
        return scores
