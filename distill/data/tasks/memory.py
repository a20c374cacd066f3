"""Questions that a model answers from memory: the facts are only in the training set."""

from __future__ import annotations

from itertools import product

import numpy as np

from distill.data.tasks.draw import Draw, Grade, a, ask, count, pick, pick_some, shuffled
from distill.data.world import Person, Town, World

Fact = tuple[tuple[str, ...], tuple[str, ...]]  # nouns that name the fact, and sentences that state it
FRAMES = ("What is the {x} of {n}?", "Tell me the {x} of {n}.", "Name the {x} of {n}.", "I ask for the {x} of {n}.")


def _of_person(p: Person) -> list[Fact]:
    n = p.name
    return [
        (("home", "town", "place"), (f"{n} lives in {p.town}.", f"The home of {n} is {p.town}.")),
        (("job", "work", "trade"), (f"{n} works as {a(p.job)}.", f"{n} is {a(p.job)}.")),
        (("pet", "animal", "beast"), (f"{n} has {a(p.pet)}.", f"The pet of {n} is {a(p.pet)}.")),
        (("food", "dish", "meal"), (f"{n} likes to eat {p.food}.", f"The best food for {n} is {p.food}.")),
        (("colour", "dye", "shade"), (f"{n} wears {p.colour}.", f"The clothes of {n} are {p.colour}.")),
    ]


def _of_town(t: Town) -> list[Fact]:
    n = t.name
    return [
        (("product", "craft", "ware"), (f"{n} makes {t.product}.", f"{n} is known for its {t.product}.")),
        (("river", "stream", "water"), (f"{n} lies on the {t.river}.", f"The {t.river} runs through {n}.")),
        (("region", "part", "side"), (f"{n} is in the {t.region}.", f"The town of {n} lies in the {t.region}.")),
        (("weather", "air", "sky"), (f"In {n} it is {t.weather}.", f"The weather of {n} is {t.weather}.")),
    ]


def open_qa(rng: np.random.Generator, world: World, grade: Grade) -> Draw:
    """One, two or (longer) three facts about a person or a town, from memory."""
    if rng.random() < 0.75:
        person = world.people[pick(rng, sorted(world.people))]
        name, facts = person.name, _of_person(person)
    else:
        town = world.towns[pick(rng, sorted(world.towns))]
        name, facts = town.name, _of_town(town)
    chosen = pick_some(rng, facts, count(rng, grade, (1, 1, 2), 3))
    frames = FRAMES if len(chosen) == 1 else tuple(f.replace("{x}", "{x} and the {y}") for f in FRAMES)
    question = ask(rng, grade, frames, *(nouns for nouns, _ in chosen))
    answers = [" ".join(sentences) for sentences in product(*(sentences for _, sentences in chosen))]
    return question.replace("{n}", name), "", shuffled(rng, answers)
