"""The teacher's responses, written once."""

from __future__ import annotations

from dataclasses import dataclass

from distill.samplers.base import Sampler, register


@register("teacher")
@dataclass
class TeacherText(Sampler):
    """The teacher answers every training prompt once, before training; its responses take the data set's place (SeqKD;
    Kim and Rush 2016).

    Attributes:
        max_new_tokens: where a text that does not end is cut.
        temperature, top_p, top_k: of sampling, as MiniLLM's scripts do it.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    origin = "teacher"
    asks_teacher = True
    reads_data = False
