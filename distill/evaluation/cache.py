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

    def join(self, other: RoomyLayer, repeats: int) -> None:
        """Add each row of another cache `repeats` times below; the shorter of the two is padded on its left."""
        shape = list(self.keys.shape)
        columns, added = max(self.length, other.length), other.keys.shape[0] * repeats
        held = (self.keys, self.values)
        shape[0], shape[2] = shape[0] + added, columns
        self._allocate(shape)
        for buffer, above, below in zip(self._buffers, held, (other.keys, other.values), strict=True):
            rows = above.shape[0]
            buffer[:rows, :, : columns - above.shape[2]] = 0
            buffer[:rows, :, columns - above.shape[2] : columns] = above
            buffer[rows:, :, : columns - below.shape[2]] = 0
            buffer[rows:, :, columns - below.shape[2] : columns] = below.repeat_interleave(repeats, 0)
        self._view()

    def repeat(self, repeats: int) -> None:
        """Each row so many times."""
        self._hold(self.keys.repeat_interleave(repeats, 0), self.values.repeat_interleave(repeats, 0))

    def _hold(self, keys: Tensor, values: Tensor, rows: Tensor | None = None) -> None:
        """Copy into new buffers with room ahead, all rows or these."""
        shape = list(keys.shape)
        if rows is not None:
            shape[0] = len(rows)
        self._allocate(shape)
        for buffer, states in zip(self._buffers, (keys, values), strict=True):
            buffer[:, :, : shape[2]] = states if rows is None else states[rows]
        self._view()

    def _allocate(self, shape: list[int]) -> None:
        size = (shape[0], shape[1], shape[2] + ROOM, shape[3])
        self._buffers = [torch.empty(size, dtype=self.dtype, device=self.device) for _ in range(2)]
        self.start, self.length = 0, shape[2]

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

    def join(self, other: RowCache, repeats: int) -> None:
        """Add another cache's rows, each `repeats` times."""
        for layer, theirs in zip(self.layers, other.layers, strict=True):
            layer.join(theirs, repeats)
