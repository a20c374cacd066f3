"""The teacher's responses, generated once before the training."""

from __future__ import annotations

from dataclasses import dataclass

from distill.samplers.base import Sampler, register


@register("teacher")
@dataclass
class TeacherText(Sampler):
    """Trains on the teacher's responses to the training prompts in place of the data set's (SeqKD; Kim and Rush 2016).

    The teacher answers every prompt once, before the training.

    Attributes:
        max_new_tokens: the most tokens of a response; a longer one is cut.
        temperature, top_p, top_k: of sampling. The defaults are those of MiniLLM's scripts.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    origin = "teacher"
    asks_teacher = True
    reads_data = False
