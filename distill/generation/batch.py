"""The batch loop: rows are decoded together, finished ones are removed or give their place to waiting prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distill.base.memory import keep_freed_memory
from distill.generation.attention import sharing_prefixes
from distill.generation.cache import SPARE, repeated
from distill.generation.decode import Chooser, NgramBan, RowStream
from distill.generation.reader import CachedModel, Mixture
from distill.generation.requests import Decoding, Progress
from distill.losses.mixtures import log_mixture
from distill.models.load import without_adapter

# Rows are removed or added only when they are at least one in so many: removing and appending copy the KV cache.
SHARE = 16
# Prefixes that are prefilled together: the shortest has at least this share of the longest's tokens, and all have at
# most so many columns.
ALIKE, PREFILL = 0.8, 4096


@dataclass
class Row:
    """One response that is being written.

    Attributes:
        requests: indices of the requests that it answers; several where nothing is drawn.
        prefix: index of its prefix in the group.
        prefix_length: tokens of its prefix.
        room: the most tokens that it may have, at least 1.
        done: whether EOS (`ended`) or the end of the room has finished it.
        ties: see `Response`.
    """

    requests: list[int]
    prefix: int
    prefix_length: int
    room: int
    stream: RowStream
    ban: NgramBan | None
    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    done: bool = False
    ties: int = 0

    def append(self, token: int, eos_id: int) -> None:
        """Take the next token; EOS or the end of the room finishes the row."""
        if token == eos_id:
            self.ended = self.done = True
            return
        self.tokens.append(token)
        if self.ban is not None:
            self.ban.add(token)
        self.done = len(self.tokens) == self.room


@dataclass
class PrefixRows:
    """A prefix, as token ids, and the rows that continue it."""

    tokens: list[int]
    rows: list[Row]


class Batch:
    """The rows that are decoded together. Row i of the KV caches and of the logits is `live[i]`.

    Args:
        model: a causal language model in eval mode, or a `Mixture`.
        prefixes: in the order in which they shall be admitted, longest first.
    """

    def __init__(self, model: Any, prefixes: Sequence[PrefixRows], decoding: Decoding, progress: Progress):
        self.decoding, self.progress = decoding, progress
        models = (model.student, model.teacher) if isinstance(model, Mixture) else (model,)
        self.models = [CachedModel(m) for m in models]
        self.share = model.share if isinstance(model, Mixture) else 0.0
        self.device = models[0].device
        self.chooser = Chooser(decoding.settings)
        self.waiting = list(prefixes)
        self.live: list[Row] = []
        self.logits = torch.zeros(0, 0, device=self.device)

    @torch.inference_mode()
    def run(self) -> None:
        """Write all rows to their ends; what was written is in the rows."""
        if self.device.type == "cpu":
            keep_freed_memory()
        with ExitStack() as contexts:
            for cached in self.models:
                contexts.enter_context(sharing_prefixes(without_adapter(cached.model)))
            while self.waiting or self.live:
                self._admit()
                chosen = self._remove_finished(self._choose())
                if self.live:
                    self._read(chosen)

    def _admit(self) -> None:
        """Add waiting prefixes: in the places of finished rows, or behind all rows while there is space for more."""
        if not self.waiting:
            return
        finished = [i for i, row in enumerate(self.live) if row.done]
        if len(finished) >= len(self.waiting[0].rows):
            count = self._admissible(len(finished))
            if count and len(finished) * SHARE >= len(self.live):
                for prefixes in self._take(count):
                    needed = sum(len(prefix.rows) for prefix in prefixes)
                    self._prefill(prefixes, finished[:needed])
                    finished = finished[needed:]
            return
        count = self._admissible()
        joining = sum(len(prefix.rows) for prefix in self.waiting[:count])
        if count and joining * SHARE >= len(self.live):
            for prefixes in self._take(count):
                self._prefill(prefixes)

    def _admissible(self, places: int | None = None) -> int:
        """How many prefixes, from the front of the queue, may be added now within `batch_tokens`.

        At least one where no row is being written.

        Args:
            places: how many finished rows they may replace; None where their rows are appended.
        """
        if not self.waiting:
            return 0
        unfinished = [row for row in self.live if not row.done]
        prefixes = {row.prefix: row.prefix_length for row in unfinished}  # each is held once
        longest, rows = max(prefixes.values(), default=0), len(self.live)
        room = max((row.room for row in unfinished), default=0)
        # Appending moves the responses into new buffers; for replacements those of before stay, however large
        allocated = self.models[0].allocated if places is not None else 0
        count = joining = 0
        for prefix in self.waiting:
            joining += len(prefix.rows)
            if places is not None and joining > places:
                break
            longest = max(longest, len(prefix.tokens))
            room = max(room, max(row.room for row in prefix.rows))
            total = rows if places is not None else rows + joining
            columns = (len(prefixes) + count + 1) * longest + total * max(room + SPARE, allocated)
            if (self.live or count) and columns > self.decoding.settings.batch_tokens:
                break
            count += 1
        return count

    def _take(self, count: int) -> list[list[PrefixRows]]:
        """Take so many prefixes from the front of the queue, longest first, cut into prefills of like length."""
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        cut: list[list[PrefixRows]] = []
        longest = 0
        for prefix in taken:
            length = len(prefix.tokens)
            if not cut or length < ALIKE * longest or (len(cut[-1]) + 1) * longest > PREFILL:
                cut.append([])
                longest = length
            cut[-1].append(prefix)
        return cut

    def _prefill(self, prefixes: list[PrefixRows], replaced: list[int] | None = None) -> None:
        """Read prefixes together, once each, and put their rows in place of the replaced ones, or (None) behind all."""
        longest, rows_each = max(len(prefix.tokens) for prefix in prefixes), [len(prefix.rows) for prefix in prefixes]
        ids = torch.full((len(prefixes), longest), self.decoding.pad_id)
        mask = torch.zeros_like(ids)
        for i, prefix in enumerate(prefixes):
            ids[i, longest - len(prefix.tokens) :] = torch.tensor(prefix.tokens)
            mask[i, longest - len(prefix.tokens) :] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        finished = torch.tensor([i for i, row in enumerate(self.live) if row.done], device=self.device).long()
        places = None if replaced is None else torch.tensor(replaced, device=self.device)
        logits = self._scores([cached.prefill(ids, mask, rows_each, places, finished) for cached in self.models])
        logits, rows = logits[repeated(rows_each, self.device)], [row for prefix in prefixes for row in prefix.rows]
        if not self.live:
            self.logits, self.live = logits, rows
        elif replaced is None:
            self.logits = torch.cat([self.logits, logits])
            self.live += rows
        else:
            self.logits[places] = logits
            self._report([self.live[i] for i in replaced])
            for i, row in zip(replaced, rows, strict=True):
                self.live[i] = row

    def _choose(self) -> Tensor:
        """Choose each row's next token `[rows]` and append it to the row."""
        chosen, tied = self.chooser(
            self.logits,
            [None if row.done else row.stream for row in self.live],
            [None if row.done else row.ban for row in self.live],
        )
        for row, token, near in zip(self.live, chosen.tolist(), tied.tolist(), strict=True):
            if not row.done:
                row.ties += near
                row.append(token, self.decoding.eos_id)
        return chosen

    def _remove_finished(self, chosen: Tensor) -> Tensor:
        """Remove finished rows once they are many, unless waiting prefixes will replace them; the tokens of the rest.

        Drops the columns that no unfinished row reads.
        """
        unfinished = [row for row in self.live if not row.done]
        finished = [row for row in self.live if row.done]
        if not unfinished:
            self._report(finished)
            self.live = []
            for cached in self.models:
                cached.cache = None
            return chosen
        if len(finished) * SHARE >= len(self.live) and finished and not self._admissible(len(finished)):
            self._report(finished)
            keep = torch.tensor([i for i, row in enumerate(self.live) if not row.done], device=self.device)
            for cached in self.models:
                cached.select(keep)
            chosen, self.live = chosen[keep], unfinished
        for cached in self.models:  # the chosen token is not in the cache yet
            cached.keep_columns(max(len(row.tokens) - 1 for row in unfinished))
        return chosen

    def _read(self, chosen: Tensor) -> None:
        """Run the model over the chosen tokens. What a finished row computes means nothing."""
        positions = [0 if row.done else row.prefix_length + len(row.tokens) - 1 for row in self.live]
        position_ids = torch.tensor(positions, device=self.device).unsqueeze(1)
        self.logits = self._scores([cached.read(chosen.unsqueeze(1), position_ids) for cached in self.models])

    def _scores(self, logits: list[Tensor]) -> Tensor:
        """The scores that tokens are drawn by: a model's logits, or a mixture's log-probabilities."""
        if len(logits) == 1:
            return logits[0]
        width = min(x.shape[-1] for x in logits)  # one vocabulary may be padded
        student, teacher = (x[:, :width].log_softmax(-1) for x in logits)
        return log_mixture(teacher, student, self.share)

    def _report(self, finished: list[Row]) -> None:
        self.progress(sum(len(row.requests) for row in finished))
