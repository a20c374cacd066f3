"""`data=micro`: an instruction data set generated from a seed, with five evaluation sets that stand for the papers'.

| set | stands for | how far it is from the training set |
|---|---|---|
| dolly | Dolly test | its phrasings, names and lengths, in prompts that training never has |
| self_inst | Self-Instruct | instructions combine words that training never has together |
| vicuna | Vicuna | longer answers, as one in ten of training |
| sni | Super-Natural | texts about people and towns whose names training never has |
| unni | Unnatural | all of these at once, in half of the questions a longer answer |

Every set has Dolly's eight topics but sni, which has the four whose texts name people and towns.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from distill.base.errors import UserError
from distill.config.data import GeneratorConfig
from distill.data import tasks
from distill.data.examples import Example, make_examples
from distill.data.tasks import Grade
from distill.data.world import World, build_world

HELD_OUT = 5  # one of this many prompts is never trained on


class Recipe(NamedTuple):
    """How a set is drawn.

    Attributes:
        tasks: its tasks, each with its relative share.
        grade: how far its questions are from those of the training set.
    """

    tasks: dict[tasks.Task, float]
    grade: Grade


SETS = {
    "train": Recipe(tasks.TASKS, Grade()),
    "valid": Recipe(tasks.TASKS, Grade()),
    "dolly": Recipe(tasks.TASKS, Grade()),
    "self_inst": Recipe(tasks.TASKS, Grade(unseen_phrasing=True)),
    "vicuna": Recipe(tasks.TASKS, Grade(longer=1.0)),
    "sni": Recipe(tasks.WITH_NAMES, Grade(unseen_names=True)),
    "unni": Recipe(tasks.TASKS, Grade(unseen_phrasing=True, unseen_names=True, longer=0.5)),
}


@lru_cache(maxsize=4)
def generate(sizes: GeneratorConfig) -> dict[str, list[Example]]:
    """All seven sets by name.

    No prompt of the training set is in any other set, and no prompt is in two of the other sets.

    Raises:
        UserError: a set is larger than the number of different questions that were found for it.
    """
    world = build_world(sizes.seed, sizes.people, sizes.towns, sizes.names)
    sets: dict[str, list[Example]] = {}
    taken: set[tuple[str, str]] = set()
    for number, (name, recipe) in enumerate(SETS.items(), 1):
        size = getattr(sizes, name, sizes.eval)
        rng = np.random.default_rng([sizes.seed, number])
        if name == "train":
            sets[name] = _draw(rng, world, recipe, size, None)
        else:
            sets[name] = _draw(rng, world, recipe, size, taken)
    return sets


def _held_out(instruction: str, text: str) -> bool:
    return hashlib.sha256(f"{instruction}\n{text}".encode()).digest()[0] % HELD_OUT == 0


def _draw(
    rng: np.random.Generator, world: World, recipe: Recipe, size: int, taken: set[tuple[str, str]] | None
) -> list[Example]:
    """`size` examples.

    Args:
        taken: prompts of other sets, which are not drawn again; the new prompts are added. The examples have all
            references. With None the set is the training set: prompts may repeat, and the examples have the first
            reference only.
    """
    choices, shares = list(recipe.tasks), np.array(list(recipe.tasks.values()), dtype=float)
    rows: list[tuple[str, str, list[str], str]] = []
    for _ in range(200 * size):
        if len(rows) == size:
            break
        task = choices[int(rng.choice(len(choices), p=shares / shares.sum()))]
        instruction, text, answers = task(rng, world, recipe.grade)
        if _held_out(instruction, text) != (taken is not None):
            continue
        if taken is None:
            rows.append((instruction, text, answers[:1], task.__name__))
        elif (instruction, text) not in taken:
            taken.add((instruction, text))
            rows.append((instruction, text, answers, task.__name__))
    if len(rows) < size:
        raise UserError(f"data.generator: only {len(rows)} different questions for a set of {size}; make it smaller")
    return make_examples(rows)
