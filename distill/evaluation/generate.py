"""Sampling responses: one prefill a prompt, its seeds as rows, each row with its own random stream."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from distill.config.schema import EvalConfig
from distill.data.encode import Encoded

LEAVE_SHARE = 8  # finished rows are taken out once they are one in so many: taking out copies the cache


@dataclass(frozen=True)
class Generation:
    """A sampled response: its tokens without EOS, and whether EOS ended it (or the length limit)."""

    id: str
    seed: int
    tokens: list[int]
    ended: bool


class RowStream:
    """The random stream of one response row, a function of (seed, set name, example id) alone.

    Sampling takes the argmax of `logits - log(e)` with `e` exponential (the Gumbel trick). Unlike inverting a
    cumulative sum, whose every boundary moves with rounding, the choice changes only where two classes tie.
    """

    def __init__(self, seed: int, set_name: str, example_id: str):
        digest = hashlib.sha256(f"{seed}/{set_name}/{example_id}".encode()).digest()
        self._bits = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))

    def exponentials(self, count: int) -> np.ndarray:
        """The next `count` standard exponentials, fp32."""
        return self._bits.standard_exponential(count, dtype=np.float32)


def generate(
    model: Any,
    prompts: Sequence[Encoded],
    set_name: str,
    seeds: Sequence[int],
    decode: EvalConfig,
    eos_id: int,
    pad_id: int,
    progress: Callable[[int], object] = lambda rows: None,
) -> list[Generation]:
    """One response for each prompt and seed, in the order of prompts, then seeds.

    A row's text depends on the model, its prompt and its stream, not on batch size or order (in fp32, but for draws
    that tie within rounding). `decode.batch_tokens` bounds the rows times tokens held at once.

    Args:
        model: a causal language model in eval mode.
        progress: called with the number of rows finished since the last call.
    """
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].prompt), prompts[i].id))
    results: dict[tuple[int, int], Generation] = {}
    start = 0
    while start < len(order):
        row_tokens = len(seeds) * (len(prompts[order[start]].prompt) + decode.max_new_tokens)
        group = order[start : start + max(1, decode.batch_tokens // row_tokens)]
        rows = _Rows([prompts[i] for i in group], set_name, seeds, model.device)
        for generation, (prompt, seed) in zip(
            rows.run(model, decode, eos_id, pad_id, progress),
            [(i, s) for i in group for s in seeds],
            strict=True,
        ):
            results[prompt, seed] = generation
        start += len(group)
    return [results[i, seed] for i in range(len(prompts)) for seed in seeds]


class _Rows:
    """A batch of rows that are written together; row = prompt x seed."""

    def __init__(self, prompts: Sequence[Encoded], set_name: str, seeds: Sequence[int], device: torch.device):
        self.prompts, self.seeds, self.device = prompts, seeds, device
        self.streams = [RowStream(s, set_name, p.id) for p in prompts for s in seeds]
        self.tokens: list[list[int]] = [[] for _ in self.streams]
        self.ended = [False] * len(self.streams)

    @torch.inference_mode()
    def run(
        self, model: Any, decode: EvalConfig, eos_id: int, pad_id: int, progress: Callable[[int], object]
    ) -> list[Generation]:
        """Write all rows to their ends."""
        warpers = _warpers(decode)
        logits, cache, mask = self._prefill(model, pad_id)
        live = list(range(len(self.streams)))  # the row behind each line of the batch
        done: set[int] = set()
        for step in range(decode.max_new_tokens):
            chosen = self._choose(logits, live, done, decode, warpers)
            for row, token in zip(live, chosen.tolist(), strict=True):
                if row in done:
                    continue
                if token == eos_id:
                    self.ended[row] = True
                    done.add(row)
                else:
                    self.tokens[row].append(token)
            left = len(live) - len(done)
            if left == 0 or step == decode.max_new_tokens - 1:
                break
            if len(done) * LEAVE_SHARE >= len(live):
                keep = torch.tensor([i for i, row in enumerate(live) if row not in done], device=self.device)
                cache.batch_select_indices(keep)
                mask, chosen = mask[keep], chosen[keep]
                progress(len(live) - len(keep))
                live, done = [row for row in live if row not in done], set()
            mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
            output = model(
                input_ids=chosen.unsqueeze(1),
                attention_mask=mask,
                position_ids=mask.sum(1, keepdim=True) - 1,
                past_key_values=cache,
                use_cache=True,
            )
            logits = output.logits[:, -1].float()
        progress(len(live))
        pairs = [(p, s) for p in self.prompts for s in self.seeds]
        return [
            Generation(p.id, s, tokens, ended)
            for (p, s), tokens, ended in zip(pairs, self.tokens, self.ended, strict=True)
        ]

    def _prefill(self, model: Any, pad_id: int) -> tuple[Tensor, DynamicCache, Tensor]:
        """Next-token logits `[rows, V]`, cache and mask after the prompts, each read once and then repeated."""
        longest = max(len(p.prompt) for p in self.prompts)
        ids = torch.full((len(self.prompts), longest), pad_id)
        mask = torch.zeros_like(ids)
        for i, prompt in enumerate(self.prompts):
            ids[i, longest - len(prompt.prompt) :] = torch.tensor(prompt.prompt)
            mask[i, longest - len(prompt.prompt) :] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        cache = DynamicCache(config=model.config)
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp_min(0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        repeats = len(self.seeds)
        cache.batch_repeat_interleave(repeats)
        logits = output.logits[:, -1].float().repeat_interleave(repeats, 0)
        return logits, cache, mask.repeat_interleave(repeats, 0)

    def _choose(
        self,
        logits: Tensor,
        live: list[int],
        done: set[int],
        decode: EvalConfig,
        warpers: LogitsProcessorList,
    ) -> Tensor:
        """The next token of each line `[lines]`; finished rows draw nothing."""
        if not decode.do_sample:
            return logits.argmax(-1)
        scores = warpers(None, logits)  # type: ignore[arg-type]
        noise = np.ones(tuple(scores.shape), dtype=np.float32)
        for line, row in enumerate(live):
            if row not in done:
                noise[line] = self.streams[row].exponentials(scores.shape[1])
        return (scores - torch.from_numpy(noise).to(self.device).log_()).argmax(-1)


def _warpers(decode: EvalConfig) -> LogitsProcessorList:
    """Temperature, top-k and top-p as transformers does them."""
    warpers = LogitsProcessorList()
    if decode.temperature != 1.0:
        warpers.append(TemperatureLogitsWarper(decode.temperature))
    if decode.top_k:
        warpers.append(TopKLogitsWarper(decode.top_k))
    if decode.top_p < 1.0:
        warpers.append(TopPLogitsWarper(decode.top_p))
    return warpers
