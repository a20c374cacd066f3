"""What is counted of texts beside ROUGE-L."""

from __future__ import annotations

from collections.abc import Sequence

from rouge_score.tokenize import tokenize


def words(text: str) -> list[str]:
    """Lower-cased runs of Latin letters and digits, ROUGE's words without stemming."""
    found: list[str] = tokenize(text, None)
    return found


def exact_match(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """100 where a prediction equals one of its references but for case, punctuation and white space, else 0.

    Of a text that is nothing but signs they count."""
    return [
        100.0 * any(_normal(prediction) == _normal(one) for one in several)
        for prediction, several in zip(predictions, references, strict=True)
    ]


def _normal(text: str) -> str:
    kept = "".join(c for c in text.lower() if c.isalnum() or c.isspace())
    return " ".join((kept if kept.strip() else text).split())  # signs alone are the answer


def distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words over all n-grams of `texts` together, 0 to 100; 0 where there are none.

    Li et al. 2016, distinct-n.
    """
    found = [gram for text in texts for gram in zip(*(words(text)[i:] for i in range(n)), strict=False)]
    return 100.0 * len(set(found)) / len(found) if found else 0.0
