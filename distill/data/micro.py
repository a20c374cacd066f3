"""`data=micro`: an instruction data set generated from a seed, with five evaluation sets that stand for the papers'.

| set | stands for | what it asks |
|---|---|---|
| dolly | Dolly test | the training kinds and wordings, prompts that are held out from training |
| self_inst | Self-Instruct | the training kinds in wordings never trained on |
| vicuna | Vicuna | long free answers, in wordings never trained on |
| sni | Super-Natural | kinds of task never trained on, over the same facts |
| unni | Unnatural | new combinations: two questions at once, choices among given words |
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
from distill.data.world import World, build_world

HELD_OUT = 5  # one of this many prompts is never trained on


class Recipe(NamedTuple):
    """How a set is drawn.

    Attributes:
        kinds: the kinds of task, each with its relative share.
        unseen_wording: whether instructions use the wordings that training never uses.
        held_out: True: only prompts that are held out from training; False: only the others; None: any.
        at_most: maximum number of examples, for kinds with few possible prompts.
    """

    kinds: dict[tasks.Task, float]
    unseen_wording: bool
    held_out: bool | None
    at_most: int | None = None


SETS = {
    "train": Recipe(tasks.SEEN, False, False),
    "valid": Recipe(tasks.SEEN, False, True),
    "dolly": Recipe(tasks.SEEN, False, True),
    "vicuna": Recipe(tasks.LONG, True, None, at_most=60),  # drawn early: there are few such prompts
    "self_inst": Recipe(tasks.SEEN, True, None),
    "sni": Recipe(tasks.RELATED, False, None),
    "unni": Recipe(tasks.UNSEEN, False, None),
}


@lru_cache(maxsize=4)
def generate(sizes: GeneratorConfig) -> dict[str, list[Example]]:
    """All seven sets by name.

    No prompt of the training set is in any other set, and no prompt is in two of the other sets.

    Raises:
        UserError: a set is larger than the number of different questions that were found for it.
    """
    world = build_world(sizes.seed)
    sets: dict[str, list[Example]] = {}
    taken: set[tuple[str, str]] = set()
    for number, (name, recipe) in enumerate(SETS.items(), 1):
        size = min(getattr(sizes, name, sizes.eval), recipe.at_most or sizes.eval + sizes.train + sizes.valid)
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
            references. With None prompts may repeat, and the examples have the first reference only.
    """
    kinds, shares = list(recipe.kinds), np.array(list(recipe.kinds.values()), dtype=float)
    rows: list[tuple[str, str, list[str], str]] = []
    for _ in range(200 * size):
        if len(rows) == size:
            break
        task = kinds[int(rng.choice(len(kinds), p=shares / shares.sum()))]
        instruction, text, answers = task(rng, world, recipe.unseen_wording)
        if recipe.held_out is not None and _held_out(instruction, text) != recipe.held_out:
            continue
        if taken is None:
            rows.append((instruction, text, answers[:1], task.__name__))
        elif (instruction, text) not in taken:
            taken.add((instruction, text))
            rows.append((instruction, text, answers, task.__name__))
    if len(rows) < size:
        raise UserError(f"data.generator: only {len(rows)} different questions for a set of {size}; make it smaller")
    return make_examples(rows)
