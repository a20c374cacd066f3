"""The training objective: a list of weighted terms. A term gives a sum and the number of things that it sums over.

To add a term: a subclass of `Term` here, and a line in `objective_terms`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from distill.data.encode import IGNORE, ROLLOUT
from distill.losses import Divergence, WholeBatch, build, fused
from distill.losses.span import pair_weights
from distill.models.load import last_hidden
from distill.teacher.signal import LiveTeacher
from distill.training.micro_batch import MicroBatch
from distill.training.spans import RowSpans


@dataclass(frozen=True, eq=False)
class Part:
    """The result for a micro-batch of the terms that are computed together.

    Attributes:
        total: a scalar with gradient: over the terms, the sum of weight times the term's sum.
        sums: each term's sum by its name, without weight, detached.
        count: the number of things that the sums are over.
        counted: the name of the term that counted them; None if they are the response tokens.
        other_counts: the counts of those sums, by name, that are over other things.
    """

    total: Tensor
    sums: dict[str, Tensor]
    count: Tensor | int
    counted: str | None = None
    other_counts: dict[str, int] = field(default_factory=dict)


class Term(nn.Module):
    """One term of the objective: `weight` times its mean over the global batch.

    The mean is the sum of `forward` over the micro-batches and processes of a global batch, divided by the sum of
    `count`. So it does not depend on how the global batch is split.

    Attributes:
        name: a unique name. `Distiller` returns `<name>_sum`, and the curve has the column `eval_<name>`.
        weight: the term's factor in the objective. A term of weight 0 is measured in validation and costs nothing in
            training.
    """

    name: str

    def __init__(self, weight: float):
        super().__init__()
        self.weight = weight

    @property
    def without_dropout(self) -> bool:
        """Whether the student must be in eval mode during training, too."""
        return False

    def count(self, inputs: Mapping[str, Any]) -> int:
        """The number of things in a collated micro-batch (`MicroBatch.inputs`) that the sum is over; it may be 0."""
        raise NotImplementedError

    def forward(self, batch: MicroBatch) -> Tensor:
        """The sum over a micro-batch, a scalar with gradient. It is called only if `count` is larger than 0."""
        raise NotImplementedError


class TokenTerm(Term):
    """A term that is a sum over response tokens.

    All token terms are computed in one pass over the vocabulary (`Objective._token_part`). Their means are over all
    response tokens of the global batch.
    """


class CrossEntropy(TokenTerm):
    """Cross-entropy of the response tokens, in nats. Rows that the student wrote do not add to the sum.

    Their tokens are counted nevertheless, so that in a mixed batch both token terms are divided by the same count. In
    their place the data set's responses to the same prompts can be read, in a pass of their own (`forward`), with a
    mean over the tokens of these responses.

    Args:
        on_data: whether they are; then batches that the student wrote have them (`MicroBatch.inputs`).
    """

    name = "ce"

    def __init__(self, weight: float, on_data: bool = False):
        super().__init__(weight)
        self.on_data = on_data

    def count(self, inputs: Mapping[str, Any]) -> int:
        """The number of response tokens of the data set's own responses; 0 if the batch has none beside its rows."""
        rows = inputs.get("data_rows")
        return 0 if rows is None else int((rows["labels"] != IGNORE).sum())

    def forward(self, batch: MicroBatch) -> Tensor:
        """The sum over the data set's own responses."""
        rows = batch.inputs["data_rows"]
        valid = rows["labels"] != IGNORE
        hidden = last_hidden(batch.student, rows["input_ids"], rows["attention_mask"])[valid]
        return fused(None, hidden, batch.student_head, targets=rows["labels"][valid], w_ce=1.0, w_kd=0)


class TokenDivergence(TokenTerm):
    """A divergence from the teacher's next-token distributions.

    Args:
        temperature: divides the logits of student and teacher.

    Attributes:
        settled: the divergence that is used for the current global batch, if the configured one depends on all of its
            tokens (`Divergence.settles`). `Distiller.settle` chooses it before the first micro-batch.
    """

    name = "kd"

    def __init__(self, weight: float, divergence: Divergence, temperature: float = 1.0):
        super().__init__(weight)
        self.divergence, self.temperature = divergence, temperature
        self.settled: Divergence | None = None

    @property
    def without_dropout(self) -> bool:
        """Whether the divergence is a policy gradient.

        Dropout would distort its importance ratios, which divide the student's probabilities of the drawn tokens now by
        those when the tokens were drawn.
        """
        return self.divergence.reads_rollout


class SpanRelation(Term):
    """MGSR's span loss (equation 10): a mean over texts. It shares the pass over the vocabulary with the token terms.

    A text without spans adds 0 to the mean.

    Args:
        spans: the spans of each row.
        per: what a span's distances are divided by: its `tokens`, as printed, or its `pairs` of neighbours.
    """

    name = "span"

    def __init__(self, weight: float, spans: RowSpans, per: str = "tokens"):
        super().__init__(weight)
        self.spans, self.per = spans, per

    def count(self, inputs: Mapping[str, Any]) -> int:
        """The number of texts."""
        return int((inputs["labels"] != IGNORE).any(1).sum())

    def pairs(self, batch: MicroBatch) -> Tensor:
        """The weights `[N]` of the pairs of neighbouring response tokens, over the batch's texts."""
        lengths, ids = batch.valid.sum(1).tolist(), batch.inputs["example_ids"]
        rows = [(row, n) for row, n in zip(ids, lengths, strict=True) if n]
        weights = [w for row, n in rows for w in pair_weights(self.spans.spans_of(row, n), n, self.per)]
        return torch.tensor(weights, device=batch.valid.device)


class CorpusLoss(Term):
    """Cross-entropy of plain text, in nats per token. The first token of each block is not a target.

    Args:
        kd_share: the share of forward KL to the teacher in the term; the cross-entropy has the rest (MiniLLM's code).
        teacher: the model that gives it; needed if the share is not 0.
    """

    name = "lm"

    def __init__(self, weight: float, kd_share: float = 0.0, teacher: LiveTeacher | None = None):
        super().__init__(weight)
        self.kd_share, self.teacher = kd_share, teacher if kd_share else None
        if kd_share and teacher is None:
            raise ValueError(f"kd_share={kd_share} needs a teacher that runs on the corpus")

    def count(self, inputs: Mapping[str, Any]) -> int:
        """The number of targets in the corpus blocks."""
        blocks = inputs.get("corpus")
        return 0 if blocks is None else int(blocks[:, 1:].numel())

    def forward(self, batch: MicroBatch) -> Tensor:
        """See the base class."""
        ids, targets = batch.inputs["corpus"][:, :-1], batch.inputs["corpus"][:, 1:].flatten()
        every = torch.ones_like(ids)
        hidden = last_hidden(batch.student, ids, every).flatten(0, 1)
        if self.teacher is None:
            return fused(None, hidden, batch.student_head, targets=targets, w_ce=1.0, w_kd=0)
        teacher_hidden = self.teacher(ids, every, every.bool(), ())
        return fused(
            build("fkl"),
            hidden,
            batch.student_head,
            teacher_hidden,
            self.teacher.head,
            targets=targets,
            w_ce=1 - self.kd_share,
            w_kd=self.kd_share,
        )


def objective_terms(
    divergence: Divergence | None = None,
    w_ce: float = 1.0,
    w_kd: float = 0.0,
    temperature: float = 1.0,
    corpus: CorpusLoss | None = None,
    span: SpanRelation | None = None,
    ce_on_data: bool = False,
) -> list[Term]:
    """The terms of an objective: `w_ce * CE + w_kd * divergence + w_span * span`, and the corpus term.

    Args:
        divergence: the divergence from the teacher; None if `w_kd` is 0.
        temperature: divides the logits in the divergence.
        corpus: the term of a plain-text corpus, if there is one.
        span: the span loss, if there is one; it needs a divergence beside it, whose teacher it reads.
        ce_on_data: whether cross-entropy is computed on the data set's response where the student writes.

    Raises:
        ValueError: a divergence is given and `w_kd` is 0, or none is given and `w_kd` is not 0.
    """
    if (divergence is None) != (w_kd == 0):
        raise ValueError(f"w_kd={w_kd} and divergence={divergence}: a divergence and w_kd > 0 go together")
    return [
        CrossEntropy(w_ce, ce_on_data),
        *([] if divergence is None else [TokenDivergence(w_kd, divergence, temperature)]),
        *([] if span is None else [span]),
        *([] if corpus is None else [corpus]),
    ]


class Objective(nn.Module):
    """The weighted terms of one training.

    Raises:
        ValueError: two terms have the same name.
    """

    def __init__(self, terms: Sequence[Term]):
        super().__init__()
        names = [term.name for term in terms]
        if len(set(names)) != len(names):
            raise ValueError(f"the objective's terms are {', '.join(names)}: each name must stand once")
        self.terms: Sequence[Term] = nn.ModuleList(terms)  # type: ignore[assignment]
        self.settling = False  # whether only the divergence is needed, to choose it (`settle`)

    @property
    def ce(self) -> CrossEntropy | None:
        """The cross-entropy term, if there is one."""
        return next((term for term in self.terms if isinstance(term, CrossEntropy)), None)

    @property
    def kd(self) -> TokenDivergence | None:
        """The divergence term, if there is one."""
        return next((term for term in self.terms if isinstance(term, TokenDivergence)), None)

    @property
    def span(self) -> SpanRelation | None:
        """The span loss, if there is one."""
        return next((term for term in self.terms if isinstance(term, SpanRelation)), None)

    @property
    def reads_data_rows(self) -> bool:
        """Whether batches that the student wrote need the data set's own responses, for the cross-entropy."""
        return self.ce is not None and self.ce.on_data and self.ce.weight != 0

    def counts(self, batches: Sequence[Mapping[str, Any]]) -> dict[str, int]:
        """The counts over collated micro-batches of the terms that do not count response tokens, by term name."""
        terms = self._other_terms(training=True)
        terms += [self.span] if self.span is not None and self.span.weight else []
        terms += [self.ce] if self.reads_data_rows and self.ce is not None else []
        return {term.name: sum(term.count(batch) for batch in batches) for term in terms}

    def forward(self, batch: MicroBatch, tokens_per_text: float | None = None) -> list[Part]:
        """The terms' results for a micro-batch. A term whose count is 0 is left out.

        Args:
            batch: the micro-batch.
            tokens_per_text: of the global batch, response tokens over texts: the token part is divided by the tokens,
                and the span loss is a mean over texts. None takes those of the micro-batch.
        """
        parts = []
        weights = [term.weight for term in (self.ce, self.kd, self.span) if term is not None]
        if any(weights) or (weights and not batch.training):
            parts.append(self._token_part(batch, tokens_per_text))
        for term in self._other_terms(batch.training):
            if count := term.count(batch.inputs):
                total = term(batch)
                parts.append(Part(term.weight * total, {term.name: total.detach()}, count, term.name))
        if self.reads_data_rows and self.ce is not None and (count := self.ce.count(batch.inputs)):
            total = self.ce(batch)
            parts.append(Part(self.ce.weight * total, {"ce": total.detach()}, count, "ce"))
        return parts

    def _other_terms(self, training: bool) -> list[Term]:
        """The terms that do not count response tokens; in training only those with a weight."""
        own = (TokenTerm, SpanRelation)
        return [t for t in self.terms if not isinstance(t, own) and (t.weight or not training)]

    def _token_part(self, batch: MicroBatch, tokens_per_text: float | None) -> Part:
        """Cross-entropy, divergence and span loss over all response positions."""
        # In validation cross-entropy is measured even if its weight is 0.
        ce = self.ce
        with_ce = ce is not None and (ce.weight != 0 or not batch.training)
        left_out, sums = batch.student_text if with_ce else None, dict[str, Tensor]()
        span, pairs, texts = self.span, None, 0
        if span is not None and (span.weight or not batch.training) and not self.settling:
            texts = span.count(batch.inputs)
            pairs = span.pairs(batch) if texts else None
        tokens = batch.valid.sum()
        factor = 0.0  # of the pairs' weights: the part is divided by tokens, not by texts
        if span is not None and texts:
            factor = span.weight * (float(tokens) / texts if tokens_per_text is None else tokens_per_text)
        if left_out is None or bool(left_out.all()):
            total = self._fused(batch, None, with_ce and left_out is None, sums, pairs, factor)
        else:
            total = self._fused(batch, left_out, False, sums, pairs, factor)
            total = total + self._fused(batch, ~left_out, with_ce, sums, pairs, factor)
        return Part(total, sums, tokens, other_counts={"span": texts} if texts else {})

    def _fused(
        self,
        batch: MicroBatch,
        chosen: Tensor | None,
        with_ce: bool,
        sums: dict[str, Tensor],
        pairs: Tensor | None,
        factor: float,
    ) -> Tensor:
        """The weighted sum of the token terms over the chosen positions, a scalar with gradient.

        Args:
            chosen: a mask of positions `[N]` of whole rows; None chooses all of them.
            with_ce: whether cross-entropy is one of the terms.
            sums: each term's sum without weight is added to the entry of its name.
            pairs: the weights of the span loss's pairs `[N]`; None without span loss.
            factor: multiplies the span loss. With 0 it is measured.
        """

        def pick(values: Tensor | None) -> Tensor | None:
            return values if values is None or chosen is None else values[chosen]

        ce, kd = self.ce if with_ce else None, self.kd
        divergence = None if kd is None else kd.divergence if kd.settled is None else kd.settled
        drawn = batch.extras.get(ROLLOUT) if divergence is not None and divergence.reads_rollout else None
        reads_targets = divergence is not None and (divergence.reads_targets or drawn is not None)
        hidden, detached_sums = pick(batch.student_hidden), dict[str, Tensor]()
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
            parts=detached_sums,
            rollout_data=pick(drawn),
            pairs=pick(pairs),
            w_span=factor,
        )
        for name in ("ce", "kd", "span"):
            if (value := detached_sums.get(f"{name}_sum")) is not None and (name != "ce" or ce is not None):
                sums[name] = sums[name] + value if name in sums else value
        return total

    @torch.no_grad()
    def settle(self, total: Callable[[], Tensor], gather: Callable[[Tensor], Tensor], training: bool) -> None:
        """Let a divergence that depends on the whole global batch make its choice for it (`Divergence.for_batch`).

        Args:
            total: gives the sum of `self.kd.settled` over the global batch.
            gather: see `WholeBatch`.
            training: see `WholeBatch`.
        """
        kd = self.kd
        assert kd is not None

        def total_of(divergence: Divergence) -> Tensor:
            kd.settled = divergence
            return total()

        self.settling = True
        kd.settled = kd.divergence.for_batch(WholeBatch(total_of, gather, training))
        self.settling = False
