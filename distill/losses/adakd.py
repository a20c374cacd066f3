"""AdaKD: reverse KL at the hardest tokens, each at a temperature of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill.losses.base import Collected, Divergence, WholeBatch, register
from distill.losses.kl import reverse_kl

DECAY = 0.99  # of the running mean of the loss


def hellinger(student: Tensor, teacher: Tensor) -> Tensor:
    """The Hellinger distance `[N]` of log-probabilities `[N, V]`, in [0, 1]."""
    return ((student / 2).exp() - (teacher / 2).exp()).norm(dim=-1) / math.sqrt(2)


def distance_and_kl(student: Tensor, teacher: Tensor, targets: Tensor | None) -> Tensor:
    """The Hellinger distance and the reverse KL of each token, `[N, 2]`."""
    return torch.stack((hellinger(student, teacher), reverse_kl(student, teacher)[0]), -1)


@dataclass(frozen=True)
class Focused(Divergence):
    """T^2 reverse KL at temperature T = exp(-scale tanh(log(h / median))), where the Hellinger distance h is at least
    `threshold`, times `weight`; 0 at the other tokens."""

    threshold: float = 0.0
    median: float = 0.0
    scale: float = 0.0
    weight: float = 1.0

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base class."""
        distance = hellinger(student, teacher)
        relative = (distance / self.median if self.median else torch.ones_like(distance)).clamp(min=1e-8)
        t = (-self.scale * relative.log().tanh()).exp().unsqueeze(-1)
        q, p = ((x / t).log_softmax(-1) for x in (student, teacher))
        value, slope = reverse_kl(q, p)
        slope -= q.exp() * slope.sum(-1, keepdim=True)  # by the logits at temperature T, which are T times smaller
        chosen = self.weight * (distance >= self.threshold)
        return value * t.squeeze(-1) ** 2 * chosen, slope * t * chosen.unsqueeze(-1)


@register("adakd")
@dataclass(eq=False)
class AdaKD(Divergence):
    """Reverse KL at the hardest tokens of the global batch, hard ones at a low temperature, easy ones at a high one.

    A token is as hard as the Hellinger distance of teacher and student is large. The share of tokens starts at 1; when
    the loss's running mean has fallen by `tolerance` since the last change it shrinks by `step`, when it has risen by
    as much it grows. The mean is over the chosen tokens. Temperatures and choice carry no gradient. The loss that is
    followed is the reverse KL at temperature 1, which the pass that finds the hardest tokens gives as well; the
    published code follows the loss at the tokens' temperatures.

    Attributes:
        scale: how far the temperature goes from 1, as a logarithm.
        tolerance: the relative change of the loss's running mean that changes the share.
        step: the relative change of the share.
        least: the smallest share.
        warmup: the number of steps before the first change is looked for; 5 % of the training in the published script.
    """

    source = "Xie et al. 2025 (AdaKD), arXiv 2510.11615, with reverse KL; settings of its GPT-2 script"
    formula = "T^2 KL(q_T || p_T) where h is among the largest share, T = exp(-scale tanh(log(h / median)))"
    at_limits = "rkl at scale = 0 as long as the share is 1"
    scale: float = 0.5
    tolerance: float = 0.05
    step: float = 0.05
    least: float = 0.1
    warmup: int = 100
    settles = True

    def __post_init__(self) -> None:
        if self.scale < 0 or self.tolerance < 0 or not 0 <= self.step < 1 or not 0 < self.least <= 1:
            raise ValueError(
                f"scale={self.scale} and tolerance={self.tolerance} must be 0 or more, step={self.step} in [0, 1) and"
                f" least={self.least} in (0, 1]"
            )
        self._share, self._mean, self._compared, self._steps = 1.0, math.nan, math.nan, 0

    def for_batch(self, total: WholeBatch) -> Divergence:
        """The tokens above the threshold of this batch; the share of the next one follows from this one's loss."""
        distances, losses = Collected.of(total, distance_and_kl, 2, targets=False).unbind(-1)
        if not len(distances):
            return Focused()
        count = max(1, int(self._share * len(distances)))
        chosen = distances[:count]
        if total.training:
            self._follow(float(losses[:count].mean()))
        return Focused(float(chosen[-1]), float(chosen.median()), self.scale, len(distances) / count)

    def _follow(self, loss: float) -> None:
        self._steps += 1
        self._mean = loss if math.isnan(self._mean) else DECAY * self._mean + (1 - DECAY) * loss
        if self._steps <= self.warmup:
            return
        if math.isnan(self._compared):
            self._compared = self._mean
        elif abs(self._mean - self._compared) > self.tolerance * self._compared:
            change = 1 - self.step if self._mean < self._compared else 1 + self.step
            self._share = min(1.0, max(self.least, self._share * change))
            self._compared = self._mean

    def state(self) -> dict[str, Any]:
        """See the base class: the share, the running mean, what it is compared with, and the number of steps."""
        return {"share": self._share, "mean": self._mean, "compared": self._compared, "steps": self._steps}

    def restore(self, state: dict[str, Any]) -> None:
        """See the base class."""
        self._share, self._mean, self._compared, self._steps = (
            state[name] for name in ("share", "mean", "compared", "steps")
        )
