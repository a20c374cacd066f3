"""Metrics of texts other than ROUGE-L."""

from __future__ import annotations

from collections.abc import Sequence

from rouge_score.tokenize import tokenize


def words(text: str) -> list[str]:
    """Lower-cased runs of Latin letters and digits, ROUGE's words without stemming."""
    tokens: list[str] = tokenize(text, None)
    return tokens


def exact_match(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """100 for each prediction that equals one of its references, else 0.

    Case, punctuation and white space are ignored, but in a text that has no letters or digits punctuation counts.
    """
    return [
        100.0 * any(_normal(prediction) == _normal(reference) for reference in of_prediction)
        for prediction, of_prediction in zip(predictions, references, strict=True)
    ]


def _normal(text: str) -> str:
    without_punctuation = "".join(c for c in text.lower() if c.isalnum() or c.isspace())
    return " ".join((without_punctuation if without_punctuation.strip() else text).split())


def distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words over all n-grams of `texts` together, 0 to 100; 0 where there are none.

    Li et al. 2016, distinct-n.
    """
    total, unique = ngrams(texts, n)
    return 100.0 * unique / total if total else 0.0


def ngrams(texts: Sequence[str], n: int) -> tuple[int, int]:
    """The number of all n-grams of words of `texts` together, and of different ones."""
    every = [gram for text in texts for gram in zip(*(words(text)[i:] for i in range(n)), strict=False)]
    return len(every), len(set(every))
