"""What an artifact's key is made of: the parts of a config that matter, and the identity of what is not made here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from distill.config.model import WeightsConfig
from distill.config.neutral import determining
from distill.config.section import Section
from distill.data.examples import folder_hash
from distill.pipeline.store import digest

# Raised when a stage's code changes what it makes from the same settings.
VERSIONS = {
    "base": 1,
    "signal": 2,
    "train": 2,
    "evaluate": 2,
    "answers": 1,
    "agree": 1,
    "bertscore": 1,
    "exposure": 1,
    "reading": 1,
    "benchmark": 1,
}
# Keys of `train` that change no result, and those that the stage hashes by itself.
NOT_DETERMINING = {
    "teacher",
    "start",
    "student",
    "micro_batch_size",
    "save_steps",
    "seed",
    "shared_seed",
    "teacher_signal",
}
# Keys of `eval` that change no text (batch_tokens: none but by rounding), or (engine) are named apart
NO_DECODING = {"sets", "engine", "batch_tokens", "bertscore", "judge", "benchmarks"}


@dataclass(frozen=True)
class Given:
    """Weights that are not made here: a supplied or pretrained checkpoint with its identity."""

    name: str
    identity: str

    @property
    def key(self) -> str:
        """Hash of the identity."""
        return digest(self.identity)


def settings_of(section: Section, include: set[str] | None = None, exclude: set[str] | None = None) -> dict[str, Any]:
    """A section's values for hashing.

    Those at their neutral value (distill/config/neutral.py) are left out, so that a key added later keeps all hashes,
    and with them the results that stand under them.
    """
    return determining(section, include, exclude)


def identity(text: str, revision: str) -> str:
    """A hub id with its revision, or the content hash of a folder, which is read once a process."""
    folder = Path(text).expanduser()
    if not folder.is_dir():
        return text if "@" in text else f"{text}@{revision}"
    return _folder_hash(folder.resolve())


@cache
def _folder_hash(folder: Path) -> str:
    return folder_hash(folder)


def supplied_identity(own: WeightsConfig) -> str:
    """Identity of a supplied checkpoint; an adapter's holds that of the model it is laid over."""
    assert own.path is not None
    named = identity(own.path, "main")
    if (Path(own.path).expanduser() / "adapter_config.json").is_file() and own.id is not None:
        named += f" over {identity(own.id, own.revision)}"
    return named
