"""The module that is trained: student, frozen teacher and objective in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distill.data.encode import IGNORE
from distill.losses import Divergence, Head, fused
from distill.models.load import last_hidden, output_head
from distill.teacher.signal import LiveTeacher, NewTextTeacher, StoredTeacher


@dataclass(frozen=True)
class _Tokens:
    """The response positions of a micro-batch: hidden states `[N, d]`, targets `[N]`, figures `[N, k]`."""

    hidden: Tensor
    teacher: Tensor | None
    targets: Tensor
    figures: Tensor | None

    def __getitem__(self, chosen: Tensor) -> _Tokens:
        teacher, figures = (None if x is None else x[chosen] for x in (self.teacher, self.figures))
        return _Tokens(self.hidden[chosen], teacher, self.targets[chosen], figures)


class Distiller(nn.Module):
    """Student with objective `w_ce * CE + w_kd * divergence`, over response positions only.

    The heads read the hidden states of response positions alone and in chunks (`distill.losses.fused`), so prompts and
    padding cost no logits, and long batches no memory for them. The teacher, live or stored
    (`distill.teacher.signal`), is a submodule, so that it is moved with the student. A batch's mean is over its valid
    tokens, or with `mean="micro_batches"`, as published code has it, over the token means of its micro-batches.
    """

    def __init__(
        self,
        student: Any,
        teacher: LiveTeacher | StoredTeacher | NewTextTeacher | None = None,
        divergence: Divergence | None = None,
        w_ce: float = 1.0,
        w_kd: float = 0.0,
        temperature: float = 1.0,
        mean: Literal["tokens", "micro_batches"] = "tokens",
        w_lm: float = 0.0,
    ):
        super().__init__()
        # Whether Trainer hands in the valid tokens of the whole global batch; if not, it takes the mean of the
        # micro-batches' and processes' losses.
        self.accepts_loss_kwargs = mean == "tokens"
        if (divergence is None) != (w_kd == 0) or (teacher is None) != (w_kd == 0):
            raise ValueError("a divergence, a teacher and w_kd > 0 go together")
        self.student, self.teacher, self.divergence = student, teacher, divergence
        self.w_ce, self.w_kd, self.temperature, self.w_lm = w_ce, w_kd, temperature, w_lm
        self.settled: Divergence | None = None  # what a divergence that reads the whole batch came to, by `settle`

    def train(self, mode: bool = True) -> Distiller:
        """As in torch; a policy gradient's student stays in eval mode, since dropout would spoil the ratios of its
        probabilities to those that its tokens were drawn by."""
        super().train(mode)
        if self.divergence is not None and self.divergence.reads_figures:
            self.student.eval()
        return self

    @property
    def settling(self) -> bool:
        """Whether the divergence depends on all tokens of a batch."""
        return self.divergence is not None and self.divergence.settles

    @torch.no_grad()
    def settle(self, batches: Sequence[dict[str, Any]], together: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        """Let a divergence that depends on all tokens of a batch choose what counts for these micro-batches.

        Args:
            batches: keyword arguments of `forward`, all of a global batch that this process has.
            together: adds a sum up over processes.
        """
        assert self.divergence is not None
        training = self.training
        self.eval()

        def total(one: Divergence) -> Tensor:
            self.settled = one
            return together(torch.stack([self(**batch)["kd_sum"] for batch in batches]).sum())

        self.settled = self.divergence.for_batch(total)
        self.train(training)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        example_ids: Sequence[str] = (),
        num_items_in_batch: Tensor | int | None = None,
        own_text: Tensor | None = None,
        figures: Tensor | None = None,
        corpus: Tensor | None = None,
        corpus_tokens: int = 1,
        **_: Any,
    ) -> dict[str, Tensor]:
        """The objective's sum over response tokens divided by `num_items_in_batch`, and its detached parts.

        Args:
            input_ids, attention_mask: `[B, T]`.
            labels: `[B, T]`, already shifted: `labels[b, t]` is what the logits at `t` predict, -100 where nothing is.
            example_ids: the rows' ids, for a stored teacher.
            num_items_in_batch: valid tokens of the whole global batch; without it, of this batch.
            own_text: `[B]`, rows that the student wrote itself: the objective's cross-entropy leaves them out.
            figures: what a policy gradient knows of each valid token `[N, k]`.
            corpus: blocks of plain text `[C, L]`; their mean cross-entropy, times `w_lm`, joins the loss.
            corpus_tokens: the targets in the corpus of the whole global batch.

        Returns:
            `loss`; `ce_sum` (outside training, or if it is part of the objective) and `kd_sum` in nats; `tokens`.
        """
        valid = labels != IGNORE
        hidden, theirs, head = last_hidden(self.student, input_ids, attention_mask)[valid], None, None
        if self.teacher is not None:
            theirs, head = self.teacher(input_ids, attention_mask, valid, example_ids), self.teacher.head
        # Cross-entropy that is no part of the objective is measured in validation, and costs nothing in training.
        inputs = _Tokens(hidden, theirs, labels[valid], figures)
        parts: dict[str, Tensor] = {}
        if own_text is None or not bool(own_text.any()):
            total = self._objective(inputs, head, self.w_ce, parts)
        else:
            own = own_text.to(valid.device).repeat_interleave(valid.sum(1))
            total = self._objective(inputs[own], head, 0.0, parts)
            if not bool(own.all()):
                total = total + self._objective(inputs[~own], head, self.w_ce, parts)
        tokens = valid.sum()  # none in a micro-batch of fillers alone: its loss is 0
        counted = torch.as_tensor(tokens if num_items_in_batch is None else num_items_in_batch)
        loss = total / counted.clamp(min=1)
        if corpus is not None:
            if not self.accepts_loss_kwargs:  # Trainer takes the mean of the micro-batches' losses
                corpus_tokens = corpus[:, 1:].numel()
            loss = loss + self.w_lm * self._corpus(corpus) / corpus_tokens
        return {"loss": loss, "tokens": tokens, **parts}

    def _objective(self, tokens: _Tokens, head: Head | None, w_ce: float, parts: dict[str, Tensor]) -> Tensor:
        """The objective's sum over tokens; its parts are added to `parts`."""
        divergence = self.divergence if self.settled is None else self.settled
        needed = divergence is not None and (divergence.reads_targets or tokens.figures is not None)
        found: dict[str, Tensor] = {}
        total = fused(
            divergence,
            tokens.hidden,
            output_head(self.student),
            tokens.teacher,
            head,
            # Cross-entropy that is no part of the objective is measured in validation, and costs nothing in training.
            targets=tokens.targets if w_ce or not self.training or needed else None,
            w_ce=w_ce,
            w_kd=self.w_kd,
            temperature=self.temperature,
            parts=found,
            figures=tokens.figures,
        )
        for name, value in found.items():
            parts[name] = parts[name] + value if name in parts else value
        return total

    def _corpus(self, blocks: Tensor) -> Tensor:
        """Cross-entropy of plain text `[C, L]`, summed over all its tokens but the first of each block."""
        hidden = last_hidden(self.student, blocks[:, :-1], torch.ones_like(blocks[:, :-1]))
        return fused(
            None, hidden.flatten(0, 1), output_head(self.student), targets=blocks[:, 1:].flatten(), w_ce=1.0, w_kd=0.0
        )
