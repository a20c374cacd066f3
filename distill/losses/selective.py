"""Forward KL on some of the tokens only: rivals of MGSR's table 7."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill.losses.base import Collected, Divergence, WholeBatch, register
from distill.losses.kl import forward_kl

SCOPES = ("batch", "queue")


def log_prob(log_probs: Tensor, targets: Tensor) -> Tensor:
    """The log-probability `[N]` of each token `[N]`, from log-probabilities `[N, V]`."""
    return log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def hardness(student: Tensor, teacher: Tensor, targets: Tensor | None) -> Tensor:
    """The student's cross-entropy of each token, `[N, 1]`."""
    assert targets is not None
    return -log_prob(student, targets).unsqueeze(-1)


def kl_where(student: Tensor, teacher: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p || q) `[N]` and its derivative by log q `[N, V]` at the tokens of the mask `[N]`; 0 at the others."""
    value, slope = forward_kl(student, teacher)
    return value.masked_fill(~chosen, 0), slope.masked_fill_(~chosen.unsqueeze(-1), 0)


@dataclass(frozen=True)
class HardTokens(Divergence):
    """Forward KL at the tokens whose cross-entropy under the student is at least `threshold`; 0 at the others.

    Attributes:
        threshold: in nats.
    """

    reads_targets = True
    threshold: float = 0.0

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base class."""
        assert targets is not None
        return kl_where(student, teacher, -log_prob(student, targets) >= self.threshold)


@register("selective")
@dataclass(eq=False)
class Selective(Divergence):
    """Forward KL at the tokens that are hardest for the student, and 0 at the others; cross-entropy is on all tokens.

    A token is as hard as its cross-entropy under the student is high. Which ones are hardest is decided over the whole
    global batch, in a pass of its own without gradient, or over the last tokens of the training, those of the batch
    included. The mean is over all tokens. Tokens as hard as the last chosen one are chosen too.

    Attributes:
        rate: the share of tokens that the KL is on, in (0, 1].
        scope: whether they are the hardest of the global batch (batch), or those as hard as the hardest `rate` of the
            last `queue` tokens of the training (queue).
        queue: the number of these tokens; the cited code has 30,000 and 50,000 for its two pairs of languages.
    """

    source = "Wang et al. 2021 (selective KD for NMT), batch-level and global-level; MGSR table 7"
    formula = "KL(p || q) where -log q(y) is among the largest ceil(rate N), otherwise 0"
    at_limits = "fkl at rate = 1; 0 at p = q"
    reads_targets = True
    rate: float = 0.5
    scope: str = "batch"
    queue: int = 30_000

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate={self.rate} must be in (0, 1]")
        if self.scope not in SCOPES:
            raise ValueError(f"scope={self.scope} must be one of {', '.join(SCOPES)}")
        if self.queue < 1:
            raise ValueError(f"queue={self.queue} must be at least 1")
        self._last = torch.zeros(0, dtype=torch.float64)

    @property
    def settles(self) -> bool:
        """See the base class."""
        return self.rate < 1

    def for_batch(self, total: WholeBatch) -> Divergence:
        """Forward KL at the tokens above the threshold of this batch, or of the queue with this batch at its end."""
        if self.rate == 1:
            return HardTokens(0.0)
        values = Collected.of(total, hardness, 1, targets=True)[:, 0]
        if self.scope == "queue" and total.training:
            # Collected values are in order of hardness: without mixing, a queue that cuts its oldest batch would drop
            # the hardest tokens of it. The order must not depend on the number of processes.
            mixed = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(0))]
            values = self._last = torch.cat((self._last, mixed))[-self.queue :]
        if not len(values):
            return HardTokens(0.0)
        count = math.ceil(self.rate * len(values))
        return HardTokens(float(values.topk(count).values[-1]))

    def state(self) -> dict[str, Any]:
        """See the base class: the queue."""
        return {"queue": self._last} if self.scope == "queue" else {}

    def restore(self, state: dict[str, Any]) -> None:
        """See the base class."""
        self._last = state["queue"]


@register("filtration")
@dataclass(frozen=True)
class Filtration(Divergence):
    """Forward KL at the tokens to which the teacher gives at least the student's probability; 0 at the others.

    The paper filters a teacher's knowledge by whether it serves the reference, with measures whose exact forms this
    project has not read: this reading compares the probabilities of the response token. Its second part, inheritance
    from the student's own start, is for a series of teachers one after the other, and left out.
    """

    source = "Zhang et al. 2023 (continual KD for NMT), knowledge filtration, this project's reading; MGSR table 7"
    formula = "KL(p || q) where p(y) >= q(y), otherwise 0"
    at_limits = "0 at p = q"
    reads_targets = True

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base class."""
        assert targets is not None
        return kl_where(student, teacher, log_prob(teacher, targets) >= log_prob(student, targets))


@register("slim")
@dataclass(frozen=True)
class Slim(Divergence):
    """KL to the teacher's top logits, and cross-entropy of the token; the more confident of the two models decides.

    The KL is KL(p' || q), p' the teacher on the largest `share` of its logits, renormalised. Its weight a is the
    teacher's part of both models' probability of the response token, and the cross-entropy has the rest; a carries no
    gradient. The paper says that the weight comes from the relative confidence of student and teacher; this form of it
    is this project's reading. MGSR's text has a cumulative mass of 0.95 instead of a share: `top_p_clip`.

    Where the student writes, the response token is its own draw, and the cross-entropy would teach the student what it
    does already: `cross_entropy=false` leaves it out, and `loss.w_ce` on the data's response is beside it.

    Attributes:
        share: the share of the classes that p' has mass on, in (0, 1]; at least one class.
        cross_entropy: whether the cross-entropy of the token has the rest of the weight.
    """

    source = "Raman et al. 2023 (SLIM), this project's reading; MGSR table 7"
    formula = "a KL(p' || q) - (1 - a) log q(y), a = p(y) / (p(y) + q(y)), p' = p on its top share of classes"
    at_limits = "at p = q half of -log q(y), and half of -log of the mass of p'"
    reads_targets = True
    share: float = 0.05
    cross_entropy: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share} must be in (0, 1]")

    def value_and_slope(self, student: Tensor, teacher: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
        """See the base class."""
        assert targets is not None
        top, classes = teacher.topk(max(1, math.floor(self.share * teacher.shape[-1])), -1)
        top = top - top.logsumexp(-1, keepdim=True)
        p = top.exp()
        kl = torch.linalg.vecdot(p, top - student.gather(-1, classes))
        of_student, of_teacher = log_prob(student, targets), log_prob(teacher, targets)
        weight = (of_teacher - of_student).sigmoid()
        slope = torch.zeros_like(student).scatter_(-1, classes, p * -weight.unsqueeze(-1))
        if not self.cross_entropy:
            return weight * kl, slope
        slope.scatter_add_(-1, targets.unsqueeze(-1), (weight - 1).unsqueeze(-1))
        return weight * kl - (1 - weight) * of_student, slope
