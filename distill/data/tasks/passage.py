"""Questions about an input text that contains the answer."""

from __future__ import annotations

import numpy as np

from distill.data.tasks.draw import Draw, a, listed, pick, pick_some, shuffled, wording
from distill.data.world import ANIMALS, COLOURS, FOODS, JOBS, World


def passage(rng: np.random.Generator, world: World) -> tuple[list[dict[str, str]], str]:
    """The facts of three people, which are true in this text only, and a text of three sentences that states them."""
    names = pick_some(rng, sorted(world.people), 3)
    towns = pick_some(rng, sorted(world.towns), 3)
    facts = []
    for name, town in zip(names, towns, strict=True):
        facts.append(
            {
                "name": name,
                "town": town,
                "job": pick(rng, JOBS),
                "day": pick(rng, ["Monday", "Friday", "Sunday"]),
            }
        )
    forms = [
        "{name} went to {town} on {day} as {ajob}.",
        "On {day} {name}, {ajob}, came to {town}.",
        "{name} is {ajob} and left for {town} on {day}.",
    ]
    text = " ".join(pick(rng, forms).format(**f, ajob=a(f["job"])) for f in facts)
    return facts, text


def closed_qa(rng: np.random.Generator, world: World, unseen: bool) -> Draw:
    """A question whose answer is in the text."""
    facts, text = passage(rng, world)
    f = pick(rng, facts)
    n = f["name"]
    kinds = [
        (
            (f"Where did {n} go?", f"Which town did {n} visit?", f"Name the town of {n} in the text."),
            (f"{n} went to {f['town']}.", f"{f['town']} is where {n} went."),
        ),
        (
            (f"When did {n} travel?", f"On which day did {n} go?", f"Name the day of {n} in the text."),
            (f"{n} travelled on {f['day']}.", f"It was on {f['day']}."),
        ),
        (
            (
                f"What is the job of {n} in the text?",
                f"As what does {n} work here?",
                f"Name the work of {n} in the text.",
            ),
            (f"{n} is {a(f['job'])}.", f"Here {n} works as {a(f['job'])}."),
        ),
    ]
    questions, answers = pick(rng, kinds)
    return wording(rng, unseen, *questions), text, shuffled(rng, answers)


def extraction(rng: np.random.Generator, world: World, unseen: bool) -> Draw:
    """All towns, people or jobs of the text, in its order."""
    facts, text = passage(rng, world)
    what, key = pick(rng, [("towns", "town"), ("people", "name"), ("jobs", "job")])
    question = wording(
        rng, unseen, f"List the {what} in the text.", f"Which {what} are named here?", f"Find all {what}."
    )
    words = [f[key] for f in facts]
    return (
        question,
        text,
        shuffled(
            rng,
            [
                f"The {what} are {listed(words)}.",
                f"{listed(words)}.".capitalize() if key == "job" else f"{listed(words)}.",
            ],
        ),
    )


def summary(rng: np.random.Generator, world: World, unseen: bool) -> Draw:
    """The text in one sentence."""
    facts, text = passage(rng, world)
    question = wording(rng, unseen, "Sum up the text.", "Give the text in one sentence.", "Make the text short.")
    names, towns = listed([f["name"] for f in facts]), listed([f["town"] for f in facts])
    return (
        question,
        text,
        shuffled(
            rng,
            [
                f"{names} went to {towns}.",
                f"Three people, {names}, travelled to {towns}.",
                f"It tells how {names} came to {towns}.",
            ],
        ),
    )


def rewriting(rng: np.random.Generator, world: World, unseen: bool) -> Draw:
    """A sentence in another tense, number or person."""
    name, animal, food = pick(rng, sorted(world.people)), pick(rng, sorted(ANIMALS)), pick(rng, sorted(FOODS))
    town, colour = pick(rng, sorted(world.towns)), pick(rng, COLOURS)
    kind = int(rng.integers(3))
    if kind == 0:
        question = wording(rng, unseen, "Put this in the past.", "Write this in the past tense.", "Make this past.")
        verbs = pick(
            rng,
            [("sees", "saw"), ("buys", "bought"), ("finds", "found"), ("draws", "drew"), ("sells", "sold")],
        )
        form = pick(rng, ["{n} {v} {x} in {t}.", "In {t} {n} {v} {x}."])
        text, answer = (form.format(n=name, v=v, x=a(animal), t=town) for v in verbs)
        return question, text, [answer]
    if kind == 1:
        question = wording(rng, unseen, "Turn this into a question.", "Ask this.", "Make a question of this.")
        text = f"{name} likes {colour} {food}."
        return (
            question,
            text,
            shuffled(rng, [f"Does {name} like {colour} {food}?", f"Is it true that {name} likes {colour} {food}?"]),
        )
    question = wording(rng, unseen, "Say the opposite.", "Turn this into its opposite.", "Deny this.")
    text = f"The {colour} {animal} is in {town}."
    return (
        question,
        text,
        shuffled(rng, [f"The {colour} {animal} is not in {town}.", f"There is no {colour} {animal} in {town}."]),
    )
