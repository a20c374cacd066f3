"""Keys and values of the rows that are being written: room ahead, rows that leave and rows that join."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

ROOM = 64  # columns allocated ahead: a step writes into them, where DynamicCache copies all that it holds


class RoomyLayer(DynamicLayer):
    """A layer whose `keys` and `values` `[rows, heads, columns, width]` are views of larger buffers."""

    keys: Any
    values: Any

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.start = self.length = 0  # the columns in use

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write new columns and give all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._hold(key_states, value_states)
            return self.keys, self.values
        new = key_states.shape[2]
        if self.start + self.length + new > self._buffers[0].shape[2]:
            self._hold(self.keys, self.values)
        end = self.start + self.length
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, end : end + new] = states
        self.length += new
        self._view()
        return self.keys, self.values

    def trim(self, columns: int) -> None:
        """Forget the first columns; nothing is copied."""
        self.start += columns
        self.length -= columns
        self._view()

    def select(self, rows: Tensor) -> None:
        """Keep these rows."""
        self._hold(self.keys, self.values, rows)

    def widen(self, columns: int) -> None:
        """Have so many columns, the new ones on the left."""
        if (new := columns - self.length) <= 0:
            return
        if new > self.start:
            self._hold(self.keys, self.values, left=new)
        self.start -= new
        self.length = columns
        self._view()

    def replace(self, rows: Tensor, other: RoomyLayer, repeats: int) -> None:
        """Put each row of another, no longer cache `repeats` times in the place of these rows."""
        for mine, theirs in zip((self.keys, self.values), (other.keys, other.values), strict=True):
            mine[rows, :, self.length - other.length :] = theirs.repeat_interleave(repeats, 0)

    def add(self, other: RoomyLayer, repeats: int) -> None:
        """Put each row of another, no longer cache `repeats` times below."""
        self._hold(self.keys, self.values, below=other.keys.shape[0] * repeats)
        new = torch.arange(self.keys.shape[0] - other.keys.shape[0] * repeats, self.keys.shape[0])
        self.replace(new.to(self.keys.device), other, repeats)

    def repeat(self, repeats: int) -> None:
        """Each row so many times."""
        self._hold(self.keys.repeat_interleave(repeats, 0), self.values.repeat_interleave(repeats, 0))

    def _hold(self, keys: Tensor, values: Tensor, rows: Tensor | None = None, left: int = 0, below: int = 0) -> None:
        """Copy into new buffers with room ahead, all rows or these; with room on the left, and empty rows below."""
        held, heads, columns, width = keys.shape
        if rows is not None:
            held = len(rows)
        size = (held + below, heads, left + columns + ROOM, width)
        # Nobody reads what no mask lets through, but it must be finite
        empty = torch.zeros if left or below else torch.empty
        self._buffers = [empty(size, dtype=self.dtype, device=self.device) for _ in range(2)]
        self.start, self.length = left, columns
        for buffer, states in zip(self._buffers, (keys, values), strict=True):
            buffer[:held, :, left : left + columns] = states if rows is None else states[rows]
        self._view()

    def _view(self) -> None:
        self.keys, self.values = (b.narrow(2, self.start, self.length) for b in self._buffers)


class RowCache(Cache):
    """The cache of rows that leave and join; every layer remembers all columns."""

    layers: Any

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=RoomyLayer)

    def trim(self, columns: int) -> None:
        """Forget the first columns of every layer."""
        if columns:
            for layer in self.layers:
                layer.trim(columns)

    def select(self, rows: Tensor) -> None:
        """Keep these rows of every layer."""
        for layer in self.layers:
            layer.select(rows)

    def repeat(self, repeats: int) -> None:
        """Each row so many times."""
        for layer in self.layers:
            layer.repeat(repeats)

    def join(self, other: RowCache, repeats: int, rows: Tensor | None) -> None:
        """Add another cache's rows, each `repeats` times: in the place of these rows, or below all."""
        for layer, theirs in zip(self.layers, other.layers, strict=True):
            layer.widen(theirs.length)
            if rows is None:
                layer.add(theirs, repeats)
            else:
                layer.replace(rows, theirs, repeats)
