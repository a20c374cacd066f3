"""General knowledge, arithmetic, lists and classes."""

from __future__ import annotations

from itertools import product

import numpy as np

from distill.data.tasks.draw import Draw, Grade, a, ask, count, listed, pick, pick_some, several, shuffled
from distill.data.world import ANIMALS, COLOURS, FOODS, JOBS, NUMBERS, PRODUCTS, World

ANIMAL_FACTS = {
    ("home", "place", "land"): (1, "The {w} lives in the {f}.", "The home of the {w} is the {f}."),
    ("food", "meal", "diet"): (2, "The {w} eats {f}.", "The food of the {w} is {f}."),
    ("sound", "call", "voice"): (3, "The {w} {f}.", "You hear how the {w} {f}."),
}
CLASSES = [{animal: facts[0] for animal, facts in ANIMALS.items()}, FOODS]
POOLS: dict[str, list[str]] = {
    "colours": COLOURS,
    "jobs": JOBS,
    "foods": sorted(FOODS),
    "wares": PRODUCTS,
    **{f"{c}s": [x for x, f in sorted(ANIMALS.items()) if f[0] == c] for c in ("mammal", "bird")},
    "farm animals": [x for x, f in sorted(ANIMALS.items()) if f[1] in ("farm", "house", "field")],
    "water animals": [x for x, f in sorted(ANIMALS.items()) if f[1] in ("lake", "sea", "river")],
}


def general_qa(rng: np.random.Generator, world: World, grade: Grade) -> Draw:
    """A fact about one or (longer) three animals, or a sum."""
    animals = count(rng, grade, (0, 1), 3)
    if animals == 0:
        x, y = (int(v) for v in rng.integers(2, 30, size=2))
        question = ask(
            rng,
            grade,
            ("What is {x}?", "Work out {x}.", "Tell me {x}."),
            (f"{x} + {y}", f"{x} plus {y}", f"{y} and {x}"),
        )
        return question, "", shuffled(rng, [f"{x} + {y} is {x + y}.", f"The sum is {x + y}."])
    words = pick_some(rng, sorted(ANIMALS), animals)
    nouns = pick(rng, list(ANIMAL_FACTS))
    place, *forms = ANIMAL_FACTS[nouns]
    frames = ("What is the {x} of {w}?", "Tell me the {x} of {w}.", "Do you know the {x} of {w}?")
    question = ask(rng, grade, frames, nouns).replace("{w}", listed([f"the {w}" for w in words]))
    sentences = [[f.format(w=w, f=ANIMALS[w][place]) for f in forms] for w in words]
    return question, "", shuffled(rng, [" ".join(parts) for parts in product(*sentences)])


def brainstorming(rng: np.random.Generator, world: World, grade: Grade) -> Draw:
    """Two, three or (longer) five things of a kind for somebody: many right answers."""
    what = pick(rng, sorted(POOLS))
    number = count(rng, grade, (2, 3), 5)
    name = pick(rng, (world.unseen if grade.unseen_names else world.strangers)[0])
    frames = ("Name {k} {x} for {n}.", "Give {n} {k} {x}.", "{n} needs {k} {x}.")
    question = ask(rng, grade, frames, (what, f"good {what}", f"other {what}"))
    question = question.replace("{k}", NUMBERS[number]).replace("{n}", name)
    forms = (f"{NUMBERS[number].capitalize()} {what} are {{}}.", "There are {}.")
    answers = several(lambda: pick(rng, forms).format(listed(pick_some(rng, POOLS[what], number))), 12)
    return question, "", answers


def classification(rng: np.random.Generator, world: World, grade: Grade) -> Draw:
    """The class of one or (longer) three animals or foods."""
    classes = pick(rng, CLASSES)
    words = pick_some(rng, sorted(classes), count(rng, grade, (1, 1, 2), 3))
    needed = {classes[word] for word in words}
    others = pick_some(rng, sorted(set(classes.values()) - needed), max(0, 4 - len(needed)))
    options = sorted([*needed, *others])
    frames = ("What {x} is {w}: {o}?", "Say which {x} fits {w}: {o}?", "Sort {w} by {x}: {o}.")
    question = ask(rng, grade, frames, ("class", "kind", "group")).replace("{w}", listed(words))
    choices = f"{', '.join(options[:-1])} or {options[-1]}"
    sentences = [(f"{w.capitalize()} is {a(classes[w])}.", f"The class of {w} is {classes[w]}.") for w in words]
    return question.replace("{o}", choices), "", shuffled(rng, [" ".join(p) for p in product(*sentences)])
