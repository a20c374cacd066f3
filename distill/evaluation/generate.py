"""Sampling responses: one prefill a prompt, its seeds as rows; finished rows leave and waiting prompts join."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distill.config.schema import EvalConfig
from distill.data.encode import Encoded
from distill.evaluation.cache import RowCache
from distill.evaluation.decode import Chooser, NgramBan, RowStream

SHARE = 8  # rows leave, and prompts join, once they are one in so many: the first copies the cache
FILLS = 8  # a group is about so many batches: what is written together, and lost together when a run is stopped


@dataclass(frozen=True)
class Generation:
    """A sampled response: its tokens without EOS, and whether EOS ended it (or the length limit)."""

    id: str
    seed: int
    tokens: list[int]
    ended: bool


@dataclass(frozen=True)
class Writing:
    """What decides a text besides model, prompt and seed.

    Attributes:
        set_name: part of every row's random stream.
        seeds: generation seeds; each prompt is answered once a seed.
    """

    set_name: str
    seeds: Sequence[int]
    decode: EvalConfig
    eos_id: int
    pad_id: int


def groups(prompts: Sequence[Encoded], writing: Writing) -> list[list[int]]:
    """Prompts by index, longest first, cut into groups that are written apart from each other.

    Fixed by the prompts, seeds and `batch_tokens`: a run that goes on after a stop repeats the same arithmetic.
    """
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].prompt), prompts[i].id))
    cut: list[list[int]] = []
    held = 0
    for i in order:
        if not cut or held >= FILLS * writing.decode.batch_tokens:
            cut.append([])
            held = 0
        cut[-1].append(i)
        held += len(writing.seeds) * (len(prompts[i].prompt) + writing.decode.max_new_tokens)
    return cut


def generate(
    model: Any,
    prompts: Sequence[Encoded],
    writing: Writing,
    progress: Callable[[int], object] = lambda rows: None,
) -> list[Generation]:
    """One response for each prompt and seed, in the order of prompts, then seeds.

    A row's text depends on the model, its prompt and its stream, not on batch size or order (in fp32, but for draws
    that tie within rounding).

    Args:
        model: a causal language model in eval mode.
        progress: called with the number of rows finished since the last call.
    """
    results: dict[int, list[Generation]] = {}
    for group in groups(prompts, writing):
        written = write_group(model, [prompts[i] for i in group], writing, progress)
        for at, i in enumerate(group):
            results[i] = written[at * len(writing.seeds) : (at + 1) * len(writing.seeds)]
    return [one for i in range(len(prompts)) for one in results[i]]


def write_group(
    model: Any,
    prompts: Sequence[Encoded],
    writing: Writing,
    progress: Callable[[int], object] = lambda rows: None,
) -> list[Generation]:
    """One group's responses, by prompt, then seed.

    `batch_tokens` bounds the rows times the columns that their prompts and longest answers would take.
    """
    return _Batch(model, prompts, writing, progress).run()


@dataclass
class _Row:
    """One response on its way."""

    id: str
    seed: int
    columns: int  # of the cache that are its own: prompt and response so far
    most: int  # that it may come to
    stream: RowStream
    ban: NgramBan | None
    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    done: bool = False


class _Batch:
    """The rows that are written together: line i of cache, mask and logits is `live[i]`."""

    def __init__(self, model: Any, prompts: Sequence[Encoded], writing: Writing, progress: Callable[[int], object]):
        self.model, self.writing, self.progress = model, writing, progress
        self.device = model.device
        self.chooser = Chooser(writing.decode)
        self.rows = [[self._row(p, s) for s in writing.seeds] for p in prompts]
        self.waiting = list(range(len(prompts)))
        self.prompts = prompts
        self.live: list[_Row] = []
        self.cache = RowCache()
        self.mask = torch.zeros(0, 0, dtype=torch.long, device=self.device)
        self.logits = torch.zeros(0, 0, device=self.device)

    def _row(self, prompt: Encoded, seed: int) -> _Row:
        decode, length = self.writing.decode, len(prompt.prompt)
        ban = NgramBan(decode.no_repeat_ngram_size, prompt.prompt) if decode.no_repeat_ngram_size else None
        stream = RowStream(seed, self.writing.set_name, prompt.id, self.device)
        return _Row(prompt.id, seed, length, length + decode.max_new_tokens, stream, ban)

    @torch.inference_mode()
    def run(self) -> list[Generation]:
        """Write all rows to their ends."""
        while self.waiting or self.live:
            self._admit()
            chosen = self._leave(self._choose())
            if self.live:
                self._read(chosen)
        return [Generation(r.id, r.seed, r.tokens, r.ended) for several in self.rows for r in several]

    def _admit(self) -> None:
        """Let waiting prompts join: in the places of finished rows, or below while there is room for more rows."""
        several, held = len(self.writing.seeds), len(self.live)
        places = [line for line, row in enumerate(self.live) if row.done]
        if len(places) >= several:
            if len(places) * SHARE >= held:
                joining = self._first(len(places) // several)
                self._join(joining, places[: several * len(joining)])
            return
        columns = max((row.most for row in self.live if not row.done), default=0)
        count = 0
        for i in self.waiting:
            columns = max(columns, self.rows[i][0].most)
            if held + count and (held + count + several) * columns > self.writing.decode.batch_tokens:
                break
            count += several
        if count * SHARE >= held:
            self._join(self._first(count // several))

    def _first(self, count: int) -> list[int]:
        """Take so many prompts, or all there are, from the front of those that wait."""
        first, self.waiting = self.waiting[:count], self.waiting[count:]
        return first

    def _join(self, joining: list[int], places: list[int] | None = None) -> None:
        """Read prompts together, once each, and put their rows in these places or below."""
        if not joining:
            return
        longest, several = max(len(self.prompts[i].prompt) for i in joining), len(self.writing.seeds)
        ids = torch.full((len(joining), longest), self.writing.pad_id)
        mask = torch.zeros_like(ids)
        for line, i in enumerate(joining):
            prompt = self.prompts[i].prompt
            ids[line, longest - len(prompt) :] = torch.tensor(prompt)
            mask[line, longest - len(prompt) :] = 1
        mask, cache = mask.to(self.device), RowCache()
        logits = self._forward(ids.to(self.device), mask, (mask.cumsum(1) - 1).clamp_min(0), cache)
        logits, mask = logits.repeat_interleave(several, 0), mask.repeat_interleave(several, 0)
        rows = [row for i in joining for row in self.rows[i]]
        if not self.live:
            cache.repeat(several)
            self.cache, self.mask, self.logits, self.live = cache, mask, logits, rows
            return
        columns = max(self.mask.shape[1], longest)
        self.mask, mask = _left_padded(self.mask, columns), _left_padded(mask, columns)
        if places is None:
            self.cache.join(cache, several, None)
            self.mask, self.logits = torch.cat([self.mask, mask]), torch.cat([self.logits, logits])
            self.live += rows
            return
        at = torch.tensor(places, device=self.device)
        self.cache.join(cache, several, at)
        self.mask[at], self.logits[at] = mask, logits
        self.progress(len(places))
        for place, row in zip(places, rows, strict=True):
            self.live[place] = row

    def _choose(self) -> Tensor:
        """Choose each row's next token `[lines]` and note it."""
        chosen = self.chooser(
            self.logits,
            [None if row.done else row.stream for row in self.live],
            [None if row.done else row.ban for row in self.live],
        )
        for row, token in zip(self.live, chosen.tolist(), strict=True):
            if row.done:
                continue
            if token == self.writing.eos_id:
                row.ended = row.done = True
                continue
            row.tokens.append(token)
            row.columns += 1
            if row.ban is not None:
                row.ban.add(token)
            row.done = row.columns == row.most
        return chosen

    def _leave(self, chosen: Tensor) -> Tensor:
        """Take finished rows out once they are many, unless others wait for their places, and forget columns that no
        row reads any more; the tokens of the rows that stay."""
        going = [row for row in self.live if not row.done]
        done = len(self.live) - len(going)
        replaced = bool(going) and len(self.waiting) > 0 and done >= len(self.writing.seeds)
        if done and done * SHARE >= len(self.live) and not replaced:
            self.progress(done)
            keep = torch.tensor([not row.done for row in self.live], device=self.device)
            self.mask, chosen, self.live = self.mask[keep], chosen[keep], going
            if going:
                self.cache.select(keep.nonzero().squeeze(-1))
        if going:
            unread = self.mask.shape[1] - max(row.columns - 1 for row in going)  # the chosen token is not in yet
            self.cache.trim(unread)
            self.mask = self.mask[:, unread:]
        return chosen

    def _read(self, chosen: Tensor) -> None:
        """Run the model over the chosen tokens; a finished row that is still here reads nothing new."""
        new = torch.tensor([[int(not row.done)] for row in self.live], device=self.device)
        self.mask = torch.cat([self.mask, new], dim=1)
        positions = (self.mask.sum(1, keepdim=True) - 1).clamp_min(0)
        self.logits = self._forward(chosen.unsqueeze(1), self.mask, positions, self.cache)

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: RowCache) -> Tensor:
        """Next-token logits `[rows, V]` in fp32."""
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()


def _left_padded(mask: Tensor, columns: int) -> Tensor:
    return torch.nn.functional.pad(mask, (columns - mask.shape[1], 0))
