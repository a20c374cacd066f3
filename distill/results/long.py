"""Long CSV files: one line a value. Tables are always made from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from distill.base.errors import UserError

VALUES = "table,row,column,dataset,metric,seed,value,n,preset,run,train_seed,decode,engine,commit".split(",")
# A prompt's ROUGE-L and BERTScore (empty where it was not measured), means over its generation seeds; whose BERTScore
SCORES = ["row", "run", "dataset", "id", "rouge_l", "seeds", "bertscore", "encoder"]
CURVES = ["row", "run", "train_seed", "stage", "step", "epoch", "loss", "learning_rate", "grad_norm",
          "eval_loss", "eval_ce", "eval_kd", "eval_rouge_l",
          # of a sampler that lets the student write (distill.training.sampling tells what they are)
          "student_share", "replay_share", "buffer", "buffer_age", "threshold", "response_length", "eos_rate",
          "seconds_writing", "seconds_learning"]  # fmt: skip
# Metrics without a generation seed: what a training cost, and how far a student agrees with its teacher
COSTS = {
    "peak_gb": "GB of 10^9 bytes, the most that the process held in training: a GPU's allocations, or its resident set",
    "minutes": "Minutes of a training's steps and of what is done once for them: the teacher's signal, its answers",
    "seconds_per_sample": "Seconds of a training's steps for each sample",
}
AGREEMENTS = ("agreement_top1", "agreement_fkl", "agreement_rkl")
TRAINING = "training"  # stands for the data set of what a row's training cost
BENCHMARKS = "benchmarks"  # stands for the data set of lm-eval's tasks
EXPOSURE = "exaccerr:"  # with a length behind it
KEYS = tuple("row run seeds dataset id stage commit preset decode engine metric table column encoder".split())

VALUE_KEY = ("row", "run", "dataset", "metric", "seed")
SCORE_KEY = ("row", "run", "dataset", "id", "seeds")
CURVE_KEY = ("row", "run", "stage")  # a stage's curve is added whole


def read(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """The file's lines, or none if it does not exist. The last columns, which came later, may be missing.

    Raises:
        UserError: its columns are other ones.
    """
    if not path.is_file():
        return pd.DataFrame(columns=list(columns))
    frame = pd.read_csv(path, dtype={key: str for key in KEYS if key in columns})
    if list(frame.columns) == list(columns)[: len(frame.columns)]:
        frame = frame.reindex(columns=list(columns))
    if list(frame.columns) != list(columns):
        raise UserError(f"{path}: has columns {', '.join(frame.columns)}, needs {', '.join(columns)}; move it away")
    return frame


def append(
    path: Path,
    rows: Iterable[Mapping[str, Any]],
    columns: Sequence[str],
    key: Sequence[str],
    instead: Mapping[str, Any] | None = None,
) -> None:
    """Add the lines whose `key` columns the file does not hold yet, whole or not at all as other processes see it.

    Args:
        instead: lines with these values go first; the new ones stand for them.
    """
    frame = pd.DataFrame(list(rows), columns=list(columns))
    if frame.empty:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(path):
        present = read(path, columns)
        before = _widened(path.read_bytes(), columns) if path.is_file() else b""
        if instead:
            stale = (present[list(instead)] == pd.Series(instead)).all(axis=1).to_numpy()
            kept = [line for line, out in zip(before.splitlines(keepends=True)[1:], stale, strict=True) if not out]
            before, present = b"".join([*before.splitlines(keepends=True)[:1], *kept]), present[~stale]
        known = set(present[list(key)].astype(str).itertuples(index=False, name=None))
        fresh = [k not in known for k in frame[list(key)].astype(str).itertuples(index=False, name=None)]
        text = frame[fresh].to_csv(index=False, header=not before, lineterminator="\n").encode()
        replace(path, before + text)


def _widened(content: bytes, columns: Sequence[str]) -> bytes:
    """A file's lines with empty values in the columns that came later."""
    header, *lines = content.splitlines()
    missing = len(columns) - len(header.split(b","))
    if not missing:
        return content
    return b"\n".join([",".join(columns).encode(), *(line + b"," * missing for line in lines), b""])


def file_lock(path: Path) -> FileLock:
    """A lock beside a result file (hidden, not kept in git), so that it holds for all who share the folder."""
    return FileLock(path.with_name(f".{path.name}.lock"))


def replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
