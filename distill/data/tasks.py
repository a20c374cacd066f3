"""The task kinds of `data=micro`. Each draws one question with all the phrasings of its answer that count as right.

A kind is a function of (rng, world, unseen) that gives (instruction, input, answers). `unseen` asks for a wording of
the instruction that training never uses. The first answer is one right phrasing drawn at random: it is what a model is
trained on, so that a teacher has a real choice to make and losses differ in which of its modes they keep.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from distill.data.world import ANIMALS, COLOURS, FOODS, JOBS, NUMBERS, PRODUCTS, World

T = TypeVar("T")
Draw = tuple[str, str, list[str]]
Task = Callable[[np.random.Generator, World, bool], Draw]


def one(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of `options`."""
    return options[int(rng.integers(len(options)))]


def some(rng: np.random.Generator, options: Sequence[T], count: int) -> list[T]:
    """`count` different ones, in random order."""
    return [options[int(i)] for i in rng.permutation(len(options))[:count]]


def wording(rng: np.random.Generator, unseen: bool, *texts: str) -> str:
    """One of `texts`; the last of them is kept for evaluation on unseen wordings."""
    return texts[-1] if unseen else one(rng, texts[:-1])


def a(word: str) -> str:
    """The word with its article."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def shuffled(rng: np.random.Generator, answers: Sequence[str]) -> list[str]:
    """The answers with a random one first, earlier phrasings being likelier (1, 1/2, 1/3, ...)."""
    weights = 1 / np.arange(1, len(answers) + 1)
    first = int(rng.choice(len(answers), p=weights / weights.sum()))
    return [answers[first], *(x for i, x in enumerate(answers) if i != first)]


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


# ---------------------------------------------------------------------------------------------- questions of memory
def open_qa(rng: np.random.Generator, world: World, unseen: bool) -> Draw:
    """A fact about a person or a town, from memory."""
    p = world.people[one(rng, sorted(world.people))]
    t = world.towns[one(rng, sorted(world.towns))]
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
    questions, answers = one(rng, kinds)
    return wording(rng, unseen, *questions), "", shuffled(rng, answers)


def describe_person(rng: np.random.Generator, world: World, unseen: bool) -> Draw:
    """A short description of a person, from memory, in one of many orders."""
    p = world.people[one(rng, sorted(world.people))]
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
        parts = [one(rng, d) for d in some(rng, details, 2)]
        answers.append(" ".join([one(rng, openings), *parts]))
    return question, "", list(dict.fromkeys(answers))


def describe_town(rng: np.random.Generator, world: World, unseen: bool) -> Draw:
    """A short description of a town, from memory."""
    t = world.towns[one(rng, sorted(world.towns))]
    question = wording(rng, unseen, f"Describe the town of {t.name}.", f"What is {t.name}?", f"Write about {t.name}.")
    answers = []
    for _ in range(4):
        first = one(rng, [f"{t.name} is a town in the {t.region}.", f"In the {t.region} lies the town of {t.name}."])
        second = one(
            rng,
            [
                f"It is on the {t.river} and makes {t.product}.",
                f"The {t.river} runs by, and {t.product} is made there.",
            ],
        )
        third = one(rng, [f"The weather is {t.weather}.", f"It is {t.weather} most of the year."])
        answers.append(" ".join([first, *some(rng, [second, third], 2)]))
    return question, "", list(dict.fromkeys(answers))


def compare(rng: np.random.Generator, world: World, unseen: bool) -> Draw:
    """Whether two people share a town, from memory."""
    x, y = (world.people[n] for n in some(rng, sorted(world.people), 2))
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


# ------------------------------------------------------------------------------------------ questions about an input
def _passage(rng: np.random.Generator, world: World) -> tuple[list[dict[str, str]], str]:
    """Three sentences about people as they are only in this text."""
    names = some(rng, sorted(world.people), 3)
    towns = some(rng, sorted(world.towns), 3)
    facts = []
    for name, town in zip(names, towns, strict=True):
        facts.append(
            {
                "name": name,
                "town": town,
                "job": one(rng, JOBS),
                "day": one(rng, ["Monday", "Friday", "Sunday"]),
            }
        )
    forms = [
        "{name} went to {town} on {day} as {ajob}.",
        "On {day} {name}, {ajob}, came to {town}.",
        "{name} is {ajob} and left for {town} on {day}.",
    ]
    text = " ".join(one(rng, forms).format(**f, ajob=a(f["job"])) for f in facts)
    return facts, text


def closed_qa(rng: np.random.Generator, world: World, unseen: bool) -> Draw:
    """A question whose answer stands in the text."""
    facts, text = _passage(rng, world)
    f = one(rng, facts)
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
    questions, answers = one(rng, kinds)
    return wording(rng, unseen, *questions), text, shuffled(rng, answers)


def extraction(rng: np.random.Generator, world: World, unseen: bool) -> Draw:
    """All towns, people or jobs of the text, in its order."""
    facts, text = _passage(rng, world)
    what, key = one(rng, [("towns", "town"), ("people", "name"), ("jobs", "job")])
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
    facts, text = _passage(rng, world)
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
    name, animal, food = one(rng, sorted(world.people)), one(rng, sorted(ANIMALS)), one(rng, sorted(FOODS))
    town, colour = one(rng, sorted(world.towns)), one(rng, COLOURS)
    kind = int(rng.integers(3))
    if kind == 0:
        question = wording(rng, unseen, "Put this in the past.", "Write this in the past tense.", "Make this past.")
        verbs = one(
            rng,
            [("sees", "saw"), ("buys", "bought"), ("finds", "found"), ("draws", "drew"), ("sells", "sold")],
        )
        form = one(rng, ["{n} {v} {x} in {t}.", "In {t} {n} {v} {x}."])
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


# --------------------------------------------------------------------------------------------- knowledge and reckoning
def classification(rng: np.random.Generator, world: World, unseen: bool) -> Draw:
    """The class of an animal or a food."""
    if rng.random() < 0.5:
        word = one(rng, sorted(ANIMALS))
        kind, options = ANIMALS[word][0], some(rng, ["mammal", "bird", "fish", "reptile"], 4)
    else:
        word = one(rng, sorted(FOODS))
        kind, options = FOODS[word][0], some(rng, ["fruit", "vegetable", "grain", "dessert", "dish"], 5)
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
    what, pool = one(rng, pools)
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
        words = some(rng, pool, count)
        answers.append(
            one(
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
    word = one(rng, sorted(ANIMALS))
    kind, home, eats, sound = ANIMALS[word]
    question = wording(
        rng, unseen, f"Tell me about the {word}.", f"Describe the {word}.", f"What do you know of the {word}?"
    )
    answers = []
    for _ in range(4):
        parts = [
            one(rng, [f"The {word} is {a(kind)}.", f"{a(word).capitalize()} is {a(kind)}."]),
            *some(
                rng,
                [
                    one(rng, [f"It lives in the {home}.", f"Its home is the {home}."]),
                    one(rng, [f"It eats {eats}.", f"It feeds on {eats}."]),
                    one(rng, [f"It {sound}.", f"You can hear how it {sound}."]),
                ],
                2,
            ),
        ]
        answers.append(" ".join(parts))
    return question, "", list(dict.fromkeys(answers))


def story(rng: np.random.Generator, world: World, unseen: bool) -> Draw:
    """A story of three sentences about a person: a free text with a plan."""
    p = world.people[one(rng, sorted(world.people))]
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
                    one(
                        rng,
                        [f"One day {p.name} left {p.town}.", f"{p.name} the {p.job} woke early in {p.town}."],
                    ),
                    one(
                        rng,
                        [
                            f"The {p.pet} came along.",
                            f"There was no {p.food} in the house.",
                            "The road was long.",
                        ],
                    ),
                    one(
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


# ---------------------------------------------------------------------------------- kinds that training never shows
def reverse_lookup(rng: np.random.Generator, world: World, unseen: bool) -> Draw:
    """Who lives in a town: facts seen only the other way round."""
    p = world.people[one(rng, sorted(world.people))]
    others = [x.name for x in world.people.values() if x.town == p.town]
    return f"Who lives in {p.town}?", "", shuffled(rng, [f"{n} lives in {p.town}." for n in sorted(others)])


def last_item(rng: np.random.Generator, world: World, unseen: bool) -> Draw:
    """The last of the text's people, towns or jobs."""
    facts, text = _passage(rng, world)
    what, key = one(rng, [("town", "town"), ("person", "name"), ("job", "job")])
    word = facts[-1][key]
    return (
        f"What is the last {what} in the text?",
        text,
        [f"The last {what} is {word}.", f"{word}.", f"It is {word}."],
    )


def fact_of_a_fact(rng: np.random.Generator, world: World, unseen: bool) -> Draw:
    """A fact of a fact: the region or river of a person's town."""
    p = world.people[one(rng, sorted(world.people))]
    t = world.towns[p.town]
    return one(
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
    """The one of three given animals that is of a class."""
    wanted = one(rng, ["bird", "fish", "mammal"])
    good = one(rng, [x for x, f in sorted(ANIMALS.items()) if f[0] == wanted])
    bad = some(rng, [x for x, f in sorted(ANIMALS.items()) if f[0] != wanted], 2)
    words = some(rng, [good, *bad], 3)
    return (
        f"Which of {words[0]}, {words[1]} and {words[2]} is {a(wanted)}?",
        "",
        [f"{good.capitalize()} is {a(wanted)}.", f"It is {good}.", f"{good.capitalize()}."],
    )


def where_and_what(rng: np.random.Generator, world: World, unseen: bool) -> Draw:
    """Home and job of a person in one sentence."""
    p = world.people[one(rng, sorted(world.people))]
    return (
        f"Where does {p.name} live and what is the job?",
        "",
        [
            f"{p.name} lives in {p.town} and works as {a(p.job)}.",
            f"{p.name} is {a(p.job)} from {p.town}.",
        ],
    )


SEEN: dict[Task, float] = {  # kind -> share of the training set
    open_qa: 4,
    describe_person: 2,
    describe_town: 1,
    compare: 1,
    closed_qa: 2,
    extraction: 1.5,
    summary: 1.5,
    rewriting: 1.5,
    classification: 1,
    listing: 1.5,
    arithmetic: 1.5,
    animal_facts: 1,
    story: 1,
}
LONG: dict[Task, float] = {describe_person: 1, describe_town: 1, animal_facts: 1, story: 1}
RELATED: dict[Task, float] = {reverse_lookup: 1, last_item: 1, fact_of_a_fact: 1}
UNSEEN: dict[Task, float] = {two_at_once: 1, pick_by_class: 1, where_and_what: 1}
