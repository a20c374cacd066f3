"""Helpers with which the task kinds draw words and phrasings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from distill.data.world import World

T = TypeVar("T")
Draw = tuple[str, str, list[str]]  # instruction, input, answers
Task = Callable[[np.random.Generator, World, bool], Draw]


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of `options`, all equally likely."""
    return options[int(rng.integers(len(options)))]


def pick_some(rng: np.random.Generator, options: Sequence[T], count: int) -> list[T]:
    """`count` different ones of `options`, in random order."""
    return [options[int(i)] for i in rng.permutation(len(options))[:count]]


def wording(rng: np.random.Generator, unseen: bool, *texts: str) -> str:
    """One of `texts`. The last of them is reserved for evaluation on unseen wordings, and `unseen` returns it."""
    return texts[-1] if unseen else pick(rng, texts[:-1])


def a(word: str) -> str:
    """The word with its article."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def shuffled(rng: np.random.Generator, answers: Sequence[str]) -> list[str]:
    """The answers with one of them, drawn at random, moved to the front; the weights are 1, 1/2, 1/3, ... in order."""
    weights = 1 / np.arange(1, len(answers) + 1)
    first = int(rng.choice(len(answers), p=weights / weights.sum()))
    return [answers[first], *(x for i, x in enumerate(answers) if i != first)]


def listed(words: Sequence[str]) -> str:
    """The words as an enumeration: `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
