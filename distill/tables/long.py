"""Long CSV files: one line a value. Tables are always made from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from distill.errors import UserError

VALUES = "table,row,column,dataset,metric,seed,value,n,preset,run,train_seed,decode,engine,commit".split(",")
SCORES = ["row", "run", "dataset", "id", "rouge_l", "seeds"]  # a prompt's ROUGE-L, the mean over its generation seeds
CURVES = ["row", "run", "train_seed", "stage", "step", "epoch", "loss", "learning_rate", "grad_norm",
          "eval_loss", "eval_ce", "eval_kd", "eval_rouge_l"]  # fmt: skip
KEYS = tuple("row run seeds dataset id stage commit preset decode engine metric table column".split())


def read(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """The file's lines, or none if it does not exist.

    Raises:
        UserError: its columns are other ones.
    """
    if not path.is_file():
        return pd.DataFrame(columns=list(columns))
    frame = pd.read_csv(path, dtype={key: str for key in KEYS if key in columns})
    if list(frame.columns) != list(columns):
        raise UserError(f"{path}: has columns {', '.join(frame.columns)}, needs {', '.join(columns)}; move it away")
    return frame


def append(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str], locks: Path) -> None:
    """Add lines to the file, whole or not at all as far as other processes see.

    Args:
        locks: folder for the lock file, so that none lies among the results.
    """
    frame = pd.DataFrame(list(rows), columns=list(columns))
    if frame.empty:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{path.parent.parent.name}-{path.parent.name}-{path.name}.lock"):
        before = path.read_bytes() if path.is_file() else b""
        text = frame.to_csv(index=False, header=not before, lineterminator="\n").encode()
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(before + text)
        temporary.replace(path)
