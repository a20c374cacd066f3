"""Questions about an input text that contains the answer, and tales with what the instruction names."""

from __future__ import annotations

import numpy as np

from distill.data.tasks.draw import Draw, Grade, a, ask, count, listed, pick, pick_some, several, shuffled
from distill.data.world import ANIMALS, FOODS, JOBS, World

DAYS = "Monday,Tuesday,Friday,Sunday".split(",")
FORMS = (
    "{name} went to {town} on {day} as {a_job}.",
    "On {day} {name}, {a_job}, came to {town}.",
    "{name} is {a_job} and left for {town} on {day}.",
)
NAMES = {
    "town": ("town", "place", "goal"),
    "day": ("day", "date", "time"),
    "job": ("job", "work", "trade"),
}
LISTS = {
    "town": ("towns", "places", "goals"),
    "name": ("people", "persons", "travellers"),
    "job": ("jobs", "works", "trades"),
}


def passage(rng: np.random.Generator, world: World, grade: Grade, people: int) -> tuple[list[dict[str, str]], str]:
    """The facts of some people, which are true in this text only, and a text that states them, a sentence each."""
    names, towns = world.unseen if grade.unseen_names else world.strangers
    facts = [
        {"name": name, "town": town, "job": job, "a_job": a(job), "day": pick(rng, DAYS)}
        for name, town, job in zip(
            pick_some(rng, names, people), pick_some(rng, towns, people), pick_some(rng, JOBS, people), strict=True
        )
    ]
    return facts, " ".join(pick(rng, FORMS).format(**fact) for fact in facts)


def closed_qa(rng: np.random.Generator, world: World, grade: Grade) -> Draw:
    """A fact about one of the text's people, or (longer) all of them."""
    facts, text = passage(rng, world, grade, pick(rng, (2, 3)))
    fact = pick(rng, facts)
    n = fact["name"]
    answers = {
        "town": (f"{n} went to {fact['town']}.", f"The goal of {n} was {fact['town']}."),
        "day": (f"{n} travelled on {fact['day']}.", f"It was on {fact['day']}."),
        "job": (f"{n} is {fact['a_job']}.", f"Here {n} works as {fact['a_job']}."),
    }
    if count(rng, grade, (1,), 3) == 3:
        frames = ("Tell all {x} of {n}.", "What {x} are there of {n}?", "Give the {x} of {n}.")
        question = ask(rng, grade, frames, ("facts", "news", "details"))
        complete = several(lambda: " ".join(pick(rng, answers[key]) for key in ("job", "town", "day")))
        return question.replace("{n}", n), text, complete
    key = pick(rng, sorted(answers))
    frames = ("What is the {x} of {n} here?", "Find the {x} of {n} in the text.", "Which {x} has {n} in this text?")
    return ask(rng, grade, frames, NAMES[key]).replace("{n}", n), text, shuffled(rng, answers[key])


def information_extraction(rng: np.random.Generator, world: World, grade: Grade) -> Draw:
    """All towns, people or jobs of the text, in its order."""
    facts, text = passage(rng, world, grade, count(rng, grade, (2, 3), 4))
    key = pick(rng, sorted(LISTS))
    question = ask(rng, grade, ("List the {x} in the text.", "Which {x} are named here?", "Find all {x}."), LISTS[key])
    words = listed([fact[key] for fact in facts])
    return question, text, shuffled(rng, [f"The {LISTS[key][0]} are {words}.", f"There are {words}."])


def summarization(rng: np.random.Generator, world: World, grade: Grade) -> Draw:
    """The text in one sentence."""
    facts, text = passage(rng, world, grade, count(rng, grade, (2, 3), 4))
    frames = ("Sum up the {x}.", "Put the {x} in one sentence.", "Make the {x} short.")
    names, towns = listed([f["name"] for f in facts]), listed([f["town"] for f in facts])
    answers = [f"{names} went to {towns}.", f"It tells how {names} came to {towns}.", f"{towns} saw {names} come."]
    return ask(rng, grade, frames, ("text", "note", "report")), text, shuffled(rng, answers)


def creative_writing(rng: np.random.Generator, world: World, grade: Grade) -> Draw:
    """A tale of two, three or (longer) five sentences about a person, an animal and a town: free text in a plan."""
    names, towns = world.unseen if grade.unseen_names else world.strangers
    n, t, animal, food = pick(rng, names), pick(rng, towns), pick(rng, sorted(ANIMALS)), pick(rng, sorted(FOODS))
    sentences = count(rng, grade, (2, 3), 5)
    length = {2: "short", 3: "full", 5: "long"}[sentences]
    frames = (
        "Tell a {length} {x} of {n} with {animal} in {t}.",
        "Write a {length} {x} about {n} with {animal} from {t}.",
        "Make up a {length} {x} where {n} meets {animal} in {t}.",
    )
    question = ask(rng, grade, frames, ("story", "tale", "fable"))
    plan = [
        (f"One day {n} left {t}.", f"{n} woke early in {t}."),
        (f"There {n} met {a(animal)}.", f"Soon {a(animal)} came along."),
        (f"The {animal} asked for {food}.", f"They had no {food} left."),
        ("The road was long and cold.", "It rained the whole way."),
        (f"In the end {n} and the {animal} were glad.", f"At night they came home to {t}."),
    ]
    chosen = {2: (0, 1), 3: (0, 1, 4), 5: (0, 1, 2, 3, 4)}[sentences]
    answers = several(lambda: " ".join(pick(rng, plan[i]) for i in chosen))
    for key, value in (("{length}", length), ("{n}", n), ("{animal}", a(animal)), ("{t}", t)):
        question = question.replace(key, value)
    return question, "", answers
