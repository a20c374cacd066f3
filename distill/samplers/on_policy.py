"""Every batch is the student's text."""

from __future__ import annotations

from dataclasses import dataclass, field

from distill.samplers.base import register
from distill.samplers.mixed import Mixed


@register("on_policy")
@dataclass
class OnPolicy(Mixed):
    """The student generates the responses of every batch (ImitKD; Lin et al. 2020)."""

    probability: float = field(default=1.0, init=False)

    reads_data = False
