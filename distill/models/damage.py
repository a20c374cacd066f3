"""What is damaged in the files of a checkpoint: cut off, empty, a pointer in place of the file, or missing."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from distill.base.errors import UserError
from distill.base.files import LFS_POINTER, OF_LFS, read_json, read_object
from distill.models.folders import ADAPTER, ADAPTER_CONFIG, CONFIG, weight_files


def tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file of weights by name, one in memory at a time for safetensors.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  # it is no dict
                    yield name, opened.get_tensor(name)
        else:
            mapped = zipfile.is_zipfile(file)  # files of old versions of torch cannot be mapped
            yield from torch.load(file, map_location="cpu", weights_only=True, mmap=mapped).items()
    except UserError:
        raise
    except Exception as error:  # what damaged bytes raise is not documented
        raise UserError(f"{file}: {_damage(file)} ({' '.join(str(error).split())[:120]})") from None


def check_files(files: Sequence[Path]) -> None:
    """Refuse weights that cannot be read, by their headers.

    Raises:
        UserError: with the problems of all files.
    """
    problems = []
    for file in files:
        try:
            next(tensors(file), None)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)


def refuse_damage(folder: Path) -> None:
    """Refuse a folder whose files cannot be read, for a message that names the file.

    Raises:
        UserError: weights, config.json or an adapter's settings are damaged.
    """
    try:
        check_files([*weight_files(folder), *weight_files(folder, ADAPTER)])
        for name in (CONFIG, ADAPTER_CONFIG):
            if (folder / name).is_file():
                read_json(folder / name)
    except UserError as error:
        way_out = f"if {folder} is in the store, remove it, and it is made again"
        raise UserError([f"{problem}; {way_out}" for problem in error.problems]) from None


def damage_of(checkpoint: Path) -> str | None:
    """What is damaged in the checkpoint of a training, weights and states of optimizer and trainer; None if nothing."""
    if not checkpoint.is_dir():
        return f"{checkpoint}: it is missing"
    sharded = any(path.is_dir() for path in checkpoint.iterdir())  # FSDP and DeepSpeed have files of their own
    needed = ("optimizer.pt", "scheduler.pt", "rng_state*", "trainer_state.json", "*model*.safetensors")
    missing = [name for name in needed if not sharded and not list(checkpoint.glob(name))]
    if missing:
        return f"{checkpoint}: {', '.join(missing)} missing"
    try:
        for file in sorted(checkpoint.iterdir()):
            if file.name == "trainer_state.json":
                read_object(file)
            elif file.suffix == ".json":
                read_json(file)
            elif file.suffix == ".safetensors":
                next(tensors(file), None)
            elif file.suffix in (".pt", ".pth", ".bin") and not _is_whole_archive(file):
                return f"{file}: {_damage(file)}".partition(";")[0]
    except UserError as error:
        return error.problems[0].partition(";")[0]
    return None


def _is_whole_archive(file: Path) -> bool:
    """Whether what `torch.save` wrote is complete, by its checksums."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except zipfile.BadZipFile:
        return False


def _damage(file: Path) -> str:
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(40)
    if start.startswith(LFS_POINTER):
        return f"it is {OF_LFS}"
    return f"damaged or cut off, {size} bytes; copy or download it again" if size else "it is empty; copy it again"
