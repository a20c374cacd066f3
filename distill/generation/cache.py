"""Keys and values of the rows that are being written: a prompt's held once for all its rows, each row's answer apart.

Decoding reads a prompt's keys and values once for all of its rows, and the two parts' attentions are put together by
their log-sum-exps. Rows leave, prompts take the places of finished ones, and neither copies the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ROOM = 32  # columns allocated ahead: a step writes into them, where DynamicCache copies all that it holds
NAME = "shared_prompts"
FEW = 4  # queries that read one key head


class RowsLayer(DynamicLayer):
    """A layer's answers `[rows, heads, columns, width]`, views of larger buffers, and their prompts likewise."""

    keys: Any
    values: Any

    def __init__(self, prompt: Any, rows: int):
        super().__init__()
        self.lazy_initialization(prompt.keys, prompt.values)
        self.prompt_keys: Tensor = prompt.keys
        self.prompt_values: Tensor = prompt.values
        _, heads, _, width = prompt.keys.shape
        self._allocate(rows, heads, 0, width)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write a column of the answers and give them all."""
        if self.start + self.length + 1 > self._buffers[0].shape[2]:
            self.select(None)
        end = self.start + self.length
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, end : end + 1] = states
        self.length += 1
        self._view()
        return self.keys, self.values

    def trim(self, columns: int) -> None:
        """Forget the first columns of the answers; nothing is copied."""
        self.start += columns
        self.length -= columns
        self._view()

    def select(self, rows: Tensor | None, more: int = 0) -> None:
        """Keep these rows, or all, with so many empty ones below."""
        held = self.keys, self.values
        kept, heads, columns, width = held[0].shape
        kept = kept if rows is None else len(rows)
        self._allocate(kept + more, heads, columns, width, kept)
        for buffer, states in zip(self._buffers, held, strict=True):
            place = buffer[:kept, :, :columns]
            if rows is None:
                place.copy_(states)
            else:
                torch.index_select(states, 0, rows, out=place)  # else it would be copied twice

    def keep_prompts(self, prompts: Tensor) -> None:
        """Keep these prompts."""
        self.prompt_keys, self.prompt_values = self.prompt_keys[prompts], self.prompt_values[prompts]

    def trim_prompts(self, columns: int) -> None:
        """Forget the first columns of the prompts."""
        self.prompt_keys, self.prompt_values = (x[:, :, columns:] for x in (self.prompt_keys, self.prompt_values))

    def add(self, other: Any, places: Tensor | None) -> None:
        """Put other prompts in the place of these, or below all; the shorter ones are padded on their left."""
        columns = max(self.prompt_keys.shape[2], other.keys.shape[2])
        mine = [_widened(x, columns) for x in (self.prompt_keys, self.prompt_values)]
        theirs = [_widened(x, columns) for x in (other.keys, other.values)]
        if places is None:
            mine = [torch.cat(both) for both in zip(mine, theirs, strict=True)]
        else:
            for x, new in zip(mine, theirs, strict=True):
                x[places] = new
        self.prompt_keys, self.prompt_values = mine

    def _allocate(self, rows: int, heads: int, columns: int, width: int, filled: int = 0) -> None:
        """Buffers of so many rows and columns; those of the first `filled` rows are left for the caller to write."""
        size = (rows, heads, columns + ROOM, width)
        self._buffers = [torch.empty(size, dtype=self.dtype, device=self.device) for _ in range(2)]
        for buffer in self._buffers:  # what no mask lets through is not read, but it must be finite
            buffer[:filled, :, columns:] = 0
            buffer[filled:] = 0
        self.start, self.length = 0, columns
        self._view()

    def _view(self) -> None:
        self.keys, self.values = (b.narrow(2, self.start, self.length) for b in self._buffers)


class RowCache(Cache):
    """The cache of rows that share their prompts.

    Attributes:
        prompt_mask: `[prompts, columns]`, 1 where a prompt has a token.
        mask: `[rows, columns]`, 1 where an answer has one.
        prompt_of: `[rows]`, each row's prompt.
    """

    layers: Any

    def __init__(self, prompts: Cache, prompt_mask: Tensor, several: int):
        count = len(prompt_mask)
        super().__init__(layers=[RowsLayer(layer, count * several) for layer in prompts.layers])
        self.prompt_mask = prompt_mask
        self.prompt_of = torch.arange(count, device=prompt_mask.device).repeat_interleave(several)
        self.mask = prompt_mask.new_zeros(count * several, 0)
        self._arrange()

    def join(self, prompts: Cache, prompt_mask: Tensor, rows: Tensor | None, several: int, finished: Tensor) -> None:
        """Let other prompts' rows join, in the place of `rows` or below all; no finished row keeps its prompt."""
        count = len(prompt_mask)
        new = self._add_prompts(prompts, prompt_mask, finished).repeat_interleave(several)
        if rows is None:
            self.prompt_of = torch.cat([self.prompt_of, new])
            self.mask = torch.cat([self.mask, self.mask.new_zeros(count * several, self.mask.shape[1])])
            for layer in self.layers:
                layer.select(None, count * several)
        else:
            self.prompt_of[rows], self.mask[rows] = new, 0
        self._arrange()

    def _add_prompts(self, prompts: Cache, prompt_mask: Tensor, finished: Tensor) -> Tensor:
        """Put prompts where none is that a row still reads; their places `[prompts]`."""
        count, readers = len(prompt_mask), torch.ones_like(self.prompt_of, dtype=torch.bool)
        readers[finished] = False
        read = torch.zeros(len(self.prompt_mask), dtype=torch.bool, device=readers.device)
        read[self.prompt_of[readers]] = True
        free, places = (~read).nonzero().squeeze(-1), None
        if len(free) == count:
            places = free
        elif len(free):
            # A finished row that stays reads some prompt or other, and means nothing
            self._keep_prompts(read.nonzero().squeeze(-1), (read.cumsum(0) - 1).clamp_min(0)[self.prompt_of])
        columns = max(self.prompt_mask.shape[1], prompt_mask.shape[1])
        self.prompt_mask, prompt_mask = left_padded(self.prompt_mask, columns), left_padded(prompt_mask, columns)
        for layer, theirs in zip(self.layers, prompts.layers, strict=True):
            layer.add(theirs, places)
        if places is None:
            held = len(self.prompt_mask)
            self.prompt_mask = torch.cat([self.prompt_mask, prompt_mask])
            return torch.arange(held, held + count, device=read.device)
        self.prompt_mask[places] = prompt_mask
        return places

    def _keep_prompts(self, kept: Tensor, prompt_of: Tensor) -> None:
        self.prompt_mask, self.prompt_of = self.prompt_mask[kept], prompt_of
        for layer in self.layers:
            layer.keep_prompts(kept)

    def select(self, rows: Tensor) -> None:
        """Keep these rows, and the prompts that they read."""
        self.mask = self.mask[rows]
        kept, self.prompt_of = self.prompt_of[rows].unique(return_inverse=True)
        if len(kept) < len(self.prompt_mask):
            self._keep_prompts(kept, self.prompt_of)
        for layer in self.layers:
            layer.select(rows)
        self._arrange()

    def trim(self, columns: int) -> None:
        """Forget the first columns of the answers, which no row reads."""
        if columns:
            self.mask = self.mask[:, columns:]
            for layer in self.layers:
                layer.trim(columns)

    def trim_prompts(self) -> None:
        """Forget the columns that no prompt uses."""
        unread = int((self.prompt_mask.sum(0) == 0).sum())  # left of all, as prompts end together
        if unread:
            self.prompt_mask = self.prompt_mask[:, unread:]
            for layer in self.layers:
                layer.trim_prompts(unread)

    def next_column(self, dtype: torch.dtype) -> Tensor:
        """Open a column for a step's tokens; what the answers' attention adds to its scores `[rows, 1, 1, columns]`."""
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
        self._prompt_bias = _bias(self.prompt_mask, dtype)
        return _bias(self.mask, dtype)

    def _arrange(self) -> None:
        """Set each prompt's rows side by side: `lines` has row 0 where a prompt has fewer than others."""
        counts = self.prompt_of.bincount(minlength=len(self.prompt_mask))
        most = int(counts.max())
        order = self.prompt_of.argsort(stable=True)
        first = counts.cumsum(0) - counts
        sorted_ = self.prompt_of[order]
        at = sorted_ * most + torch.arange(len(order), device=order.device) - first[sorted_]
        self.lines = order.new_zeros(len(counts) * most)
        self.lines[at] = order
        self.place = torch.empty_like(order)
        self.place[order] = at

    def over_prompts(self, layer: RowsLayer, query: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Attention of `query` `[rows, key heads, queries, width]` over each row's prompt, with its log-sum-exp."""
        _, heads, queries, width = query.shape
        prompts = len(self.prompt_mask)
        beside = query[self.lines].view(prompts, -1, heads, queries, width).transpose(1, 2)
        beside = beside.reshape(prompts, heads, -1, width)
        out, lse = _attend(beside, layer.prompt_keys, layer.prompt_values, self._prompt_bias, scale)
        out = out.view(prompts, heads, -1, queries, width).transpose(1, 2).reshape(-1, heads, queries, width)
        lse = lse.view(prompts, heads, -1, queries).transpose(1, 2).reshape(-1, heads, queries)
        return out[self.place], lse[self.place]


_READING: ContextVar[RowCache | None] = ContextVar("reading", default=None)


@contextmanager
def reading(cache: RowCache) -> Iterator[None]:
    """Within it a model that shares prompts decodes over this cache."""
    token = _READING.set(cache)
    try:
        yield
    finally:
        _READING.reset(token)


@contextmanager
def sharing_prompts(model: Any) -> Iterator[None]:
    """Within it the model's attention is this module's; reading prompts is transformers' own as before."""
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _forward(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
) -> tuple[Tensor, Any]:
    """An attention function for transformers: from `[rows, heads, tokens, width]` to `[rows, tokens, heads, width]`."""
    cache = _READING.get()
    if cache is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    rows, heads, _, width = query.shape
    scale = width**-0.5 if more.get("scaling") is None else more["scaling"]
    grouped = query.reshape(rows, key.shape[1], -1, width)  # the query heads that read one key head
    assert attention_mask is not None
    own, own_lse = _attend(grouped, key, value, attention_mask, scale)
    prompts, prompt_lse = cache.over_prompts(cache.layers[module.layer_idx], grouped, scale)
    share = torch.sigmoid(own_lse - prompt_lse).unsqueeze(-1)  # of the two parts' mass
    out = torch.lerp(prompts.float(), own.float(), share).to(query.dtype)
    return out.view(rows, 1, heads, width), None


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention and the log-sum-exp of its scores `[rows, heads, queries]` in fp32."""
    # Few queries in fp32 are quicker as products; in bf16 those would round the scores
    if query.device.type == "cpu" and (query.shape[2] > FEW or query.dtype != torch.float32):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, attn_mask=bias, scale=scale
        )
    scores = torch.matmul(query, key.transpose(2, 3)).float().mul_(scale).add_(bias.float())
    lse = scores.logsumexp(-1)
    return torch.matmul(scores.sub_(lse.unsqueeze(-1)).exp_().to(value.dtype), value), lse


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask == 0, -torch.inf)[:, None, None]


def _widened(states: Tensor, columns: int) -> Tensor:
    return torch.nn.functional.pad(states, (0, 0, columns - states.shape[2], 0))


def left_padded(mask: Tensor, columns: int) -> Tensor:
    """A mask with zeros on its left up to so many columns."""
    return torch.nn.functional.pad(mask, (columns - mask.shape[1], 0))


AttentionInterface.register(NAME, _forward)
AttentionMaskInterface.register(NAME, sdpa_mask)
