"""What the files of a checkpoint's folder are. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distill.base.errors import UserError

CONFIG, ADAPTER_CONFIG, GENERATION = "config.json", "adapter_config.json", "generation_config.json"
# The files that transformers reads; where one pattern has files, the later ones are not read
WHOLE = ("model.safetensors", "model-*-of-*.safetensors", "pytorch_model.bin", "pytorch_model-*-of-*.bin")
ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "vocab.bpe", "merges.txt", "*.model", "*.tiktoken",
)  # fmt: skip


def weight_files(folder: Path, patterns: Sequence[str] = WHOLE) -> list[Path]:
    """The files of a folder's weights that are read; a folder may hold the same weights in two formats."""
    return next((files for pattern in patterns if (files := sorted(folder.glob(pattern)))), [])


def determining_files(folder: Path) -> list[Path]:
    """The files of a checkpoint's folder that are of its weights, its config or its tokenizer."""
    named = [file for name in (CONFIG, ADAPTER_CONFIG, *TOKENIZER) for file in folder.glob(name) if file.is_file()]
    return sorted({*weight_files(folder), *weight_files(folder, ADAPTER), *named})


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a model or an adapter."""
    return any((folder / name).is_file() for name in (CONFIG, ADAPTER_CONFIG))


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and not a whole model.

    Raises:
        UserError: it holds both, which transformers would put together, or neither.
    """
    config, adapter = (folder / CONFIG).is_file(), (folder / ADAPTER_CONFIG).is_file()
    if adapter and config and weight_files(folder):
        raise UserError(
            f"{folder} holds a whole model and {ADAPTER_CONFIG}, and transformers would put the two together; move"
            f" {ADAPTER_CONFIG} (with adapter_model.*) into a folder of its own, and name the one that you mean"
        )
    if not adapter and not config:
        within = [x.name for x in folder.iterdir() if x.is_dir() and is_checkpoint(x)]
        within.sort(key=lambda name: [int(part) if part.isdigit() else -1 for part in name.split("-")])
        hint = f"; {', '.join(within)} in it {'holds' if len(within) == 1 else 'hold'} one: name that folder"
        raise UserError(
            f"{folder} holds no model: neither {CONFIG} nor {ADAPTER_CONFIG} is there{hint if within else ''}"
        )
    return adapter
