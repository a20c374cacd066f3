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
    every = [gram for text in texts for gram in ngrams(text, n)]
    return 100.0 * len(set(every)) / len(every) if every else 0.0


def ngrams_per_text(texts: Sequence[str], n: int) -> dict[str, float]:
    """Repetition inside a text: means over `texts` of what MGSR appendix E.1 counts in one sentence.

    Returns:
        `total`, the n-grams of words of a text; `unique`, the different ones of them; `distinct`, the percentage of
        different ones, a mean over the texts that have an n-gram. Each is 0 without such a text.
    """
    counts = [(len(grams), len(set(grams))) for grams in (ngrams(text, n) for text in texts)]
    shares = [100.0 * unique / total for total, unique in counts if total]
    return {
        "total": sum(total for total, _ in counts) / max(1, len(counts)),
        "unique": sum(unique for _, unique in counts) / max(1, len(counts)),
        "distinct": sum(shares) / max(1, len(shares)),
    }


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """The n-grams of a text's words, in order."""
    tokens = words(text)
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))
