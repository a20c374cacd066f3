"""Kinds that are never in the training set."""

from __future__ import annotations

import numpy as np

from distill.data.tasks.draw import Draw, a, pick, pick_some, shuffled
from distill.data.tasks.knowledge import classification
from distill.data.tasks.memory import open_qa
from distill.data.tasks.passage import passage
from distill.data.world import ANIMALS, World


def reverse_lookup(rng: np.random.Generator, world: World, unseen: bool) -> Draw:
    """Who lives in a town: facts seen only the other way round."""
    p = world.people[pick(rng, sorted(world.people))]
    others = [x.name for x in world.people.values() if x.town == p.town]
    return f"Who lives in {p.town}?", "", shuffled(rng, [f"{n} lives in {p.town}." for n in sorted(others)])


def last_item(rng: np.random.Generator, world: World, unseen: bool) -> Draw:
    """The last of the text's people, towns or jobs."""
    facts, text = passage(rng, world)
    what, key = pick(rng, [("town", "town"), ("person", "name"), ("job", "job")])
    word = facts[-1][key]
    return (
        f"What is the last {what} in the text?",
        text,
        [f"The last {what} is {word}.", f"{word}.", f"It is {word}."],
    )


def fact_of_a_fact(rng: np.random.Generator, world: World, unseen: bool) -> Draw:
    """A fact of a fact: the region or river of a person's town."""
    p = world.people[pick(rng, sorted(world.people))]
    t = world.towns[p.town]
    return pick(
        rng,
        [
            (
                f"In which part of the land does {p.name} live?",
                "",
                [f"{p.name} lives in the {t.region}.", f"In the {t.region}."],
            ),
            (
                f"Which river runs through the home of {p.name}?",
                "",
                [f"The {t.river} runs through {t.name}.", f"The river is the {t.river}."],
            ),
            (
                f"What is the home of {p.name} known for?",
                "",
                [f"{t.name} is known for its {t.product}.", f"It is known for {t.product}."],
            ),
        ],
    )


def two_at_once(rng: np.random.Generator, world: World, unseen: bool) -> Draw:
    """Two questions in one instruction."""
    first = open_qa(rng, world, False)
    second = classification(rng, world, False)
    answers = [f"{x} {y}" for x in first[2] for y in second[2]]
    return f"{first[0]} {second[0]}", "", answers


def pick_by_class(rng: np.random.Generator, world: World, unseen: bool) -> Draw:
    """Which of three given animals belongs to a class."""
    animal_class = pick(rng, ["bird", "fish", "mammal"])
    good = pick(rng, [x for x, f in sorted(ANIMALS.items()) if f[0] == animal_class])
    bad = pick_some(rng, [x for x, f in sorted(ANIMALS.items()) if f[0] != animal_class], 2)
    words = pick_some(rng, [good, *bad], 3)
    return (
        f"Which of {words[0]}, {words[1]} and {words[2]} is {a(animal_class)}?",
        "",
        [f"{good.capitalize()} is {a(animal_class)}.", f"It is {good}.", f"{good.capitalize()}."],
    )


def where_and_what(rng: np.random.Generator, world: World, unseen: bool) -> Draw:
    """Home and job of a person in one sentence."""
    p = world.people[pick(rng, sorted(world.people))]
    return (
        f"Where does {p.name} live and what is the job?",
        "",
        [
            f"{p.name} lives in {p.town} and works as {a(p.job)}.",
            f"{p.name} is {a(p.job)} from {p.town}.",
        ],
    )
