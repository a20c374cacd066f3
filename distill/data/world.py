"""The small world that `data=micro` asks about: people, towns, animals and foods with their facts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from distill.base.errors import UserError

HEADS = "ba be do fi ga ha jo ka lu ma ne ol pa ri sa ta ul va wi ze".split()
TAILS = "bin dra fer gan hal jun lek mon nor pia ros sel tas tol ven wes".split()
JOBS = "baker,smith,nurse,teacher,farmer,pilot,painter,tailor,fisher,judge,potter,guard".split(",")
COLOURS = "red,blue,green,yellow,white,black,brown,grey".split(",")
REGIONS = "north,south,east,west".split(",")
PRODUCTS = "silk,salt,glass,cheese,ships,paper,wool,bells,honey,knives".split(",")
WEATHER = "rainy,sunny,windy,foggy,snowy".split(",")
FOODS = {
    "apple": "fruit",
    "plum": "fruit",
    "lemon": "fruit",
    "pear": "fruit",
    "onion": "vegetable",
    "carrot": "vegetable",
    "radish": "vegetable",
    "cabbage": "vegetable",
    "bread": "grain",
    "rice": "grain",
    "oats": "grain",
    "cake": "dessert",
    "pudding": "dessert",
    "soup": "dish",
    "stew": "dish",
    "pickle": "dish",
}
ANIMALS = {  # class, home, what it eats, sound
    "cat": ("mammal", "house", "fish", "meows"),
    "dog": ("mammal", "house", "meat", "barks"),
    "horse": ("mammal", "farm", "grass", "neighs"),
    "cow": ("mammal", "farm", "grass", "moos"),
    "wolf": ("mammal", "forest", "meat", "howls"),
    "bear": ("mammal", "forest", "honey", "growls"),
    "owl": ("bird", "forest", "mice", "hoots"),
    "crow": ("bird", "field", "seeds", "caws"),
    "duck": ("bird", "lake", "weeds", "quacks"),
    "swan": ("bird", "lake", "weeds", "hisses"),
    "hen": ("bird", "farm", "seeds", "clucks"),
    "gull": ("bird", "sea", "fish", "cries"),
    "trout": ("fish", "river", "flies", "splashes"),
    "pike": ("fish", "lake", "frogs", "splashes"),
    "shark": ("fish", "sea", "fish", "splashes"),
    "salmon": ("fish", "river", "worms", "splashes"),
    "frog": ("reptile", "lake", "flies", "croaks"),
    "snake": ("reptile", "field", "mice", "hisses"),
    "lizard": ("reptile", "desert", "flies", "hisses"),
    "camel": ("mammal", "desert", "grass", "grunts"),
}
NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()


@dataclass(frozen=True)
class Town:
    """A town and its facts.

    Attributes:
        name: its name.
        region: the part of the land where it is.
        product: what it makes.
        weather: its usual weather.
        river: the river that runs through it.
    """

    name: str
    region: str
    product: str
    weather: str
    river: str


@dataclass(frozen=True)
class Person:
    """A person and the facts about them.

    Attributes:
        name: the person's name.
        town: name of the town where they live.
        job: their job.
        pet: the animal that they keep.
        food: their favourite food.
        colour: the colour of their clothes.
    """

    name: str
    town: str
    job: str
    pet: str
    food: str
    colour: str


@dataclass(frozen=True)
class World:
    """All facts that questions are asked about.

    Attributes:
        towns: the towns by name.
        people: the people by name.
        strangers: names of people and of towns without facts, for the texts of all sets.
        unseen: the same, for texts that no training set has.
    """

    towns: dict[str, Town]
    people: dict[str, Person]
    strangers: tuple[list[str], list[str]]
    unseen: tuple[list[str], list[str]]


def _names(rng: np.random.Generator, count: int, taken: set[str]) -> list[str]:
    names: list[str] = []
    while len(names) < count:
        name = (str(rng.choice(HEADS)) + str(rng.choice(TAILS))).capitalize()
        if name not in taken:
            taken.add(name)
            names.append(name)
        elif len(taken) == len(HEADS) * len(TAILS):
            raise UserError(
                f"data.generator: people, towns and names need more than the {len(taken)} names that there are; make"
                " one of them smaller"
            )
    return names


@lru_cache
def build_world(seed: int, people: int, towns: int, names: int) -> World:
    """The world that a seed determines; all sets of the seed share its facts."""
    rng = np.random.default_rng([seed, 0])
    taken: set[str] = set()

    def pick(options: list[str]) -> str:
        return str(rng.choice(options))

    rivers = _names(rng, towns, taken)
    places = [
        Town(name, pick(REGIONS), pick(PRODUCTS), pick(WEATHER), river)
        for name, river in zip(_names(rng, towns, taken), rivers, strict=True)
    ]
    pets = [a for a, facts in ANIMALS.items() if facts[0] in ("mammal", "bird")]
    folk = [
        Person(
            name,
            pick([t.name for t in places]),
            pick(JOBS),
            pick(pets),
            pick(list(FOODS)),
            pick(COLOURS),
        )
        for name in _names(rng, people, taken)
    ]
    sizes = names, max(12, names // 4)
    strangers, unseen = ((_names(rng, size, taken), _names(rng, size // 3, taken)) for size in sizes)
    return World({t.name: t for t in places}, {p.name: p for p in folk}, strangers, unseen)
