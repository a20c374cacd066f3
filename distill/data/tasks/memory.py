"""Questions that a model answers from memory: the facts are only in the training set."""

from __future__ import annotations

import numpy as np

from distill.data.tasks.draw import Draw, a, pick, pick_some, shuffled, wording
from distill.data.world import World


def open_qa(rng: np.random.Generator, world: World, unseen: bool) -> Draw:
    """A fact about a person or a town, from memory."""
    p = world.people[pick(rng, sorted(world.people))]
    t = world.towns[pick(rng, sorted(world.towns))]
    n, m = p.name, t.name
    kinds = [
        (
            (f"Where does {n} live?", f"In which town does {n} live?", f"Tell me the home of {n}."),
            (f"{n} lives in {p.town}.", f"The home of {n} is {p.town}.", f"{p.town} is where {n} lives."),
        ),
        (
            (f"What is the job of {n}?", f"What does {n} do for a living?", f"Tell me the work of {n}."),
            (f"{n} is {a(p.job)}.", f"{n} works as {a(p.job)}.", f"The job of {n} is {p.job}."),
        ),
        (
            (f"Which pet does {n} have?", f"What animal does {n} keep?", f"Tell me the pet of {n}."),
            (f"{n} has {a(p.pet)}.", f"The pet of {n} is {a(p.pet)}.", f"{n} keeps {a(p.pet)} at home."),
        ),
        (
            (
                f"What does {n} like to eat?",
                f"What is the favourite food of {n}?",
                f"Tell me the food {n} likes.",
            ),
            (
                f"{n} likes {p.food}.",
                f"The favourite food of {n} is {p.food}.",
                f"{n} likes to eat {p.food} best.",
            ),
        ),
        (
            (f"What colour does {n} wear?", f"Which colour does {n} like?", f"Tell me the colour of {n}."),
            (f"{n} wears {p.colour}.", f"The colour of {n} is {p.colour}.", f"{n} likes {p.colour} clothes."),
        ),
        (
            (f"What is {m} known for?", f"What does the town of {m} make?", f"Tell me the product of {m}."),
            (
                f"{m} is known for its {t.product}.",
                f"The town of {m} makes {t.product}.",
                f"{m} sells {t.product}.",
            ),
        ),
        (
            (f"Which river runs through {m}?", f"On which river is {m}?", f"Tell me the river of {m}."),
            (
                f"The {t.river} runs through {m}.",
                f"{m} lies on the {t.river}.",
                f"The river of {m} is the {t.river}.",
            ),
        ),
        (
            (f"Where is {m}?", f"In which part of the land is {m}?", f"Tell me the region of {m}."),
            (f"{m} is in the {t.region}.", f"The town of {m} lies in the {t.region}."),
        ),
    ]
    questions, answers = pick(rng, kinds)
    return wording(rng, unseen, *questions), "", shuffled(rng, answers)


def describe_person(rng: np.random.Generator, world: World, unseen: bool) -> Draw:
    """A short description of a person, from memory, in one of many orders."""
    p = world.people[pick(rng, sorted(world.people))]
    question = wording(rng, unseen, f"Describe {p.name}.", f"Who is {p.name}?", f"Write about {p.name}.")
    openings = [
        f"{p.name} is {a(p.job)} from {p.town}.",
        f"{p.name} lives in {p.town} and works as {a(p.job)}.",
        f"In {p.town} there is {a(p.job)} named {p.name}.",
    ]
    details = [
        [
            f"{p.name} has {a(p.pet)} and likes {p.food}.",
            f"At home there is {a(p.pet)}, and {p.food} on the table.",
        ],
        [f"The clothes are {p.colour}.", f"{p.name} wears {p.colour}."],
    ]
    answers = []
    for _ in range(4):
        parts = [pick(rng, d) for d in pick_some(rng, details, 2)]
        answers.append(" ".join([pick(rng, openings), *parts]))
    return question, "", list(dict.fromkeys(answers))


def describe_town(rng: np.random.Generator, world: World, unseen: bool) -> Draw:
    """A short description of a town, from memory."""
    t = world.towns[pick(rng, sorted(world.towns))]
    question = wording(rng, unseen, f"Describe the town of {t.name}.", f"What is {t.name}?", f"Write about {t.name}.")
    answers = []
    for _ in range(4):
        first = pick(rng, [f"{t.name} is a town in the {t.region}.", f"In the {t.region} lies the town of {t.name}."])
        second = pick(
            rng,
            [
                f"It is on the {t.river} and makes {t.product}.",
                f"The {t.river} runs by, and {t.product} is made there.",
            ],
        )
        third = pick(rng, [f"The weather is {t.weather}.", f"It is {t.weather} most of the year."])
        answers.append(" ".join([first, *pick_some(rng, [second, third], 2)]))
    return question, "", list(dict.fromkeys(answers))


def compare(rng: np.random.Generator, world: World, unseen: bool) -> Draw:
    """Whether two people share a town, from memory."""
    x, y = (world.people[n] for n in pick_some(rng, sorted(world.people), 2))
    question = wording(
        rng,
        unseen,
        f"Do {x.name} and {y.name} live in the same town?",
        f"Are {x.name} and {y.name} from one town?",
        f"Is the home of {x.name} also the home of {y.name}?",
    )
    if x.town == y.town:
        return question, "", shuffled(rng, [f"Yes, both live in {x.town}.", f"Yes, {x.town} is their home."])
    return (
        question,
        "",
        shuffled(
            rng,
            [
                f"No, {x.name} lives in {x.town} and {y.name} in {y.town}.",
                f"No, one is from {x.town}, the other from {y.town}.",
            ],
        ),
    )
