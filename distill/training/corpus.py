"""Plain text for a language-modelling loss in addition to distillation (MiniLLM's pre-training loss)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from distill.base.errors import UserError
from distill.data.encode import plain_ids, special_tokens
from distill.samplers import Step


class Corpus:
    """Texts, each followed by EOS, concatenated and cut into blocks of `length` tokens.

    An incomplete last block is dropped.

    Args:
        length: tokens of a block.

    Raises:
        UserError: the texts have fewer tokens than one block.
    """

    def __init__(self, texts: Iterable[str], tokenizer: Any, length: int):
        ids: list[int] = []
        specials = special_tokens(tokenizer)
        for text in texts:
            ids += [*plain_ids(tokenizer, specials, text), tokenizer.eos_token_id]
        whole = len(ids) // length
        if not whole:
            raise UserError(f"data.pretrain: {len(ids)} tokens are less than one block of train.max_length={length}")
        self._blocks = torch.tensor(ids[: whole * length]).view(whole, length)

    def __len__(self) -> int:
        return len(self._blocks)

    def blocks(self, step: Step, global_batch_size: int) -> Tensor:
        """The blocks of a step `[rows, length]`, as many as its global batch has rows.

        The steps read the corpus again and again, each time in a new random order.
        """
        whole, first = len(self), step.number * global_batch_size
        positions = range(first, first + step.rows)
        orders = {r: step.rng("corpus", r).permutation(whole) for r in {i // whole for i in positions}}
        return self._blocks[[int(orders[i // whole][i % whole]) for i in positions]]
