"""The phrases of `data=micro`'s texts: spaCy knows English, and not the generator's invented names."""

from __future__ import annotations

import re

from distill.data.spans import CharSpans
from distill.data.world import ANIMALS, COLOURS, FOODS, JOBS, NUMBERS, PRODUCTS, REGIONS

# The words of the generator's answers by their part of speech (distill/data/tasks)
_ANIMAL_FACTS = [word for facts in ANIMALS.values() for word in facts[:3]]
_KINDS = "colours jobs foods wares mammals birds farm water animals towns people home pet food clothes class town"
_KINDS += " weather goal sum day end night road way"
NOUNS = {*ANIMALS, *_ANIMAL_FACTS, *COLOURS, *FOODS, *FOODS.values(), *JOBS, *PRODUCTS, *REGIONS, *_KINDS.split()}
DETERMINERS = ("the", "a", "an", "its", "no", "one", *NUMBERS)
ADJECTIVES = ("best", "whole", "good", "other")
PREPOSITIONS = "in of on to from for by with at through along as".split()
SOUNDS = [facts[3] for facts in ANIMALS.values()]
AUXILIARIES = ("is", "was", "are", "were", "had")
VERBS = "lives works has likes wears makes lies runs is was are were went came come left woke met asked had saw".split()
VERBS += "eats eat tells travelled hear rained known named".split()


def _one_of(words: object) -> str:
    return "(?:" + "|".join(sorted(map(str, words), key=lambda word: (-len(word), word))) + r")\b"  # type: ignore


_FIRST = rf"(?i:{_one_of(DETERMINERS)})"
_NO_NAMES = _one_of([*DETERMINERS, *PREPOSITIONS, "it", "they", "there", "here", "soon", "you"])
_NAME = rf"(?!(?i:{_NO_NAMES}))[A-Z][a-z]+\b"
_NOUN = rf"(?:{_one_of(NOUNS)}|{_NAME}|\d+)"
NOUN_PHRASE = rf"(?:{_FIRST} )?(?:{_one_of(ADJECTIVES)} )?{_NOUN}(?: {_one_of(NOUNS)})*"
PREPOSITIONAL_PHRASE = rf"(?i:{_one_of(PREPOSITIONS)}) {NOUN_PHRASE}"
VERB_PHRASE = rf"(?:{_one_of(AUXILIARIES)} )?{_one_of([*VERBS, *SOUNDS])}(?: (?:to eat|up|home|early|along)\b)?"
PHRASES = [re.compile(rf"\b{pattern}") for pattern in (NOUN_PHRASE, PREPOSITIONAL_PHRASE, VERB_PHRASE)]


def micro_phrases(text: str) -> CharSpans:
    """(first character, behind the last) of the noun, verb and prepositional phrases of a text of `data=micro`."""
    return sorted({match.span() for pattern in PHRASES for match in pattern.finditer(text)})
