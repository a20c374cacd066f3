"""The KV cache of a batch whose rows share prefixes: one copy of each prefix for all its rows, and each row's response.

A prefix is a prompt, possibly with the beginning of a response. A decoding step attends to the prefixes and to the
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

SPARE = 32  # columns that are allocated ahead, so that a step does not copy the whole cache, as DynamicCache does


class RowsLayer(DynamicLayer):
    """One layer's keys and values.

    Attributes:
        keys: of the responses, `[rows, key heads, columns, width]`; a view of a larger buffer.
        values: of the responses, in the same shape.
        prefix_keys: of the prefixes, `[prefixes, key heads, columns, width]`.
        prefix_values: of the prefixes, in the same shape.
        start: the first column of the buffers that is used.
        length: number of columns that are used.
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
        """Number of columns of the response buffers, used or not."""
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
        """Drop the first `columns` columns of the responses, without a copy."""
        self.start += columns
        self.length -= columns
        self._view()

    def select(self, rows: Tensor | None, added: int = 0) -> None:
        """Copy these rows (None: all) into new buffers and append `added` empty rows."""
        present = self.keys, self.values
        count, heads, columns, width = present[0].shape
        count = count if rows is None else len(rows)
        self._allocate(count + added, heads, columns, width, count)
        for buffer, states in zip(self._buffers, present, strict=True):
            target = buffer[:count, :, :columns]
            if rows is None:
                target.copy_(states)
            else:
                torch.index_select(states, 0, rows, out=target)  # indexing would copy twice

    def keep_prefixes(self, prefixes: Tensor) -> None:
        """Drop all prefixes but these."""
        self.prefix_keys, self.prefix_values = self.prefix_keys[prefixes], self.prefix_values[prefixes]

    def trim_prefixes(self, columns: int) -> None:
        """Drop the first `columns` columns of the prefixes."""
        self.prefix_keys, self.prefix_values = (x[:, :, columns:] for x in (self.prefix_keys, self.prefix_values))

    def add(self, other: Any, replaced: Tensor | None) -> None:
        """Add the prefixes of a prefilled layer. They replace the prefixes `replaced`, or are appended if it is None.

        If the column counts differ, the narrower one is padded on its left.
        """
        columns = max(self.prefix_keys.shape[2], other.keys.shape[2])
        present = [_left_padded_states(x, columns) for x in (self.prefix_keys, self.prefix_values)]
        added = [_left_padded_states(x, columns) for x in (other.keys, other.values)]
        if replaced is None:
            present = [torch.cat(pair) for pair in zip(present, added, strict=True)]
        else:
            for states, new in zip(present, added, strict=True):
                states[replaced] = new
        self.prefix_keys, self.prefix_values = present

    def _allocate(self, rows: int, heads: int, columns: int, width: int, filled: int = 0) -> None:
        """Allocate new buffers. The caller writes the first `columns` columns of the first `filled` rows."""
        size = (rows, heads, columns + SPARE, width)
        self._buffers = [torch.empty(size, dtype=self.dtype, device=self.device) for _ in range(2)]
        for buffer in self._buffers:  # masked columns get no weight, but must be finite
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

    def __init__(self, prefixes: Cache, prefix_mask: Tensor, rows_per_prefix: Sequence[int]):
        """A cache of prefilled prefixes. The rows of a prefix follow each other."""
        rows = sum(rows_per_prefix)
        super().__init__(layers=[RowsLayer(layer, rows) for layer in prefixes.layers])
        self.prefix_mask = prefix_mask
        self.prefix_of = repeated(rows_per_prefix, prefix_mask.device)
        self.mask = prefix_mask.new_zeros(rows, 0)
        self._assign_slots()

    @property
    def allocated(self) -> int:
        """Number of columns of the response buffers, used or not."""
        return self.layers[0].allocated

    def join(
        self,
        prefixes: Cache,
        prefix_mask: Tensor,
        replaced: Tensor | None,
        rows_per_prefix: Sequence[int],
        finished: Tensor,
    ) -> None:
        """Add prefilled prefixes with their rows, and drop the prefixes that only finished rows read.

        Args:
            prefixes: the keys and values of the new prefixes.
            prefix_mask: `[new prefixes, columns]`.
            replaced: indices `[new rows]` of the finished rows that the new rows replace; None appends the new rows.
            rows_per_prefix: number of rows of each new prefix.
            finished: indices of all finished rows, including those that are replaced.
        """
        indices = self._add_prefixes(prefixes, prefix_mask, finished)
        new_prefix_of = indices[repeated(rows_per_prefix, prefix_mask.device)]
        if replaced is None:
            self.prefix_of = torch.cat([self.prefix_of, new_prefix_of])
            self.mask = torch.cat([self.mask, self.mask.new_zeros(len(new_prefix_of), self.mask.shape[1])])
            for layer in self.layers:
                layer.select(None, len(new_prefix_of))
        else:
            self.prefix_of[replaced], self.mask[replaced] = new_prefix_of, 0
        self._assign_slots()

    def _add_prefixes(self, prefixes: Cache, prefix_mask: Tensor, finished: Tensor) -> Tensor:
        """Add prefixes and return their indices.

        They replace the prefixes that only finished rows read if there are as many; else those are dropped.
        """
        count, unfinished = len(prefix_mask), torch.ones_like(self.prefix_of, dtype=torch.bool)
        unfinished[finished] = False
        needed = torch.zeros(len(self.prefix_mask), dtype=torch.bool, device=unfinished.device)
        needed[self.prefix_of[unfinished]] = True
        free, replaced = (~needed).nonzero().squeeze(-1), None
        if len(free) == count:
            replaced = free
        elif len(free):
            # Finished rows that stay are assigned to another prefix, since their results are not used
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
        self._assign_slots()

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
        """Add a column for the tokens of a step; return the attention bias of the responses `[rows, 1, 1, columns]`."""
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
        self._prefix_bias = attention_bias(self.prefix_mask, dtype)
        return attention_bias(self.mask, dtype)

    def _assign_slots(self) -> None:
        """Assign each row to a slot of its prefix, for `attend_prefixes`.

        Every prefix has as many slots as the prefix with the most rows has rows. Row 0 fills the slots that are left.
        """
        counts = self.prefix_of.bincount(minlength=len(self.prefix_mask))
        slots = int(counts.max())
        order = self.prefix_of.argsort(stable=True)
        first = counts.cumsum(0) - counts
        prefix = self.prefix_of[order]
        slot = prefix * slots + torch.arange(len(order), device=order.device) - first[prefix]
        self.row_of_slot = order.new_zeros(len(counts) * slots)
        self.row_of_slot[slot] = order
        self.slot_of_row = torch.empty_like(order)
        self.slot_of_row[order] = slot

    def attend_prefixes(self, layer: RowsLayer, query: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """The attention output over each row's prefix, and the log-sum-exp of its scores (see `attend`).

        Args:
            layer: the layer whose prefixes are read.
            query: `[rows, key heads, queries, width]`.
            scale: multiplies the scores.
        """
        _, heads, queries, width = query.shape
        prefixes = len(self.prefix_mask)
        by_prefix = query[self.row_of_slot].view(prefixes, -1, heads, queries, width).transpose(1, 2)
        by_prefix = by_prefix.reshape(prefixes, heads, -1, width)
        out, lse = attend(by_prefix, layer.prefix_keys, layer.prefix_values, self._prefix_bias, scale)
        out = out.view(prefixes, heads, -1, queries, width).transpose(1, 2).reshape(-1, heads, queries, width)
        lse = lse.view(prefixes, heads, -1, queries).transpose(1, 2).reshape(-1, heads, queries)
        return out[self.slot_of_row], lse[self.slot_of_row]


def _left_padded_states(states: Tensor, columns: int) -> Tensor:
    return torch.nn.functional.pad(states, (0, 0, columns - states.shape[2], 0))


def left_padded(mask: Tensor, columns: int) -> Tensor:
    """The mask, padded with zeros on its left to `columns` columns."""
    return torch.nn.functional.pad(mask, (columns - mask.shape[1], 0))


def repeated(counts: Sequence[int], device: torch.device) -> Tensor:
    """Each index, repeated as often as its count: `[2, 0, 1]` gives `[0, 0, 2]`."""
    return torch.tensor([index for index, count in enumerate(counts) for _ in range(count)], device=device).long()
