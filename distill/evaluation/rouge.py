"""ROUGE-L as the papers report it."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache

from nltk.stem import porter
from rapidfuzz.distance import LCSseq
from rouge_score.scoring import fmeasure
from rouge_score.tokenize import tokenize

EACH = 5_000  # texts for a process at least; python -m bench.rouge: two cores take 0.6 of one's time for 53,430
FORKS = "fork" in multiprocessing.get_all_start_methods()  # other ways to start one run the caller's script again


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


def rouge_l(
    predictions: Sequence[str], references: Sequence[Sequence[str]], processes: int | None = None
) -> list[float]:
    """ROUGE-L F1 with stemming, the largest over a prediction's references, 0 to 100.

    Equal to the rouge-score package's `rougeL` fmeasure times 100, to the last bit.

    Args:
        predictions: one text each.
        references: for each prediction its references, at least one.
        processes: how many score; None is one for every `EACH` texts, at least one and at most one a core.

    Raises:
        ValueError: the two differ in length, a list of references is a plain string, or it is empty.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions and {len(references)} lists of references")
    if any(isinstance(several, str) or not several for several in references):
        raise ValueError("each prediction needs a list of at least one reference text")
    wanted = processes or (min(os.cpu_count() or 1, len(predictions) // EACH) if FORKS else 1)
    count = max(1, min(wanted, len(predictions)))
    if count == 1:
        return _scores(predictions, references)
    size = -(-len(predictions) // count)
    cuts = [slice(begin, begin + size) for begin in range(0, len(predictions), size)]
    with ProcessPoolExecutor(count, multiprocessing.get_context("fork" if FORKS else None)) as pool:
        parts = pool.map(_scores, [predictions[cut] for cut in cuts], [references[cut] for cut in cuts])
        return [score for part in parts for score in part]


def _scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    return [
        100 * max(_score(_words(prediction), _words(text)) for text in several)
        for prediction, several in zip(predictions, references, strict=True)
    ]


def _score(prediction: tuple[str, ...], reference: tuple[str, ...]) -> float:
    if not prediction or not reference:
        return 0.0
    common = LCSseq.similarity(prediction, reference)
    return float(fmeasure(common / len(prediction), common / len(reference)))
