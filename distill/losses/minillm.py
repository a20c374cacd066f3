"""MiniLLM's objective: reverse KL of whole responses, by policy gradient over rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.losses.base import Divergence, Drawn, register
from distill.losses.kl import reverse_kl


@register("minillm")
@dataclass(frozen=True)
class MiniLLM(Divergence):
    """MiniLLM: each step's reverse KL in closed form, and by policy gradient what its token does to the steps after it.

    A token's first part is `w KL(q || p)` over the whole vocabulary, its second
    `max(-A r, -A clip(r, 1 - clip, 1 + clip))` with `r = q(token) / m(token)`: m is the mixture that the token was
    drawn from, `w` is r at the time of the draw, and A the token's advantage (`long_term`). Where nothing but the
    response is known, as on validation data, it is the reverse KL. `sampler=rollout` brings what it reads.

    Attributes:
        clip: how far r may go from 1 before its gradient is 0.
        reward_scale: divides the rewards log p(token) - log q(token).
        reward_clip: bounds them, after that.
        whiten: whether the advantages of a rollout are brought to mean 0 and standard deviation 1.
    """

    source = "Gu et al. 2024 (MiniLLM), section 2.2 and algorithm 1"
    formula = "w KL(q || p) + max(-A r, -A clip(r))"
    limits = "rkl where it is not known how the tokens were drawn"
    elsewhere = (
        "the published code leaves w out of the first part, and counts a step's own reward in A, which the first part"
        " holds already; whitening and the rewards' scale are the code's, not the paper's"
    )
    reads_rollout = True
    clip: float = 0.2
    reward_scale: float = 0.5
    reward_clip: float = 100.0
    whiten: bool = True

    def __post_init__(self) -> None:
        for name in ("clip", "reward_scale", "reward_clip"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be larger than 0")

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base class: the reverse KL, since it is not known how the tokens were drawn."""
        return reverse_kl(student, teacher)

    def with_rollout_data(self, data: Tensor) -> Divergence:
        """The objective of drawn tokens; `data` `[N, 3]` are their log m, w and A."""
        return _Drawn(self.clip, data)

    def rollout_data(self, responses: Sequence[Drawn]) -> list[Tensor]:
        """What the objective reads of each response's tokens, `[n, 3]`: log m, w and A, in fp32.

        Args:
            responses: a whole rollout, over which advantages are whitened.
        """
        advantages = [self.long_term(one) for one in responses]
        if self.whiten:
            every = torch.cat(advantages)
            mean, std = every.mean(), every.std(correction=0).clamp_min(1e-8)
            advantages = [(a - mean) / std for a in advantages]
        return [
            torch.stack([one.mixed, (one.student - one.mixed).exp(), advantage], 1).float()
            for one, advantage in zip(responses, advantages, strict=True)
        ]

    def long_term(self, one: Drawn) -> Tensor:
        """Each token's advantage `[n]`: the mean reward of those after it; nothing comes after the last.

        The paper's R_{t+1} / (T - t - 1), with the number of rewards in the sum as its divisor.
        """
        rewards = ((one.teacher - one.student) / self.reward_scale).clamp(-self.reward_clip, self.reward_clip)
        after = rewards.flip(0).cumsum(0).flip(0) - rewards
        left = torch.arange(len(rewards) - 1, -1, -1, dtype=rewards.dtype, device=rewards.device)
        return after / left.clamp_min(1)


@dataclass(frozen=True, eq=False)
class _Drawn(Divergence):
    """MiniLLM's objective of tokens whose log m, w and A are known; `source` and the rest stand with `MiniLLM`."""

    clip: float
    known: Tensor
    reads_targets = True

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base class."""
        assert targets is not None
        mixed, weight, advantage = self.known.to(student.dtype).unbind(1)
        value, slope = reverse_kl(student, teacher)
        at = targets.unsqueeze(-1)
        ratio = (student.gather(-1, at).squeeze(-1) - mixed).exp()
        free, bound = -advantage * ratio, -advantage * ratio.clamp(1 - self.clip, 1 + self.clip)
        slope.mul_(weight.unsqueeze(-1))
        slope.scatter_add_(-1, at, torch.where(free >= bound, free, 0.0).unsqueeze(-1))
        return weight * value + torch.maximum(free, bound), slope
