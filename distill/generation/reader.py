"""A model with the KV cache of a batch: prefills prefixes, then processes one token per row and step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from distill.generation.attention import using_cache
from distill.generation.cache import RowCache
from distill.generation.known import Known, joined


@dataclass(frozen=True)
class Mixture:
    """A student and a teacher that write together: each token is drawn from `(1 - share) q + share p` (MiniLLM).

    Attributes:
        student: the model with the probabilities `q`.
        teacher: the model with the probabilities `p`.
        share: the teacher's share, in (0, 1).
    """

    student: Any
    teacher: Any
    share: float


class CachedModel:
    """A model with its own KV cache; row i of the cache is row i of the batch."""

    def __init__(self, model: Any):
        self.model = model
        self.cache: RowCache | None = None

    @property
    def allocated(self) -> int:
        """Number of columns of the cache's response buffers, used or not."""
        return self.cache.allocated if self.cache is not None else 0

    def prefill(
        self,
        ids: Tensor,
        mask: Tensor,
        rows_per_prefix: Sequence[int],
        replaced: Tensor | None,
        finished: Tensor,
        known: Sequence[Known] = (),
    ) -> Tensor:
        """Prefill left-padded prefixes and add their rows to the cache.

        Args:
            ids: token ids `[prefixes, columns]`.
            mask: 1 where `ids` has a token, 0 where it has padding.
            rows_per_prefix: number of rows of each prefix.
            replaced: indices of the finished rows that the new rows replace; None appends the new rows.
            finished: indices of all finished rows of the batch.
            known: of each prefix the keys and values of all tokens but the last, which alone `ids` then has; empty if
                they are not known.

        Returns:
            Next-token logits `[prefixes, V]` in fp32.
        """
        prefilled, past = joined(known) if known else (DynamicCache(), mask[:, :0])
        mask = torch.cat((past, mask), 1)
        positions = (mask.cumsum(1) - 1).clamp_min(0)[:, past.shape[1] :]
        logits = self._forward(ids, mask, positions, prefilled)
        if self.cache is None:
            self.cache = RowCache(prefilled, mask, rows_per_prefix)
        else:
            self.cache.join(prefilled, mask, replaced, rows_per_prefix, finished)
        self.cache.trim_prefixes()
        return logits

    def read(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Next-token logits `[rows, V]` in fp32, after each row's token `[rows, 1]` at its position `[rows, 1]`."""
        assert self.cache is not None
        bias = self.cache.next_column(self.model.dtype)
        with using_cache(self.cache):
            return self._forward(tokens, bias, positions, self.cache)

    def select(self, rows: Tensor) -> None:
        """Drop all rows of the cache but these."""
        assert self.cache is not None
        self.cache.select(rows)
        self.cache.trim_prefixes()

    def keep_columns(self, columns: int) -> None:
        """Drop all columns of the responses but the last `columns`."""
        assert self.cache is not None
        self.cache.trim(self.cache.mask.shape[1] - columns)

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()
