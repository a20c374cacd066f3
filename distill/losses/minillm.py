"""MiniLLM's objective: reverse KL of whole responses, by policy gradient over rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from distill.base.registry import SWITCH
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
        whiten: whether advantages are normalised to mean 0 and standard deviation 1.
        whitened_over: whether they are so over the tokens of a rollout, or over those of each step's global batch, the
            padding of every text up to the longest allowed length included (published code).
        own_reward: whether a token's advantage has its own reward too (published code).
        discount: the factor of a reward for each token that it lies ahead, in (0, 1] (published code: 0.95).
        weighted_kl: whether the closed-form KL has the weight w (published code: no).
    """

    source = "Gu et al. 2024 (MiniLLM), section 2.2 and algorithm 1"
    formula = "w KL(q || p) + max(-A r, -A clip(r))"
    limits = "rkl where it is not known how the tokens were drawn"
    elsewhere = (
        "the published code leaves w out of the first part, counts a step's own reward in A, which the first part holds"
        " already, discounts rewards by 0.95 a token and whitens A over each step's batch with its padding; its corpus"
        " term is half forward KL to the teacher; whitening and the rewards' scale are the code's, not the paper's"
    )
    reads_rollout = True
    clip: float = 0.2
    reward_scale: float = 0.5
    reward_clip: float = 100.0
    whiten: bool = True
    whitened_over: str = field(default="rollout", metadata=SWITCH)
    own_reward: bool = field(default=False, metadata=SWITCH)
    discount: float = field(default=1.0, metadata=SWITCH)
    weighted_kl: bool = field(default=True, metadata=SWITCH)

    def __post_init__(self) -> None:
        if self.whitened_over not in ("rollout", "step"):
            raise ValueError(f"whitened_over={self.whitened_over} must be rollout or step")
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount={self.discount} must be larger than 0 and at most 1")
        for name in ("clip", "reward_scale", "reward_clip"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be larger than 0")

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base class. It is the reverse KL, since it is not known how the tokens were sampled."""
        return reverse_kl(student, teacher)

    def with_rollout_data(self, data: Tensor) -> Divergence:
        """The objective of sampled tokens; `data` `[N, 3]` are their log m, w and A."""
        return _Drawn(self.clip, data, self.weighted_kl)

    def rollout_data(self, responses: Sequence[Drawn]) -> list[Tensor]:
        """log m, w and A of each token in fp32, one tensor `[n, 3]` per response.

        Args:
            responses: all responses of a rollout, over which advantages are whitened.
        """
        advantages = [self.long_term(response) for response in responses]
        if self.whiten and self.whitened_over == "rollout":
            advantages = _whitened(advantages, sum(map(len, advantages)))
        return [
            torch.stack([response.mixed, (response.student - response.mixed).exp(), advantage], 1).float()
            for response, advantage in zip(responses, advantages, strict=True)
        ]

    def step_data(self, data: Sequence[Tensor], longest: int) -> list[Tensor]:
        """The data of a step's texts with their advantages whitened over the step, if `whitened_over` says so.

        Published code pads every text to `longest` tokens with advantages of 0, which count.
        """
        if not self.whiten or self.whitened_over == "rollout":
            return list(data)
        advantages = _whitened([tokens[:, 2] for tokens in data], len(data) * longest)
        return [torch.cat([tokens[:, :2], a.unsqueeze(1)], 1) for tokens, a in zip(data, advantages, strict=True)]

    def long_term(self, response: Drawn) -> Tensor:
        """Each token's advantage `[n]`: the mean reward of the tokens after it, and 0 for the last token.

        The paper's R_{t+1} / (T - t - 1), with the number of rewards in the sum as its divisor. With `own_reward` the
        token's own reward is in sum and divisor. With a discount the sum is discounted and the divisor is not.
        """
        rewards = ((response.teacher - response.student) / self.reward_scale).clamp(-self.reward_clip, self.reward_clip)
        total = _discounted(rewards, self.discount)
        left = torch.arange(len(rewards), 0, -1, dtype=rewards.dtype, device=rewards.device)
        if self.own_reward:
            return total / left
        after = torch.cat([total[1:], total.new_zeros(1)])
        return after / (left - 1).clamp_min(1)


def _discounted(rewards: Tensor, discount: float) -> Tensor:
    """For each token `[n]` the sum of its own reward and those after it, times `discount` for each token between."""
    if discount == 1:
        return rewards.flip(0).cumsum(0).flip(0)
    ahead = torch.arange(len(rewards), dtype=rewards.dtype, device=rewards.device)
    distance = ahead.unsqueeze(0) - ahead.unsqueeze(1)
    weights = torch.where(distance >= 0, discount ** distance.clamp_min(0), 0.0)
    return weights @ rewards


def _whitened(advantages: Sequence[Tensor], count: int) -> list[Tensor]:
    """The advantages minus their mean over their standard deviation, of `count` values: the missing ones are 0."""
    flat = torch.cat(list(advantages))
    mean = flat.sum() / count
    variance = ((flat - mean).square().sum() + (count - len(flat)) * mean.square()) / count
    std = variance.sqrt().clamp_min(1e-8)
    return [(a - mean) / std for a in advantages]


@dataclass(frozen=True, eq=False)
class _Drawn(Divergence):
    """MiniLLM's objective for tokens whose log m, w and A (`data`, `[N, 3]`) are known."""

    clip: float
    data: Tensor
    weighted_kl: bool = True
    reads_targets = True

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base class."""
        assert targets is not None
        mixed, weight, advantage = self.data.to(student.dtype).unbind(1)
        weight = weight if self.weighted_kl else torch.ones_like(weight)
        value, slope = reverse_kl(student, teacher)
        index = targets.unsqueeze(-1)
        ratio = (student.gather(-1, index).squeeze(-1) - mixed).exp()
        free, bound = -advantage * ratio, -advantage * ratio.clamp(1 - self.clip, 1 + self.clip)
        slope.mul_(weight.unsqueeze(-1))
        slope.scatter_add_(-1, index, torch.where(free >= bound, free, 0.0).unsqueeze(-1))
        return weight * value + torch.maximum(free, bound), slope
