"""ROUGE-L as the papers report it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from nltk.stem import porter
from rapidfuzz.distance import LCSseq
from rouge_score.scoring import fmeasure
from rouge_score.tokenize import tokenize


class _Stemmer:
    """The Porter stemmer that remembers: text repeats its words, and stemming is most of ROUGE's time."""

    def __init__(self) -> None:
        self.stem = lru_cache(maxsize=1 << 18)(porter.PorterStemmer().stem)


_STEMMER = _Stemmer()


@lru_cache(maxsize=1 << 16)
def _words(text: str) -> tuple[str, ...]:
    return tuple(tokenize(text, _STEMMER))


def forget() -> None:
    """Drop the words and stems that are kept from earlier texts."""
    _words.cache_clear()
    _STEMMER.stem.cache_clear()


def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """ROUGE-L F1 with stemming, the largest over a prediction's references, 0 to 100.

    Equal to the rouge-score package's `rougeL` fmeasure times 100, to the last bit.

    Args:
        predictions: one text each.
        references: for each prediction its references, at least one.

    Raises:
        ValueError: the two differ in length, a list of references is a plain string, or it is empty.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions and {len(references)} lists of references")
    scores = []
    for prediction, several in zip(predictions, references, strict=True):
        if isinstance(several, str) or not several:
            raise ValueError("each prediction needs a list of at least one reference text")
        scores.append(100 * max(_score(_words(prediction), _words(text)) for text in several))
    return scores


def _score(prediction: tuple[str, ...], reference: tuple[str, ...]) -> float:
    if not prediction or not reference:
        return 0.0
    common = LCSseq.similarity(prediction, reference)
    return float(fmeasure(common / len(prediction), common / len(reference)))
