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
    """MiniLLM: the reverse KL of each token in closed form, plus a policy gradient for its effect on later tokens.

    A token's first part is `w KL(q || p)` over the whole vocabulary. Its second part is
    `max(-A r, -A clip(r, 1 - clip, 1 + clip))` with `r = q(token) / m(token)`: m is the mixture that the token was
    sampled from, `w` is r at the time of sampling, and A the token's advantage (`long_term`). `sampler=rollout`
    provides these data. Without them, as on validation data, the value is the reverse KL.

    Attributes:
        clip: largest distance of r from 1 at which the second part still has a gradient.
        reward_scale: divides the rewards log p(token) - log q(token).
        reward_clip: the largest absolute value of the scaled rewards.
        whiten: whether the advantages of a rollout are normalised to mean 0 and standard deviation 1.
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
        """See the base class. It is the reverse KL, since it is not known how the tokens were sampled."""
        return reverse_kl(student, teacher)

    def with_rollout_data(self, data: Tensor) -> Divergence:
        """The objective of sampled tokens; `data` `[N, 3]` are their log m, w and A."""
        return _Drawn(self.clip, data)

    def rollout_data(self, responses: Sequence[Drawn]) -> list[Tensor]:
        """log m, w and A of each token in fp32, one tensor `[n, 3]` per response.

        Args:
            responses: all responses of a rollout, over which advantages are whitened.
        """
        advantages = [self.long_term(response) for response in responses]
        if self.whiten:
            flat = torch.cat(advantages)
            mean, std = flat.mean(), flat.std(correction=0).clamp_min(1e-8)
            advantages = [(a - mean) / std for a in advantages]
        return [
            torch.stack([response.mixed, (response.student - response.mixed).exp(), advantage], 1).float()
            for response, advantage in zip(responses, advantages, strict=True)
        ]

    def long_term(self, response: Drawn) -> Tensor:
        """Each token's advantage `[n]`: the mean reward of the tokens after it, and 0 for the last token.

        The paper's R_{t+1} / (T - t - 1), with the number of rewards in the sum as its divisor.
        """
        rewards = ((response.teacher - response.student) / self.reward_scale).clamp(-self.reward_clip, self.reward_clip)
        after = rewards.flip(0).cumsum(0).flip(0) - rewards
        left = torch.arange(len(rewards) - 1, -1, -1, dtype=rewards.dtype, device=rewards.device)
        return after / left.clamp_min(1)


@dataclass(frozen=True, eq=False)
class _Drawn(Divergence):
    """MiniLLM's objective for tokens whose log m, w and A (`data`, `[N, 3]`) are known."""

    clip: float
    data: Tensor
    reads_targets = True

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base class."""
        assert targets is not None
        mixed, weight, advantage = self.data.to(student.dtype).unbind(1)
        value, slope = reverse_kl(student, teacher)
        index = targets.unsqueeze(-1)
        ratio = (student.gather(-1, index).squeeze(-1) - mixed).exp()
        free, bound = -advantage * ratio, -advantage * ratio.clamp(1 - self.clip, 1 + self.clip)
        slope.mul_(weight.unsqueeze(-1))
        slope.scatter_add_(-1, index, torch.where(free >= bound, free, 0.0).unsqueeze(-1))
        return weight * value + torch.maximum(free, bound), slope
