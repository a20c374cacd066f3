"""ROUGE-L as the papers report it, and with tokenizers for other scripts."""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from unicodedata import category

from nltk.stem import porter
from rapidfuzz.distance import LCSseq
from rouge_score.scoring import fmeasure
from rouge_score.tokenize import tokenize

from distill.config.evaluation import RougeTokenizer

# The fewest texts of a process. For 53,430 texts two cores take 0.6 of the time of one (python -m bench.rouge).
EACH = 5_000
# Use fork: spawn and forkserver would re-import the caller's script in every worker.
FORKS = "fork" in multiprocessing.get_all_start_methods()


class _Stemmer:
    """The Porter stemmer with a cache: words repeat, and stemming takes most of ROUGE's time."""

    def __init__(self) -> None:
        self.stem = lru_cache(maxsize=1 << 18)(porter.PorterStemmer().stem)


_STEMMER = _Stemmer()


def _is_of_word(character: str) -> bool:
    return character.isalnum() or category(character)[0] == "M"


TOKENIZERS: dict[RougeTokenizer, Callable[[str], Iterable[str]]] = {
    "english": lambda text: tokenize(text, _STEMMER),
    "words": lambda text: "".join(x if _is_of_word(x) else " " for x in text.lower()).split(),
    "characters": lambda text: "".join(text.lower().split()),
}

# Whether a tokenizer gives any token, without making them
HAS_TOKEN: dict[RougeTokenizer, Callable[[str], bool]] = {
    "english": lambda text: re.search("[a-z0-9]", text.lower()) is not None,
    "words": lambda text: any(map(_is_of_word, text)),
    "characters": lambda text: bool(text.strip()),
}


@lru_cache(maxsize=1 << 16)
def _words(text: str, tokenizer: RougeTokenizer = "english") -> tuple[str, ...]:
    return tuple(TOKENIZERS[tokenizer](text))


def can_score(references: Iterable[Sequence[str]], tokenizer: RougeTokenizer) -> bool:
    """Whether a text could have a score above 0: a reference has a token of this tokenizer."""
    return any(HAS_TOKEN[tokenizer](text) for of_text in references for text in of_text)


def forget() -> None:
    """Clear the caches of words and stems."""
    _words.cache_clear()
    _STEMMER.stem.cache_clear()


def rouge_l(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    processes: int | None = None,
    tokenizer: RougeTokenizer = "english",
) -> list[float]:
    """ROUGE-L F1, the largest over a prediction's references, 0 to 100.

    With the tokenizer `english`, which stems, equal to the rouge-score package's `rougeL` fmeasure times 100, to the
    last bit.

    Args:
        predictions: one text each.
        references: for each prediction its references, at least one.
        processes: the number of processes; by default one for every `EACH` texts, at least one and at most one per
            core.
        tokenizer: what is compared, see `EvalConfig.rouge_tokenizer`.

    Raises:
        ValueError: predictions and references differ in length, or a list of references is empty or a plain string.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions and {len(references)} lists of references")
    if any(isinstance(of_text, str) or not of_text for of_text in references):
        raise ValueError("each prediction needs a list of at least one reference text")
    requested = processes or (min(os.cpu_count() or 1, len(predictions) // EACH) if FORKS else 1)
    count = max(1, min(requested, len(predictions)))
    if count == 1:
        return _scores(predictions, references, tokenizer)
    size = -(-len(predictions) // count)
    cuts = [slice(begin, begin + size) for begin in range(0, len(predictions), size)]
    with ProcessPoolExecutor(count, multiprocessing.get_context("fork" if FORKS else None)) as pool:
        of_cuts = [predictions[cut] for cut in cuts], [references[cut] for cut in cuts], [tokenizer] * len(cuts)
        parts = pool.map(_scores, *of_cuts)
        return [score for part in parts for score in part]


def _scores(predictions: Sequence[str], references: Sequence[Sequence[str]], tokenizer: RougeTokenizer) -> list[float]:
    return [
        100 * max(_score(_words(prediction, tokenizer), _words(text, tokenizer)) for text in of_prediction)
        for prediction, of_prediction in zip(predictions, references, strict=True)
    ]


def _score(prediction: tuple[str, ...], reference: tuple[str, ...]) -> float:
    if not prediction or not reference:
        return 0.0
    common = LCSseq.similarity(prediction, reference)
    return float(fmeasure(common / len(prediction), common / len(reference)))
