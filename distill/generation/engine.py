"""Sampling responses: one prefill a prompt, its seeds as rows; finished rows leave and waiting prompts join."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationConfig

from distill.base.memory import keep_freed_memory
from distill.config.evaluation import EvalConfig
from distill.data.encode import Encoded
from distill.generation.cache import ROOM, RowCache, reading, sharing_prompts
from distill.generation.decode import Chooser, NgramBan, RowStream
from distill.losses.mixtures import log_mixture
from distill.models.load import without_adapter

SHARE = 16  # rows leave, and prompts join, once they are one in so many: the first copies the cache
ALIKE, PREFILL = 0.8, 4096  # prompts read together: the shortest's share of the longest, and tokens at most
# What is written together, and lost together when a run is stopped: about so many batches, and prompts at most, so that
# several processes have something to share
FILLS, GROUP = 8, 64


@dataclass(frozen=True)
class Generation:
    """A response: its tokens without EOS, whether EOS ended it (or the length limit), and draws that nearly tied."""

    id: str
    seed: int
    tokens: list[int]
    ended: bool
    ties: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Mixture:
    """A student and a teacher that write together: each token is drawn from `(1 - share) q + share p` (MiniLLM).

    Attributes:
        share: the teacher's, in (0, 1).
    """

    student: Any
    teacher: Any
    share: float


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
        if not cut or held >= FILLS * writing.decode.batch_tokens or len(cut[-1]) == GROUP:
            cut.append([])
            held = 0
        cut[-1].append(i)
        held += len(prompts[i].prompt) + len(writing.seeds) * writing.decode.max_new_tokens
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
        model: a causal language model in eval mode, or a mixture of two on one device.
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

    `batch_tokens` bounds the columns of the cache, room ahead included: a prompt's, held once, and those that its
    answers may come to. A step's logits, `[rows, V]`, come on top.

    Raises:
        ValueError: a prompt has no token.
    """
    for prompt in prompts:
        if not prompt.prompt:
            raise ValueError(f"prompt {prompt.id} has no token")
    if writing.decode.do_sample:
        return _decode(model, prompts, writing, progress)
    once = replace(writing, seeds=writing.seeds[:1])  # nothing is drawn: all seeds get one text
    several = len(writing.seeds)
    tell: Callable[[int], object] = lambda rows: progress(rows * several)  # noqa: E731
    written = (_search if writing.decode.num_beams > 1 else _decode)(model, prompts, once, tell)
    return [replace(one, seed=seed, tokens=list(one.tokens)) for one in written for seed in writing.seeds]


def _decode(
    model: Any, prompts: Sequence[Encoded], writing: Writing, progress: Callable[[int], object]
) -> list[Generation]:
    """Token by token, sampled or the likeliest."""
    return _Batch(model, prompts, writing, progress).run()


@dataclass
class _Row:
    """One response on its way."""

    id: str
    seed: int
    prompt: int  # its length in tokens
    stream: RowStream
    ban: NgramBan | None
    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    done: bool = False
    ties: int = 0


class _Reader:
    """A model with its keys and values, line by line those of a batch's rows."""

    def __init__(self, model: Any):
        self.model = model
        self.cache: RowCache | None = None

    def join(self, ids: Tensor, mask: Tensor, several: int, places: Tensor | None, finished: Tensor) -> Tensor:
        """Read prompts `[prompts, longest]`, whose rows stand in these places or below all; logits `[prompts, V]`."""
        read = DynamicCache()
        logits = self._forward(ids, mask, (mask.cumsum(1) - 1).clamp_min(0), read)
        if self.cache is None:
            self.cache = RowCache(read, mask, several)
        else:
            self.cache.join(read, mask, places, several, finished)
        self.cache.trim_prompts()
        return logits

    def read(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Read a token `[rows, 1]` of each row; logits `[rows, V]`."""
        assert self.cache is not None
        bias = self.cache.next_column(self.model.dtype)
        with reading(self.cache):
            return self._forward(tokens, bias, positions, self.cache)

    def select(self, rows: Tensor) -> None:
        """Keep these rows."""
        assert self.cache is not None
        self.cache.select(rows)
        self.cache.trim_prompts()

    def trim(self, columns: int) -> None:
        """Keep the answers' last columns, so many."""
        assert self.cache is not None
        self.cache.trim(self.cache.mask.shape[1] - columns)

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> Tensor:
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


class _Batch:
    """The rows that are written together: line i of caches and logits is `live[i]`."""

    def __init__(self, model: Any, prompts: Sequence[Encoded], writing: Writing, progress: Callable[[int], object]):
        self.writing, self.progress = writing, progress
        self.readers = [_Reader(m) for m in ((model.student, model.teacher) if isinstance(model, Mixture) else [model])]
        self.share = model.share if isinstance(model, Mixture) else 0.0
        self.device = self.readers[0].model.device
        self.chooser = Chooser(writing.decode)
        self.rows = [[self._row(p, s) for s in writing.seeds] for p in prompts]
        self.waiting = list(range(len(prompts)))
        self.prompts = prompts
        self.live: list[_Row] = []
        self.logits = torch.zeros(0, 0, device=self.device)

    def _row(self, prompt: Encoded, seed: int) -> _Row:
        decode = self.writing.decode
        ban = NgramBan(decode.no_repeat_ngram_size, prompt.prompt) if decode.no_repeat_ngram_size else None
        stream = RowStream(seed, self.writing.set_name, prompt.id, self.device)
        return _Row(prompt.id, seed, len(prompt.prompt), stream, ban)

    @torch.inference_mode()
    def run(self) -> list[Generation]:
        """Write all rows to their ends."""
        if self.device.type == "cpu":
            keep_freed_memory()
        with ExitStack() as attention:
            for reader in self.readers:
                attention.enter_context(sharing_prompts(without_adapter(reader.model)))
            while self.waiting or self.live:
                self._admit()
                chosen = self._leave(self._choose())
                if self.live:
                    self._read(chosen)
        return [Generation(r.id, r.seed, r.tokens, r.ended, r.ties) for several in self.rows for r in several]

    def _admit(self) -> None:
        """Let waiting prompts join: in the places of finished rows, or below while there is room for more rows."""
        several, held = len(self.writing.seeds), len(self.live)
        places = [line for line, row in enumerate(self.live) if row.done]
        if len(places) >= several:
            count = min(self._fitting(0), len(places) // several)
            if count and len(places) * SHARE >= held:
                for joining in self._alike(count):
                    self._join(joining, places[: several * len(joining)])
                    places = places[several * len(joining) :]
            return
        count = self._fitting(several)
        if count and count * several * SHARE >= held:
            for joining in self._alike(count):
                self._join(joining)

    def _fitting(self, more: int) -> int:
        """How many waiting prompts may join, each with so many more rows, within `batch_tokens`; at least one if no
        row is being written."""
        shown = {row.id: row.prompt for row in self.live if not row.done}  # a prompt's columns are held once
        longest, rows, count = max(shown.values(), default=0), len(self.live), 0
        for i in self.waiting:
            longest = max(longest, len(self.prompts[i].prompt))
            rows += more
            columns = (len(shown) + count + 1) * longest + rows * (self.writing.decode.max_new_tokens + ROOM)
            if (self.live or count) and columns > self.writing.decode.batch_tokens:
                break
            count += 1
        return count

    def _alike(self, count: int) -> list[list[int]]:
        """Take so many prompts from the front of those that wait, longest first, cut into batches of like length."""
        first, self.waiting = self.waiting[:count], self.waiting[count:]
        cut: list[list[int]] = []
        longest = 0
        for i in first:
            length = len(self.prompts[i].prompt)
            if not cut or length < ALIKE * longest or (len(cut[-1]) + 1) * longest > PREFILL:
                cut.append([])
                longest = length
            cut[-1].append(i)
        return cut

    def _join(self, joining: list[int], places: list[int] | None = None) -> None:
        """Read prompts together, once each, and put their rows in these places or below."""
        longest, several = max(len(self.prompts[i].prompt) for i in joining), len(self.writing.seeds)
        ids = torch.full((len(joining), longest), self.writing.pad_id)
        mask = torch.zeros_like(ids)
        for line, i in enumerate(joining):
            prompt = self.prompts[i].prompt
            ids[line, longest - len(prompt) :] = torch.tensor(prompt)
            mask[line, longest - len(prompt) :] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        at = None if places is None else torch.tensor(places, device=self.device)
        finished = self._finished()
        logits = self._together([one.join(ids, mask, several, at, finished) for one in self.readers])
        logits, rows = logits.repeat_interleave(several, 0), [row for i in joining for row in self.rows[i]]
        if not self.live:
            self.logits, self.live = logits, rows
        elif places is None:
            self.logits = torch.cat([self.logits, logits])
            self.live += rows
        else:
            self.logits[at] = logits
            self.progress(len(places))
            for place, row in zip(places, rows, strict=True):
                self.live[place] = row

    def _finished(self) -> Tensor:
        return torch.tensor([line for line, row in enumerate(self.live) if row.done], device=self.device).long()

    def _choose(self) -> Tensor:
        """Choose each row's next token `[lines]` and note it."""
        chosen, tied = self.chooser(
            self.logits,
            [None if row.done else row.stream for row in self.live],
            [None if row.done else row.ban for row in self.live],
        )
        for row, token, near in zip(self.live, chosen.tolist(), tied.tolist(), strict=True):
            if row.done:
                continue
            row.ties += near
            if token == self.writing.eos_id:
                row.ended = row.done = True
                continue
            row.tokens.append(token)
            if row.ban is not None:
                row.ban.add(token)
            row.done = len(row.tokens) == self.writing.decode.max_new_tokens
        return chosen

    def _leave(self, chosen: Tensor) -> Tensor:
        """Take finished rows out once they are many, unless others wait for their places, and forget columns that no
        row reads any more; the tokens of the rows that stay."""
        going = [row for row in self.live if not row.done]
        done = len(self.live) - len(going)
        if not going:
            self.progress(done)
            self.live = []
            for reader in self.readers:
                reader.cache = None
            return chosen
        replaced = done >= len(self.writing.seeds) and self._fitting(0) > 0
        if done and done * SHARE >= len(self.live) and not replaced:
            self.progress(done)
            keep = torch.tensor([line for line, row in enumerate(self.live) if not row.done], device=self.device)
            for reader in self.readers:
                reader.select(keep)
            chosen, self.live = chosen[keep], going
        for reader in self.readers:  # the chosen token is not in yet
            reader.trim(max(len(row.tokens) - 1 for row in going))
        return chosen

    def _read(self, chosen: Tensor) -> None:
        """Run the model over the chosen tokens; what a finished row that is still here reads means nothing."""
        positions = [0 if row.done else row.prompt + len(row.tokens) - 1 for row in self.live]
        at = torch.tensor(positions, device=self.device).unsqueeze(1)
        self.logits = self._together([reader.read(chosen.unsqueeze(1), at) for reader in self.readers])

    def _together(self, logits: list[Tensor]) -> Tensor:
        """The scores that tokens are drawn by: a model's logits, or a mixture's log-probabilities."""
        if len(logits) == 1:
            return logits[0]
        width = min(x.shape[-1] for x in logits)  # one may be padded
        student, teacher = (x[:, :width].log_softmax(-1) for x in logits)
        return log_mixture(teacher, student, self.share)


@torch.inference_mode()
def _search(
    model: Any, prompts: Sequence[Encoded], writing: Writing, progress: Callable[[int], object]
) -> list[Generation]:
    """Beam search by transformers' `generate`, a prompt at a time."""
    decode, done = writing.decode, []
    settings = GenerationConfig(
        num_beams=decode.num_beams,
        do_sample=False,
        max_new_tokens=decode.max_new_tokens,
        no_repeat_ngram_size=decode.no_repeat_ngram_size or None,
        eos_token_id=writing.eos_id,
        pad_token_id=writing.pad_id,
    )
    for prompt in prompts:  # alone: the n-grams that may not repeat would count padding's
        ids = torch.tensor([prompt.prompt], device=model.device)
        output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        tokens = output[0, ids.shape[1] :].tolist()
        ended = writing.eos_id in tokens
        tokens = tokens[: tokens.index(writing.eos_id)] if ended else tokens
        done.append(Generation(prompt.id, writing.seeds[0], tokens, ended))
        progress(1)
    return done
