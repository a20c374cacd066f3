"""The tasks of `data=micro`, named by the eight topics of Dolly. Each draws a question with all answers that are right.

A task is a function of (rng, world, grade) that returns (instruction, input, answers). The first answer is a right one
drawn at random, and models are trained on it. So the teacher's distribution has several modes, and losses differ in
which of them the student learns.
"""

from __future__ import annotations

from distill.data.tasks.draw import Grade, Task
from distill.data.tasks.knowledge import brainstorming, classification, general_qa
from distill.data.tasks.memory import open_qa
from distill.data.tasks.passage import closed_qa, creative_writing, information_extraction, summarization

TASKS: dict[Task, float] = {  # task -> share of a set
    open_qa: 3,
    general_qa: 1,
    closed_qa: 2,
    information_extraction: 1,
    summarization: 1,
    brainstorming: 1,
    creative_writing: 1,
    classification: 1,
}
WITH_NAMES: dict[Task, float] = {  # those whose texts name people and towns
    closed_qa: 2,
    information_extraction: 1,
    summarization: 1,
    creative_writing: 1,
}

__all__ = ["TASKS", "WITH_NAMES", "Grade", "Task"]
