"""The data set's own responses."""

from __future__ import annotations

from dataclasses import dataclass

from distill.samplers.base import Sampler, register


@register("fixed")
@dataclass
class Fixed(Sampler):
    """The data set's own responses (KD, and every table of losses)."""
