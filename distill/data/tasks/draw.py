"""What the task kinds draw with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from distill.data.world import World

T = TypeVar("T")
Draw = tuple[str, str, list[str]]
Task = Callable[[np.random.Generator, World, bool], Draw]


def one(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of `options`."""
    return options[int(rng.integers(len(options)))]


def some(rng: np.random.Generator, options: Sequence[T], count: int) -> list[T]:
    """`count` different ones, in random order."""
    return [options[int(i)] for i in rng.permutation(len(options))[:count]]


def wording(rng: np.random.Generator, unseen: bool, *texts: str) -> str:
    """One of `texts`; the last of them is kept for evaluation on unseen wordings."""
    return texts[-1] if unseen else one(rng, texts[:-1])


def a(word: str) -> str:
    """The word with its article."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def shuffled(rng: np.random.Generator, answers: Sequence[str]) -> list[str]:
    """The answers with a random one first, earlier phrasings being likelier (1, 1/2, 1/3, ...)."""
    weights = 1 / np.arange(1, len(answers) + 1)
    first = int(rng.choice(len(answers), p=weights / weights.sum()))
    return [answers[first], *(x for i, x in enumerate(answers) if i != first)]


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
