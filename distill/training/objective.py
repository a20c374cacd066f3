"""The training objective: a list of weighted terms, each a sum over what it counts and the number of what it counts.

To add a term: a subclass of `Term` here, and a line in `objective_terms`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distill.data.encode import ROLLOUT
from distill.losses import Divergence, fused
from distill.models.load import last_hidden
from distill.training.micro_batch import MicroBatch


@dataclass(frozen=True, eq=False)
class Part:
    """What terms that are computed together make of a micro-batch.

    Attributes:
        total: the sum of weight times the term's sum, differentiated.
        sums: each term's own sum by its name, without weight, detached.
        count: how many the sums are over.
        counted: the term whose count it is, or None where response tokens are counted.
    """

    total: Tensor
    sums: dict[str, Tensor]
    count: Tensor | int
    counted: str | None = None


class Term(nn.Module):
    """One term of the objective: `weight` times its mean over the global batch.

    The mean is the sum of `forward` over the micro-batches and processes of a global batch, divided by that of `count`;
    how the batch is cut changes nothing.

    Attributes:
        name: `<name>_sum` in what `Distiller` returns, `eval_<name>` in a curve.
        weight: in the objective. A term without weight is measured in validation and costs nothing in training.
    """

    name: str

    def __init__(self, weight: float):
        super().__init__()
        self.weight = weight

    @property
    def without_dropout(self) -> bool:
        """Whether the student must be in eval mode also in training."""
        return False

    def count(self, inputs: Mapping[str, Any]) -> int:
        """How many things of a collated micro-batch (`MicroBatch.inputs`) the sum is over; 0 if there are none."""
        raise NotImplementedError

    def forward(self, batch: MicroBatch) -> Tensor:
        """The sum over a micro-batch, a differentiable scalar; called where `count` is larger than 0."""
        raise NotImplementedError


class TokenTerm(Term):
    """A term over single response tokens. All of them are computed in one pass over the vocabulary (`_token_part`), and
    their means are over all response tokens of the global batch."""


class CrossEntropy(TokenTerm):
    """Cross-entropy of the response tokens, in nats; it leaves out rows that the student wrote itself.

    Those rows' tokens count in the mean nevertheless: in a mixed batch a token weighs in cross-entropy what it weighs
    in the divergence.
    """

    name = "ce"


class TokenDivergence(TokenTerm):
    """A divergence from the teacher's next-token distributions.

    Args:
        temperature: divides both sides' logits.

    Attributes:
        settled: the divergence that counts for the current global batch, for one that depends on all of its tokens
            (`Divergence.settles`): `Distiller.settle` chooses it before the batch's first micro-batch.
    """

    name = "kd"

    def __init__(self, weight: float, divergence: Divergence, temperature: float = 1.0):
        super().__init__(weight)
        self.divergence, self.temperature = divergence, temperature
        self.settled: Divergence | None = None

    @property
    def without_dropout(self) -> bool:
        """A policy gradient's student has no dropout, which would spoil the ratios of its probabilities to those that
        its tokens were drawn by."""
        return self.divergence.reads_rollout


class CorpusLoss(Term):
    """Cross-entropy of plain text, in nats a token; the first token of each block is no target."""

    name = "lm"

    def count(self, inputs: Mapping[str, Any]) -> int:
        """The corpus's targets."""
        blocks = inputs.get("corpus")
        return 0 if blocks is None else int(blocks[:, 1:].numel())

    def forward(self, batch: MicroBatch) -> Tensor:
        """See the base class."""
        blocks = batch.inputs["corpus"]
        hidden = last_hidden(batch.student, blocks[:, :-1], torch.ones_like(blocks[:, :-1]))
        return fused(None, hidden.flatten(0, 1), batch.student_head, targets=blocks[:, 1:].flatten(), w_ce=1.0, w_kd=0)


def objective_terms(
    divergence: Divergence | None = None,
    w_ce: float = 1.0,
    w_kd: float = 0.0,
    temperature: float = 1.0,
    w_lm: float = 0.0,
) -> list[Term]:
    """The terms of an objective `w_ce * CE + w_kd * divergence + w_lm * corpus loss`.

    Args:
        divergence: from the teacher; None where `w_kd` is 0.
        temperature: of the divergence.

    Raises:
        ValueError: there is a divergence without weight, or a weight without a divergence.
    """
    if (divergence is None) != (w_kd == 0):
        raise ValueError(f"w_kd={w_kd} and divergence={divergence}: a divergence and w_kd > 0 go together")
    return [
        CrossEntropy(w_ce),
        *([] if divergence is None else [TokenDivergence(w_kd, divergence, temperature)]),
        CorpusLoss(w_lm),
    ]


class Objective(nn.Module):
    """The weighted terms of one training.

    Raises:
        ValueError: two terms have one name.
    """

    def __init__(self, terms: Sequence[Term]):
        super().__init__()
        names = [term.name for term in terms]
        if len(set(names)) != len(names):
            raise ValueError(f"the objective's terms are {', '.join(names)}: each name must stand once")
        self.terms: Sequence[Term] = nn.ModuleList(terms)  # type: ignore[assignment]

    @property
    def ce(self) -> CrossEntropy | None:
        """The cross-entropy among the terms."""
        return next((term for term in self.terms if isinstance(term, CrossEntropy)), None)

    @property
    def kd(self) -> TokenDivergence | None:
        """The divergence among the terms."""
        return next((term for term in self.terms if isinstance(term, TokenDivergence)), None)

    def counts(self, batches: Sequence[Mapping[str, Any]]) -> dict[str, int]:
        """What each term that counts no response tokens counts in collated micro-batches, by its name."""
        return {term.name: sum(term.count(batch) for batch in batches) for term in self._others(training=True)}

    def forward(self, batch: MicroBatch) -> list[Part]:
        """What the terms make of a micro-batch; a term that finds nothing to count is left out."""
        parts = []
        weights = [term.weight for term in (self.ce, self.kd) if term is not None]
        if any(weights) or (weights and not batch.training):
            parts.append(self._token_part(batch))
        for term in self._others(batch.training):
            if count := term.count(batch.inputs):
                total = term(batch)
                parts.append(Part(term.weight * total, {term.name: total.detach()}, count, term.name))
        return parts

    def _others(self, training: bool) -> list[Term]:
        """The terms that count something else than response tokens, in training those with a weight."""
        return [t for t in self.terms if not isinstance(t, TokenTerm) and (t.weight or not training)]

    def _token_part(self, batch: MicroBatch) -> Part:
        """Cross-entropy and divergence over all response positions."""
        # Cross-entropy that is no part of the objective is measured in validation.
        ce = self.ce
        with_ce = ce is not None and (ce.weight != 0 or not batch.training)
        left_out, sums = batch.student_text if with_ce else None, dict[str, Tensor]()
        if left_out is None or bool(left_out.all()):
            total = self._fused(batch, None, with_ce and left_out is None, sums)
        else:
            total = self._fused(batch, left_out, False, sums) + self._fused(batch, ~left_out, with_ce, sums)
        return Part(total, sums, batch.valid.sum())

    def _fused(self, batch: MicroBatch, chosen: Tensor | None, with_ce: bool, sums: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the token terms over some positions; each term's own sum is added to `sums`.

        Args:
            chosen: a mask of positions `[N]`; None is all of them.
            with_ce: whether cross-entropy is one of the terms.
        """

        def pick(values: Tensor | None) -> Tensor | None:
            return values if values is None or chosen is None else values[chosen]

        ce, kd = self.ce if with_ce else None, self.kd
        divergence = None if kd is None else kd.divergence if kd.settled is None else kd.settled
        drawn = batch.extras.get(ROLLOUT) if divergence is not None and divergence.reads_rollout else None
        reads_targets = divergence is not None and (divergence.reads_targets or drawn is not None)
        hidden, found = pick(batch.student_hidden), dict[str, Tensor]()
        assert hidden is not None
        total = fused(
            divergence,
            hidden,
            batch.student_head,
            pick(batch.teacher_hidden),
            batch.teacher_head,
            targets=pick(batch.targets) if with_ce or reads_targets else None,
            w_ce=0.0 if ce is None else ce.weight,
            w_kd=0.0 if kd is None else kd.weight,
            temperature=1.0 if kd is None else kd.temperature,
            parts=found,
            rollout_data=pick(drawn),
        )
        for term in (ce, kd):
            if term is not None:
                value = found[f"{term.name}_sum"]
                sums[term.name] = sums[term.name] + value if term.name in sums else value
        return total

    @torch.no_grad()
    def settle(self, total: Callable[[], Tensor]) -> None:
        """Let a divergence that depends on the whole global batch choose what counts for it (`Divergence.for_batch`).

        Args:
            total: gives the sum of the divergence over the global batch, with `self.kd.settled` in its place.
        """
        kd = self.kd
        assert kd is not None

        def total_of(divergence: Divergence) -> Tensor:
            kd.settled = divergence
            return total()

        kd.settled = kd.divergence.for_batch(total_of)
