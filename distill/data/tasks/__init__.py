"""The task kinds of `data=micro`. Each draws one question with all phrasings of its answer that count as right.

A kind is a function of (rng, world, unseen) that returns (instruction, input, answers). With `unseen` the instruction
has a wording that training never uses. The first answer is a right phrasing drawn at random, and models are trained on
it. So the teacher's distribution has several modes, and losses differ in which of them the student learns.
"""

from __future__ import annotations

from distill.data.tasks.draw import Task
from distill.data.tasks.knowledge import animal_facts, arithmetic, classification, listing, story
from distill.data.tasks.memory import compare, describe_person, describe_town, open_qa
from distill.data.tasks.passage import closed_qa, extraction, rewriting, summary
from distill.data.tasks.unseen import (
    fact_of_a_fact,
    last_item,
    pick_by_class,
    reverse_lookup,
    two_at_once,
    where_and_what,
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
