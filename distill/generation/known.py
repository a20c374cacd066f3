"""Texts that a model has read, with their keys and values, so that it reads on from any of their tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, DynamicCache

from distill.models.load import without_adapter

ROWS = 16  # texts of one forward pass, at most
# Texts are read together only if the shortest has at least this share of the longest's tokens. Shorter ones would waste
# computation on padding.
MIN_LENGTH_RATIO = 0.8


@dataclass(frozen=True)
class Known:
    """The keys and values of a text's first tokens, layer by layer: `[key heads, tokens, width]` each."""

    layers: Sequence[tuple[Tensor, Tensor]]

    def __len__(self) -> int:
        return int(self.layers[0][0].shape[1])

    def first(self, tokens: int) -> Known:
        """Those of the first tokens only, without a copy."""
        return Known([(keys[:, :tokens], values[:, :tokens]) for keys, values in self.layers])


# Last hidden states `[n, d]` of tokens that a model has read, and the keys and values of the text up to the last one
Reading = tuple[Tensor, Known]


def joined(known: Sequence[Known]) -> tuple[Cache, Tensor]:
    """A cache of several texts `[rows, ..., columns]`, and its mask `[rows, columns]`. Shorter ones are padded left."""
    columns = max(len(of_row) for of_row in known)
    cache = DynamicCache()
    for layer in range(len(known[0].layers)):
        keys, values = (
            torch.stack([pad(of_row.layers[layer][i], (0, 0, columns - len(of_row), 0)) for of_row in known])
            for i in (0, 1)
        )
        cache.update(keys, values, layer)
    device = known[0].layers[0][0].device
    lengths = torch.tensor([len(of_row) for of_row in known], device=device).unsqueeze(1)
    return cache, (torch.arange(columns, device=device) >= columns - lengths).long()


@torch.no_grad()
def read(
    model: Any, tokens: Sequence[Sequence[int]], pad_id: int, known: Sequence[Known] | None = None
) -> list[Reading]:
    """The reading of each text's tokens, with the keys and values of the whole text.

    Args:
        model: a causal language model in eval mode.
        tokens: of each text, at least one; the next ones if the first are known.
        pad_id: fills shorter texts of a forward pass.
        known: what the model has read of each text before.
    """
    results: list[Any] = [None] * len(tokens)
    for part in similar_lengths([len(ids) for ids in tokens]):
        of_part = _read([tokens[i] for i in part], [known[i] for i in part] if known else None, model, pad_id)
        for i, result in zip(part, of_part, strict=True):
            results[i] = result
    return results


def similar_lengths(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of texts of similar length, longest first, at most `ROWS` together."""
    part: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if part and (len(part) == ROWS or lengths[i] < MIN_LENGTH_RATIO * lengths[part[0]]):
            yield part
            part = []
        part.append(i)
    if part:
        yield part


def _read(tokens: Sequence[Sequence[int]], known: Sequence[Known] | None, model: Any, pad_id: int) -> list[Reading]:
    cache: Any
    cache, past = joined(known) if known else (DynamicCache(), None)
    lengths, device = [len(ids) for ids in tokens], model.device
    ids = torch.full((len(tokens), max(lengths)), pad_id)
    mask = torch.zeros_like(ids)
    for row, of_row in enumerate(tokens):
        ids[row, : lengths[row]], mask[row, : lengths[row]] = torch.tensor(of_row), 1
    ids, mask = ids.to(device), mask.to(device)
    mask = mask if past is None else torch.cat((past, mask), 1)
    columns = mask.shape[1] - ids.shape[1]
    positions = (mask.cumsum(1) - 1).clamp_min(0)[:, columns:]
    hidden = without_adapter(model).base_model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    ).last_hidden_state  # fmt: skip
    results = []
    for row, length in enumerate(lengths):
        start, end = 0 if known is None else columns - len(known[row]), columns + length
        layers = [(layer.keys[row, :, start:end], layer.values[row, :, start:end]) for layer in cache.layers]
        results.append((hidden[row, :length], Known(layers)))
    return results
