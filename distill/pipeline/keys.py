"""What artifact keys are hashed from: the settings of a config, and the identity of weights that no stage makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from distill.config.model import WeightsConfig
from distill.data.examples import folder_hash
from distill.models.folders import determining_files, is_adapter
from distill.pipeline.store import digest

# Part of every key of a stage. Increase a stage's number when its code makes another artifact from the same settings.
VERSIONS = {
    "base": 1,
    "signal": 2,
    "train": 3,
    "evaluate": 2,
    "answers": 1,
    "agree": 1,
    "bertscore": 1,
    "exposure": 2,
    "reading": 1,
    "benchmark": 1,
    "spans": 1,
    "probe": 1,
    "corrections": 2,
    "density": 1,
}
# Keys of `train` that are not hashed with the section: they change no result, or the plan hashes them separately.
NOT_DETERMINING = {
    "teacher",
    "start",
    "student",
    "sft",
    "rollout",
    "micro_batch_size",
    "save_steps",
    "seed",
    "shared_seed",
    "teacher_signal",
}
# Keys of `eval` that are not hashed as decoding settings: they change no response (batch_tokens changes it only by
# rounding), or the plan hashes them separately (engine).
NO_DECODING = {"sets", "engine", "batch_tokens", "bertscore", "judge", "benchmarks", "rouge_tokenizer"}


_HASHES: dict[tuple[Path, bool], str] = {}  # of folders, each read once per process


@dataclass(frozen=True)
class ExternalWeights:
    """Weights that no stage makes: a supplied or pretrained checkpoint.

    Attributes:
        name: the folder or hub id.
        identity: the hub id with its revision, or the hash of the folder's content.
    """

    name: str
    identity: str

    @property
    def key(self) -> str:
        """Hash of the identity."""
        return digest(self.identity)


def identity(text: str, revision: str = "main") -> str:
    """A hub id with its revision, or the hash of a folder's content. A folder is hashed once per process.

    Args:
        text: the folder or hub id.
        revision: added to a hub id that has no `@revision`.
    """
    return _identity(text, revision, folder_hash)


def checkpoint_identity(text: str, revision: str = "main") -> str:
    """As `identity`, but only of a checkpoint's weights, config and tokenizer: a README beside them changes nothing."""
    return _identity(text, revision, lambda folder: folder_hash(folder, determining_files(folder)))


def _identity(text: str, revision: str, content: Callable[[Path], str]) -> str:
    folder = Path(text).expanduser()
    if not folder.is_dir():
        return text if "@" in text else f"{text}@{revision}"
    key = folder.resolve(), content is folder_hash
    if key not in _HASHES:
        _HASHES[key] = content(key[0])
    return _HASHES[key]


def supplied_identity(config: WeightsConfig) -> str:
    """The identity of a supplied checkpoint. An adapter's identity includes that of its base model."""
    assert config.path is not None
    checkpoint, folder = checkpoint_identity(config.path), Path(config.path).expanduser()
    if config.id is not None and folder.is_dir() and is_adapter(folder):
        checkpoint += f" over {checkpoint_identity(config.id, config.revision)}"
    return checkpoint
