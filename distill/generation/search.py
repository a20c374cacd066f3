"""Beam search by transformers' `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from distill.generation.batch import PrefixRows
from distill.generation.requests import Decoding, Progress


@torch.inference_mode()
def beam_search(model: Any, prefixes: Sequence[PrefixRows], decoding: Decoding, progress: Progress) -> None:
    """Write the response of every row, one row at a time: in a padded batch, n-gram bans would include the padding."""
    settings = decoding.settings
    for prefix in prefixes:
        ids = torch.tensor([prefix.tokens], device=model.device)
        for row in prefix.rows:
            config = GenerationConfig(
                num_beams=settings.num_beams,
                do_sample=False,
                max_new_tokens=row.room,
                no_repeat_ngram_size=settings.no_repeat_ngram_size or None,
                eos_token_id=decoding.eos_id,
                pad_token_id=decoding.pad_id,
                suppress_tokens=_not_written(model, decoding),
            )
            output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
            tokens = output[0, ids.shape[1] :].tolist()
            row.done, row.ended = True, decoding.eos_id in tokens
            row.tokens = tokens[: tokens.index(decoding.eos_id)] if row.ended else tokens
            progress(len(row.requests))


def _not_written(model: Any, decoding: Decoding) -> list[int] | None:
    """The ids of the output layer that are not written (`Decoding.vocabulary`); None if all are."""
    width = model.get_output_embeddings().weight.shape[0]
    return list(range(decoding.vocabulary, width)) or None if decoding.vocabulary is not None else None
