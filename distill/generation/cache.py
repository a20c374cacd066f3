"""The KV cache of a batch whose rows share prefixes: a prefix is held once for all its rows, each response apart.

A prefix is a prompt, perhaps with the beginning of a response. A decoding step attends to the prefixes and to the
responses separately, and combines the two by their log-sum-exps. So a prefix's keys and values are read once for all of
its rows, and rows are added or removed without copying them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from distill.generation.attention import attend, attention_bias

SPARE = 32  # columns allocated ahead: a step writes into them, where DynamicCache copies the whole cache


class RowsLayer(DynamicLayer):
    """One layer's keys and values.

    `keys` and `values` are those of the responses, `[rows, key heads, columns, width]`, views of larger buffers;
    `prefix_keys` and `prefix_values` those of the prefixes, `[prefixes, key heads, columns, width]`.
    """

    keys: Any
    values: Any

    def __init__(self, prefixes: Any, rows: int):
        super().__init__()
        self.lazy_initialization(prefixes.keys, prefixes.values)
        self.prefix_keys: Tensor = prefixes.keys
        self.prefix_values: Tensor = prefixes.values
        _, heads, _, width = prefixes.keys.shape
        self._allocate(rows, heads, 0, width)

    @property
    def allocated(self) -> int:
        """Columns of the response buffers, used or not."""
        return self._buffers[0].shape[2]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append one column to the responses and return all their keys and values."""
        if self.start + self.length + 1 > self.allocated:
            self.select(None)
        end = self.start + self.length
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, end : end + 1] = states
        self.length += 1
        self._view()
        return self.keys, self.values

    def trim(self, columns: int) -> None:
        """Drop the first columns of the responses. Nothing is copied."""
        self.start += columns
        self.length -= columns
        self._view()

    def select(self, rows: Tensor | None, more: int = 0) -> None:
        """Keep these rows (None: all) and append `more` empty ones. Copies them into new buffers."""
        before = self.keys, self.values
        count, heads, columns, width = before[0].shape
        count = count if rows is None else len(rows)
        self._allocate(count + more, heads, columns, width, count)
        for buffer, states in zip(self._buffers, before, strict=True):
            target = buffer[:count, :, :columns]
            if rows is None:
                target.copy_(states)
            else:
                torch.index_select(states, 0, rows, out=target)  # indexing would copy twice

    def keep_prefixes(self, prefixes: Tensor) -> None:
        """Keep these prefixes only."""
        self.prefix_keys, self.prefix_values = self.prefix_keys[prefixes], self.prefix_values[prefixes]

    def trim_prefixes(self, columns: int) -> None:
        """Drop the first columns of the prefixes."""
        self.prefix_keys, self.prefix_values = (x[:, :, columns:] for x in (self.prefix_keys, self.prefix_values))

    def add(self, other: Any, replaced: Tensor | None) -> None:
        """Add the prefixes of a prefilled layer: in place of the `replaced` ones, or (None) behind all.

        The narrower of the two is padded on its left.
        """
        columns = max(self.prefix_keys.shape[2], other.keys.shape[2])
        present = [_widened(x, columns) for x in (self.prefix_keys, self.prefix_values)]
        added = [_widened(x, columns) for x in (other.keys, other.values)]
        if replaced is None:
            present = [torch.cat(pair) for pair in zip(present, added, strict=True)]
        else:
            for states, new in zip(present, added, strict=True):
                states[replaced] = new
        self.prefix_keys, self.prefix_values = present

    def _allocate(self, rows: int, heads: int, columns: int, width: int, filled: int = 0) -> None:
        """New buffers for so many rows and columns. The caller writes the columns of the first `filled` rows."""
        size = (rows, heads, columns + SPARE, width)
        self._buffers = [torch.empty(size, dtype=self.dtype, device=self.device) for _ in range(2)]
        for buffer in self._buffers:  # masked columns have no weight, but they must be finite
            buffer[:filled, :, columns:] = 0
            buffer[filled:] = 0
        self.start, self.length = 0, columns
        self._view()

    def _view(self) -> None:
        self.keys, self.values = (b.narrow(2, self.start, self.length) for b in self._buffers)


class RowCache(Cache):
    """The KV cache of rows that share their prefixes.

    Attributes:
        prefix_mask: `[prefixes, columns]`, 1 where a prefix has a token. Prefixes are padded on their left.
        mask: `[rows, columns]`, 1 where a response has a token.
        prefix_of: `[rows]`, the index of each row's prefix.
    """

    layers: Any

    def __init__(self, prefixes: Cache, prefix_mask: Tensor, rows_each: Sequence[int]):
        """A cache of prefilled prefixes, each with so many rows, side by side."""
        rows = sum(rows_each)
        super().__init__(layers=[RowsLayer(layer, rows) for layer in prefixes.layers])
        self.prefix_mask = prefix_mask
        self.prefix_of = repeated(rows_each, prefix_mask.device)
        self.mask = prefix_mask.new_zeros(rows, 0)
        self._arrange()

    @property
    def allocated(self) -> int:
        """Columns of the response buffers, used or not."""
        return self.layers[0].allocated

    def join(
        self, prefixes: Cache, prefix_mask: Tensor, rows: Tensor | None, rows_each: Sequence[int], finished: Tensor
    ) -> None:
        """Add prefilled prefixes with their rows, and drop the prefixes that only finished rows read.

        Args:
            prefix_mask: `[new prefixes, columns]`.
            rows: the finished rows that the new ones replace `[new rows]`, or None to append them.
            rows_each: how many rows each new prefix has.
            finished: all finished rows, those that are replaced included.
        """
        new = self._add_prefixes(prefixes, prefix_mask, finished)[repeated(rows_each, prefix_mask.device)]
        if rows is None:
            self.prefix_of = torch.cat([self.prefix_of, new])
            self.mask = torch.cat([self.mask, self.mask.new_zeros(len(new), self.mask.shape[1])])
            for layer in self.layers:
                layer.select(None, len(new))
        else:
            self.prefix_of[rows], self.mask[rows] = new, 0
        self._arrange()

    def _add_prefixes(self, prefixes: Cache, prefix_mask: Tensor, finished: Tensor) -> Tensor:
        """Add prefixes, in place of those that only finished rows read if they are as many; their indices."""
        count, unfinished = len(prefix_mask), torch.ones_like(self.prefix_of, dtype=torch.bool)
        unfinished[finished] = False
        needed = torch.zeros(len(self.prefix_mask), dtype=torch.bool, device=unfinished.device)
        needed[self.prefix_of[unfinished]] = True
        free, replaced = (~needed).nonzero().squeeze(-1), None
        if len(free) == count:
            replaced = free
        elif len(free):
            # A finished row that stays is given some other prefix: what it computes means nothing
            self._keep_prefixes(needed.nonzero().squeeze(-1), (needed.cumsum(0) - 1).clamp_min(0)[self.prefix_of])
        columns = max(self.prefix_mask.shape[1], prefix_mask.shape[1])
        self.prefix_mask, prefix_mask = left_padded(self.prefix_mask, columns), left_padded(prefix_mask, columns)
        for layer, added in zip(self.layers, prefixes.layers, strict=True):
            layer.add(added, replaced)
        if replaced is None:
            present = len(self.prefix_mask)
            self.prefix_mask = torch.cat([self.prefix_mask, prefix_mask])
            return torch.arange(present, present + count, device=needed.device)
        self.prefix_mask[replaced] = prefix_mask
        return replaced

    def _keep_prefixes(self, prefixes: Tensor, prefix_of: Tensor) -> None:
        self.prefix_mask, self.prefix_of = self.prefix_mask[prefixes], prefix_of
        for layer in self.layers:
            layer.keep_prefixes(prefixes)

    def select(self, rows: Tensor) -> None:
        """Keep these rows, and the prefixes that they read."""
        self.mask = self.mask[rows]
        prefixes, self.prefix_of = self.prefix_of[rows].unique(return_inverse=True)
        if len(prefixes) < len(self.prefix_mask):
            self._keep_prefixes(prefixes, self.prefix_of)
        for layer in self.layers:
            layer.select(rows)
        self._arrange()

    def trim(self, columns: int) -> None:
        """Drop the first columns of the responses, which no unfinished row reads."""
        if columns:
            self.mask = self.mask[:, columns:]
            for layer in self.layers:
                layer.trim(columns)

    def trim_prefixes(self) -> None:
        """Drop the columns that no prefix uses."""
        unused = int((self.prefix_mask.sum(0) == 0).sum())  # all on the left, since prefixes end together
        if unused:
            self.prefix_mask = self.prefix_mask[:, unused:]
            for layer in self.layers:
                layer.trim_prefixes(unused)

    def next_column(self, dtype: torch.dtype) -> Tensor:
        """Open a column for a step's tokens; the attention bias of the responses `[rows, 1, 1, columns]`."""
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
        self._prefix_bias = attention_bias(self.prefix_mask, dtype)
        return attention_bias(self.mask, dtype)

    def _arrange(self) -> None:
        """Index the rows by prefix, each with as many slots as the largest has rows; row 0 fills the others."""
        counts = self.prefix_of.bincount(minlength=len(self.prefix_mask))
        most = int(counts.max())
        order = self.prefix_of.argsort(stable=True)
        first = counts.cumsum(0) - counts
        sorted_ = self.prefix_of[order]
        at = sorted_ * most + torch.arange(len(order), device=order.device) - first[sorted_]
        self.row_of_slot = order.new_zeros(len(counts) * most)
        self.row_of_slot[at] = order
        self.slot_of_row = torch.empty_like(order)
        self.slot_of_row[order] = at

    def over_prefixes(self, layer: RowsLayer, query: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Attention of `query` `[rows, key heads, queries, width]` over each row's prefix, with its log-sum-exp."""
        _, heads, queries, width = query.shape
        prefixes = len(self.prefix_mask)
        beside = query[self.row_of_slot].view(prefixes, -1, heads, queries, width).transpose(1, 2)
        beside = beside.reshape(prefixes, heads, -1, width)
        out, lse = attend(beside, layer.prefix_keys, layer.prefix_values, self._prefix_bias, scale)
        out = out.view(prefixes, heads, -1, queries, width).transpose(1, 2).reshape(-1, heads, queries, width)
        lse = lse.view(prefixes, heads, -1, queries).transpose(1, 2).reshape(-1, heads, queries)
        return out[self.slot_of_row], lse[self.slot_of_row]


def _widened(states: Tensor, columns: int) -> Tensor:
    return torch.nn.functional.pad(states, (0, 0, columns - states.shape[2], 0))


def left_padded(mask: Tensor, columns: int) -> Tensor:
    """The mask with zeros on its left, `columns` wide."""
    return torch.nn.functional.pad(mask, (columns - mask.shape[1], 0))


def repeated(counts: Sequence[int], device: torch.device) -> Tensor:
    """Each index as often as it counts: `[2, 0, 1]` gives `[0, 0, 2]`."""
    return torch.tensor([index for index, count in enumerate(counts) for _ in range(count)], device=device).long()
