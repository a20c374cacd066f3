"""The batch loop: decodes rows together, and removes finished rows or replaces them with those of waiting prefixes."""

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
from distill.generation.known import MIN_LENGTH_RATIO, Known
from distill.generation.reader import CachedModel, Mixture
from distill.generation.requests import Decoding, Progress
from distill.losses.mixtures import log_mixture
from distill.models.load import without_adapter

# Rows are removed or added only when they are at least 1 / SHARE of the batch, since both copy the KV cache.
SHARE = 16
PREFILL_COLUMNS = 4096  # limit of a prefill's size: prefixes times columns


@dataclass
class Row:
    """One response that is being written.

    Attributes:
        requests: indices of the requests that it answers. Without sampling, equal requests share a row.
        prefix: index of its prefix in the group.
        prefix_length: number of tokens of its prefix.
        room: limit of its tokens, at least 1.
        stream: the random stream that its tokens are drawn from.
        ban: the n-grams that it may not repeat; None if n-grams may repeat.
        tokens: the response so far, without EOS.
        ended: whether EOS ended the response.
        done: whether the response is finished, by EOS or because it has `room` tokens.
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
        """Append the next token. EOS finishes the row and is not part of its tokens."""
        if token == eos_id:
            self.ended = self.done = True
            return
        self.tokens.append(token)
        if self.ban is not None:
            self.ban.add(token)
        self.done = len(self.tokens) == self.room


@dataclass
class PrefixRows:
    """A prefix and the rows that continue it.

    Attributes:
        tokens: the prefix's token ids.
        rows: the responses that are written behind it.
        known: see `Request`.
    """

    tokens: list[int]
    rows: list[Row]
    known: Known | None = None


class Batch:
    """The rows that are decoded together. Row i of the KV caches and of the logits is `rows[i]`.

    Args:
        model: a causal language model in eval mode, or a `Mixture`.
        prefixes: in the order in which they are prefilled, longest first.
        decoding: see `Decoding`.
        progress: called with the number of responses that were finished since the last call.
    """

    def __init__(self, model: Any, prefixes: Sequence[PrefixRows], decoding: Decoding, progress: Progress):
        self.decoding, self.progress = decoding, progress
        models = (model.student, model.teacher) if isinstance(model, Mixture) else (model,)
        self.models = [CachedModel(m) for m in models]
        self.teacher_share = model.share if isinstance(model, Mixture) else 0.0
        self.device = models[0].device
        self.chooser = Chooser(decoding.settings)
        self.waiting = list(prefixes)
        self.rows: list[Row] = []
        self.logits = torch.zeros(0, 0, device=self.device)

    @torch.inference_mode()
    def run(self) -> None:
        """Decode until every row is finished. The tokens are in the rows' `tokens`."""
        if self.device.type == "cpu":
            keep_freed_memory()
        with ExitStack() as contexts:
            for cached in self.models:
                contexts.enter_context(sharing_prefixes(without_adapter(cached.model)))
            while self.waiting or self.rows:
                self._admit()
                chosen = self._remove_finished(self._choose())
                if self.rows:
                    self._read(chosen)

    def _admit(self) -> None:
        """Prefill waiting prefixes within the token budget: their rows replace finished rows or are appended."""
        if not self.waiting:
            return
        finished = [i for i, row in enumerate(self.rows) if row.done]
        if len(finished) >= len(self.waiting[0].rows):
            count = self._admissible(len(finished))
            if count and len(finished) * SHARE >= len(self.rows):
                for prefixes in self._take_prefills(count):
                    new_rows = sum(len(prefix.rows) for prefix in prefixes)
                    self._prefill(prefixes, finished[:new_rows])
                    finished = finished[new_rows:]
            return
        count = self._admissible()
        new_rows = sum(len(prefix.rows) for prefix in self.waiting[:count])
        if count and new_rows * SHARE >= len(self.rows):
            for prefixes in self._take_prefills(count):
                self._prefill(prefixes)

    def _admissible(self, replaceable: int | None = None) -> int:
        """How many prefixes from the front of the queue now fit into `batch_tokens`.

        At least one if no row is being written.

        Args:
            replaceable: number of finished rows that the new rows may replace; None if the new rows are appended.
        """
        if not self.waiting:
            return 0
        unfinished = [row for row in self.rows if not row.done]
        lengths = {row.prefix: row.prefix_length for row in unfinished}  # the cache has one copy of each prefix
        longest, rows = max(lengths.values(), default=0), len(self.rows)
        room = max((row.room for row in unfinished), default=0)
        # Appending allocates new response buffers; replacing keeps the present ones, which may be larger than needed
        allocated = self.models[0].allocated if replaceable is not None else 0
        count = new_rows = 0
        for prefix in self.waiting:
            new_rows += len(prefix.rows)
            if replaceable is not None and new_rows > replaceable:
                break
            longest = max(longest, len(prefix.tokens))
            room = max(room, max(row.room for row in prefix.rows))
            total = rows if replaceable is not None else rows + new_rows
            columns = (len(lengths) + count + 1) * longest + total * max(room + SPARE, allocated)
            if (self.rows or count) and columns > self.decoding.settings.batch_tokens:
                break
            count += 1
        return count

    def _take_prefills(self, count: int) -> list[list[PrefixRows]]:
        """Take `count` prefixes from the front of the queue; a list for each prefill, of prefixes of similar length."""
        admitted, self.waiting = self.waiting[:count], self.waiting[count:]
        prefills: list[list[PrefixRows]] = []
        longest = 0
        for prefix in admitted:
            length = len(prefix.tokens)
            too_short = length < MIN_LENGTH_RATIO * longest
            if not prefills or too_short or (len(prefills[-1]) + 1) * longest > PREFILL_COLUMNS:
                prefills.append([])
                longest = length
            prefills[-1].append(prefix)
        return prefills

    def _prefill(self, prefixes: list[PrefixRows], replaced: list[int] | None = None) -> None:
        """Prefill prefixes together. Their rows replace those at the indices `replaced`; None appends them."""
        known = [prefix.known for prefix in prefixes if prefix.known is not None]
        to_read = [prefix.tokens if prefix.known is None else prefix.tokens[-1:] for prefix in prefixes]
        assert len(known) in (0, len(prefixes))
        longest = max(len(tokens) for tokens in to_read)
        rows_per_prefix = [len(prefix.rows) for prefix in prefixes]
        ids = torch.full((len(prefixes), longest), self.decoding.pad_id)
        mask = torch.zeros_like(ids)
        for i, tokens in enumerate(to_read):
            ids[i, longest - len(tokens) :] = torch.tensor(tokens)
            mask[i, longest - len(tokens) :] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        finished = torch.tensor([i for i, row in enumerate(self.rows) if row.done], device=self.device).long()
        replaced_rows = None if replaced is None else torch.tensor(replaced, device=self.device)
        logits = self._scores(
            [cached.prefill(ids, mask, rows_per_prefix, replaced_rows, finished, known) for cached in self.models]
        )
        logits = logits[repeated(rows_per_prefix, self.device)]
        rows = [row for prefix in prefixes for row in prefix.rows]
        if not self.rows:
            self.logits, self.rows = logits, rows
        elif replaced is None:
            self.logits = torch.cat([self.logits, logits])
            self.rows += rows
        else:
            self.logits[replaced_rows] = logits
            self._report([self.rows[i] for i in replaced])
            for i, row in zip(replaced, rows, strict=True):
                self.rows[i] = row

    def _choose(self) -> Tensor:
        """Choose each row's next token `[rows]` and append it to the row."""
        chosen, tied = self.chooser(
            self.logits,
            [None if row.done else row.stream for row in self.rows],
            [None if row.done else row.ban for row in self.rows],
        )
        for row, token, tie in zip(self.rows, chosen.tolist(), tied.tolist(), strict=True):
            if not row.done:
                row.ties += tie
                row.append(token, self.decoding.eos_id)
        return chosen

    def _remove_finished(self, chosen: Tensor) -> Tensor:
        """Remove finished rows if they are many and no waiting prefix will replace them.

        The columns that no unfinished row needs are dropped in any case.

        Returns:
            The chosen tokens of the rows that remain.
        """
        unfinished = [row for row in self.rows if not row.done]
        finished = [row for row in self.rows if row.done]
        if not unfinished:
            self._report(finished)
            self.rows = []
            for cached in self.models:
                cached.cache = None
            return chosen
        if len(finished) * SHARE >= len(self.rows) and finished and not self._admissible(len(finished)):
            self._report(finished)
            remaining = torch.tensor([i for i, row in enumerate(self.rows) if not row.done], device=self.device)
            for cached in self.models:
                cached.select(remaining)
            chosen, self.rows = chosen[remaining], unfinished
        for cached in self.models:  # the chosen token is not in the cache yet
            cached.keep_columns(max(len(row.tokens) - 1 for row in unfinished))
        return chosen

    def _read(self, chosen: Tensor) -> None:
        """Run the models over the chosen tokens. The logits of finished rows are not used."""
        positions = [0 if row.done else row.prefix_length + len(row.tokens) - 1 for row in self.rows]
        position_ids = torch.tensor(positions, device=self.device).unsqueeze(1)
        self.logits = self._scores([cached.read(chosen.unsqueeze(1), position_ids) for cached in self.models])

    def _scores(self, logits: list[Tensor]) -> Tensor:
        """The scores that the next tokens are chosen by: a model's logits, or a mixture's log-probabilities."""
        if len(logits) == 1:
            return logits[0][:, : self.decoding.vocabulary]
        widths = [x.shape[-1] for x in logits]  # the output layers may be padded differently
        width = min(widths) if self.decoding.vocabulary is None else min(*widths, self.decoding.vocabulary)
        student, teacher = (x[:, :width].log_softmax(-1) for x in logits)
        return log_mixture(teacher, student, self.teacher_share)

    def _report(self, finished: list[Row]) -> None:
        self.progress(sum(len(row.requests) for row in finished))
