"""Kinds of general knowledge, arithmetic and free text."""

from __future__ import annotations

import numpy as np

from distill.data.tasks.draw import Draw, a, listed, pick, pick_some, shuffled, wording
from distill.data.world import ANIMALS, COLOURS, FOODS, JOBS, NUMBERS, PRODUCTS, World


def classification(rng: np.random.Generator, world: World, unseen: bool) -> Draw:
    """The class of an animal or a food."""
    if rng.random() < 0.5:
        word = pick(rng, sorted(ANIMALS))
        kind, options = ANIMALS[word][0], pick_some(rng, ["mammal", "bird", "fish", "reptile"], 4)
    else:
        word = pick(rng, sorted(FOODS))
        kind, options = FOODS[word][0], pick_some(rng, ["fruit", "vegetable", "grain", "dessert", "dish"], 5)
    choices = f"{', '.join(options[:-1])} or {options[-1]}"
    question = wording(
        rng, unseen, f"Is {word} {choices}?", f"Classify {word} as {choices}.", f"Which is {word}: {choices}?"
    )
    return question, "", shuffled(rng, [f"{word.capitalize()} is {a(kind)}.", f"It is {a(kind)}."])


def listing(rng: np.random.Generator, world: World, unseen: bool) -> Draw:
    """Some animals, foods, jobs or colours: many right answers."""
    count = int(rng.integers(2, 5))
    pools: list[tuple[str, list[str]]] = [
        ("colours", COLOURS),
        ("jobs", JOBS),
        ("foods", sorted(FOODS)),
        ("things towns make", PRODUCTS),
    ]
    for home in ("forest", "lake", "farm", "sea", "desert"):
        pools.append((f"animals of the {home}", [x for x, f in sorted(ANIMALS.items()) if f[1] == home]))
    for kind in ("mammal", "bird", "fish"):
        pools.append((f"kinds of {kind}", [x for x, f in sorted(ANIMALS.items()) if f[0] == kind]))
    what, pool = pick(rng, pools)
    count = min(count, len(pool))
    question = wording(
        rng,
        unseen,
        f"Name {NUMBERS[count]} {what}.",
        f"Give me {NUMBERS[count]} {what}.",
        f"I need {NUMBERS[count]} {what}.",
    )
    answers = []
    for _ in range(4):
        words = pick_some(rng, pool, count)
        answers.append(
            pick(
                rng,
                [
                    f"{NUMBERS[count].capitalize()} {what} are {listed(words)}.",
                    f"{listed(words).capitalize()}.",
                ],
            )
        )
    return question, "", list(dict.fromkeys(answers))


def arithmetic(rng: np.random.Generator, world: World, unseen: bool) -> Draw:
    """Sums and differences up to ninety-nine."""
    x, y = (int(v) for v in rng.integers(2, 50, size=2))
    if rng.random() < 0.5:
        question = wording(rng, unseen, f"What is {x} + {y}?", f"Add {y} to {x}.", f"How much is {x} and {y}?")
        return question, "", shuffled(rng, [f"{x} + {y} is {x + y}.", f"The sum is {x + y}."])
    x, y = max(x, y), min(x, y)
    question = wording(rng, unseen, f"What is {x} - {y}?", f"Take {y} from {x}.", f"How much is {x} less {y}?")
    return question, "", shuffled(rng, [f"{x} - {y} is {x - y}.", f"The difference is {x - y}."])


def animal_facts(rng: np.random.Generator, world: World, unseen: bool) -> Draw:
    """Where an animal lives, what it eats, and its sound."""
    word = pick(rng, sorted(ANIMALS))
    kind, home, eats, sound = ANIMALS[word]
    question = wording(
        rng, unseen, f"Tell me about the {word}.", f"Describe the {word}.", f"What do you know of the {word}?"
    )
    answers = []
    for _ in range(4):
        parts = [
            pick(rng, [f"The {word} is {a(kind)}.", f"{a(word).capitalize()} is {a(kind)}."]),
            *pick_some(
                rng,
                [
                    pick(rng, [f"It lives in the {home}.", f"Its home is the {home}."]),
                    pick(rng, [f"It eats {eats}.", f"It feeds on {eats}."]),
                    pick(rng, [f"It {sound}.", f"You can hear how it {sound}."]),
                ],
                2,
            ),
        ]
        answers.append(" ".join(parts))
    return question, "", list(dict.fromkeys(answers))


def story(rng: np.random.Generator, world: World, unseen: bool) -> Draw:
    """A story of three sentences about a person: free text with a fixed structure."""
    p = world.people[pick(rng, sorted(world.people))]
    question = wording(
        rng,
        unseen,
        f"Tell a story about {p.name}.",
        f"Write a short tale of {p.name}.",
        f"Make up a story with {p.name}.",
    )
    answers = []
    for _ in range(4):
        answers.append(
            " ".join(
                [
                    pick(
                        rng,
                        [f"One day {p.name} left {p.town}.", f"{p.name} the {p.job} woke early in {p.town}."],
                    ),
                    pick(
                        rng,
                        [
                            f"The {p.pet} came along.",
                            f"There was no {p.food} in the house.",
                            "The road was long.",
                        ],
                    ),
                    pick(
                        rng,
                        [
                            f"In the end they ate {p.food} and were glad.",
                            f"At night {p.name} came home in {p.colour}.",
                        ],
                    ),
                ]
            )
        )
    return question, "", list(dict.fromkeys(answers))
