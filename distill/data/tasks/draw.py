"""Helpers with which the tasks draw words and phrasings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from distill.data.world import World

T = TypeVar("T")
Draw = tuple[str, str, list[str]]  # instruction, input, answers


@dataclass(frozen=True)
class Grade:
    """How far the questions of a set are from those of the training set.

    Attributes:
        unseen_phrasing: whether instructions combine a frame and a noun that training never has together.
        unseen_names: whether texts are about people and towns whose names training never has.
        longer: the share of questions with a longer answer than most have.
    """

    unseen_phrasing: bool = False
    unseen_names: bool = False
    longer: float = 0.1


Task = Callable[[np.random.Generator, World, Grade], Draw]


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of `options`, all equally likely."""
    return options[int(rng.integers(len(options)))]


def pick_some(rng: np.random.Generator, options: Sequence[T], count: int) -> list[T]:
    """`count` different ones of `options`, in random order."""
    return [options[int(i)] for i in rng.permutation(len(options))[:count]]


def ask(rng: np.random.Generator, grade: Grade, frames: Sequence[str], *nouns: Sequence[str]) -> str:
    """A frame with a noun in the place of `{x}`, and further ones in that of `{y}`.

    A third of all pairs of a frame and a noun is reserved for unseen phrasings: there every noun makes such a pair with
    the frame, elsewhere none does.

    Args:
        frames: at least three.
        nouns: for each noun of the phrasing at least three that mean the same.
    """
    i = int(rng.integers(len(frames)))
    first, *others = (
        pick(rng, [noun for j, noun in enumerate(same) if ((i + j) % 3 == 2) == grade.unseen_phrasing])
        for same in nouns
    )
    return frames[i].replace("{x}", first).replace("{y}", listed(others) if others else "")


def count(rng: np.random.Generator, grade: Grade, short: Sequence[int], long: int) -> int:
    """How many things an answer has: one of `short`, or `long` for a longer answer."""
    return long if rng.random() < grade.longer else pick(rng, short)


def a(word: str) -> str:
    """The word with its article."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def shuffled(rng: np.random.Generator, answers: Sequence[str]) -> list[str]:
    """The answers with one of them, drawn at random, moved to the front; the weights are 1, 1/2, 1/3, ... in order."""
    weights = 1 / np.arange(1, len(answers) + 1)
    first = int(rng.choice(len(answers), p=weights / weights.sum()))
    return [answers[first], *(x for i, x in enumerate(answers) if i != first)]


def several(draw: Callable[[], str], times: int = 6) -> list[str]:
    """Different answers, each drawn anew: right ones among many more."""
    return list(dict.fromkeys(draw() for _ in range(times)))


def listed(words: Sequence[str]) -> str:
    """The words as an enumeration: `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
