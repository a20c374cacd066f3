"""A model with the KV cache of a batch: it prefills prefixes and reads one token a row at each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache

from distill.generation.attention import reading
from distill.generation.cache import RowCache


@dataclass(frozen=True)
class Mixture:
    """A student and a teacher that write together: each token is drawn from `(1 - share) q + share p` (MiniLLM).

    Attributes:
        share: the teacher's, in (0, 1).
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
        """Columns of the cache's response buffers, used or not."""
        return self.cache.allocated if self.cache is not None else 0

    def prefill(
        self, ids: Tensor, mask: Tensor, rows_each: Sequence[int], rows: Tensor | None, finished: Tensor
    ) -> Tensor:
        """Read left-padded prefixes `[prefixes, columns]` and add their rows to the cache.

        Args:
            rows_each: how many rows each prefix has.
            rows: the finished rows that the new ones replace, or None to append them.
            finished: all rows of the batch that are finished.

        Returns:
            Next-token logits `[prefixes, V]` in fp32.
        """
        prefilled = DynamicCache()
        logits = self._forward(ids, mask, (mask.cumsum(1) - 1).clamp_min(0), prefilled)
        if self.cache is None:
            self.cache = RowCache(prefilled, mask, rows_each)
        else:
            self.cache.join(prefilled, mask, rows, rows_each, finished)
        self.cache.trim_prefixes()
        return logits

    def read(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Read each row's token `[rows, 1]` at its position `[rows, 1]`; next-token logits `[rows, V]` in fp32."""
        assert self.cache is not None
        bias = self.cache.next_column(self.model.dtype)
        with reading(self.cache):
            return self._forward(tokens, bias, positions, self.cache)

    def select(self, rows: Tensor) -> None:
        """Keep these rows in the cache."""
        assert self.cache is not None
        self.cache.select(rows)
        self.cache.trim_prefixes()

    def keep_columns(self, columns: int) -> None:
        """Keep the last so many columns of the responses."""
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
