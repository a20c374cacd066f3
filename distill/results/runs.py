"""A run's folder: what was measured of one model under one decoding, whichever tables it serves.

`results/<model>/runs/<run>/` holds `facts.csv` (one line a value), `scores.csv` (one line a prompt), `curve.csv`,
`samples.jsonl` (a few texts) and `run.json` (what ran). Each is written whole or not at all, under the run's lock, and
what is there already stays: a fact is measured once.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from distill.base.errors import UserError
from distill.base.files import lock_beside, write_whole
from distill.results.folders import RUNS

FACTS = ["dataset", "data", "metric", "seed", "value", "n", "commit"]
FACT_KEY = ["dataset", "data", "metric", "seed"]
SCORE_KEY = ["dataset", "data", "id", "topic", "seeds"]  # further columns are metrics
LONG = ["table", "row", "column", "dataset", "metric", "seed", "value", "n", "preset", "run", "train_seed",
        "shared_seed", "decode", "engine", "commit"]  # fmt: skip
DESCRIBED = ("preset", "train_seed", "shared_seed", "decode", "engine")  # columns of a line that run.json tells


@dataclass(frozen=True)
class Fact:
    """One measured value.

    Attributes:
        dataset: the data set's name; `training`, `validation` or `benchmarks` for what is about none.
        data: hash of the set's content, "" for what is about none.
        value: as it was computed; files keep all its digits.
        n: how many responses, positions or rows it is over.
        commit: of the code that made what it is read from.
        seed: the generation seed, None for what has none.
    """

    dataset: str
    data: str
    metric: str
    value: float
    n: int
    commit: str
    seed: int | None = None

    def line(self) -> dict[str, str]:
        """As a line of `facts.csv`."""
        seed = "" if self.seed is None else str(self.seed)
        return {k: str(v) for k, v in asdict(self).items()} | {"value": repr(self.value), "seed": seed}


@dataclass(frozen=True)
class Measured:
    """What is added to a run at once.

    Attributes:
        facts: values.
        description: what `run.json` tells; merged with what is there (`merged`).
        scores: per-prompt scores, columns `SCORE_KEY` and one for each metric.
        curve: training and validation curves of the stages behind the run; written once.
        samples: prompts with references and texts, by `dataset` and `id`.
    """

    facts: Sequence[Fact]
    description: Mapping[str, Any]
    scores: pd.DataFrame = field(default_factory=pd.DataFrame)
    curve: pd.DataFrame | None = None
    samples: Sequence[Mapping[str, Any]] = ()


class RunFolder:
    """The folder of one run."""

    def __init__(self, results: str | Path, model: str, run: str):
        self.model, self.run = model, run
        self.folder = Path(results) / model / RUNS / run

    def facts(self) -> pd.DataFrame:
        """Its facts, all columns as text; none where nothing was measured."""
        return read_frame(self.folder / "facts.csv", FACTS)

    def scores(self) -> pd.DataFrame:
        """Its scores by prompt: the columns of `SCORE_KEY` as text, those of metrics as numbers."""
        frame = read_frame(self.folder / "scores.csv", SCORE_KEY)
        metrics = [c for c in frame.columns if c not in SCORE_KEY]
        return frame.astype(dict.fromkeys(metrics, float)) if len(frame) else frame

    def curve(self) -> pd.DataFrame:
        """Its curves."""
        path = self.folder / "curve.csv"
        return pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=["stage", "step"])

    def description(self) -> dict[str, Any]:
        """What ran; empty where nothing was measured.

        Raises:
            UserError: the file is damaged.
        """
        path = self.folder / "run.json"
        if not path.is_file():
            return {}
        try:
            described: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path}: not JSON ({error}); restore it from git, or remove the folder") from None
        return described

    def add(self, measured: Measured) -> None:
        """Add what was measured; facts and scores that are there already stay as they are."""
        with lock_beside(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._add_lines("facts.csv", pd.DataFrame([f.line() for f in measured.facts], columns=FACTS), FACT_KEY)
            self._add_scores(measured.scores)
            if measured.curve is not None and not (self.folder / "curve.csv").is_file():
                self._write("curve.csv", measured.curve)
            self._add_samples(measured.samples)
            described = merged(self.description(), measured.description)
            write_whole(self.folder / "run.json", json.dumps(described, indent=1, ensure_ascii=False) + "\n")

    def _add_lines(self, name: str, new: pd.DataFrame, key: list[str]) -> None:
        present = read_frame(self.folder / name, list(new.columns))
        both = pd.concat([present, new[present.columns]], ignore_index=True)
        both = both.drop_duplicates(key)
        if len(both) > len(present):
            self._write(name, both)

    def _add_scores(self, new: pd.DataFrame) -> None:
        """Merge scores by prompt: new prompts are added, and metrics that came later fill their columns."""
        if new.empty:
            return
        present = self.scores()
        if present.empty:
            self._write("scores.csv", new)
            return
        left, right = (frame.set_index(SCORE_KEY) for frame in (present, new))
        columns = [*left.columns, *(c for c in right.columns if c not in left.columns)]
        index = left.index.append(right.index.difference(left.index, sort=False))
        both = left.reindex(index=index, columns=columns).combine_first(right).reindex(index=index, columns=columns)
        self._write("scores.csv", both.reset_index())

    def _add_samples(self, samples: Sequence[Mapping[str, Any]]) -> None:
        path = self.folder / "samples.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        present = {json.loads(line)["dataset"] for line in lines}
        lines += [json.dumps(sample, ensure_ascii=False) for sample in samples if sample["dataset"] not in present]
        if lines:
            write_whole(path, "\n".join(lines) + "\n")

    def _write(self, name: str, frame: pd.DataFrame) -> None:
        write_whole(self.folder / name, frame.to_csv(index=False, lineterminator="\n"))


def read_frame(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A CSV file with all values as text, or an empty frame of these columns where there is no file.

    Raises:
        UserError: the file is damaged or lacks one of the columns.
    """
    if not path.is_file():
        return pd.DataFrame(columns=list(columns), dtype=str)
    try:
        frame = pd.read_csv(io.BytesIO(path.read_bytes()), dtype=str, keep_default_na=False)
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(f"{path}: not a table ({error}); restore it from git, or remove it") from None
    if missing := [c for c in columns if c not in frame.columns]:
        raise UserError(f"{path}: lacks the columns {', '.join(missing)}; restore it from git, or remove it")
    return frame


def merged(present: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """A run's description with what another measurement adds: mappings and lists are united, what is there stays."""
    result = dict(present)
    for key, value in new.items():
        old = result.get(key)
        if key not in result:
            result[key] = value
        elif isinstance(old, dict) and isinstance(value, Mapping) and key in UNITED:
            result[key] = {**value, **old}
            result[key] = {k: result[key][k] for k in dict.fromkeys([*old, *value])}
        elif isinstance(old, list) and isinstance(value, Sequence) and key in UNITED:
            result[key] = old + [one for one in value if one not in old]
        elif key in SUMMED:
            result[key] = round(old + value, 1)
    return result


UNITED = ("data", "stages", "evaluations", "artifacts", "hub")  # of run.json, what each measurement adds to
SUMMED = ("wall_seconds",)


def run_folders(results: str | Path, model: str) -> Iterator[RunFolder]:
    """The runs that are kept of a pair, by name."""
    for path in sorted((Path(results) / model / RUNS).glob("*/run.json")):
        yield RunFolder(results, model, path.parent.name)


def lines_of(folder: RunFolder, table: str, row: str, titles: Mapping[str, str]) -> pd.DataFrame:
    """A run's facts as lines of a long file.

    Args:
        titles: a data set's title by its name; others are called by their name.
    """
    facts, described = folder.facts(), folder.description()
    lines = facts.assign(table=table, row=row, run=folder.run)
    lines["column"] = [titles.get(name, name) for name in facts["dataset"]]
    for name in DESCRIBED:
        lines[name] = str(described.get(name, ""))
    return lines[["data", *LONG]]


def write_runs_file(results: str | Path, model: str) -> Path:
    """Write `runs/long.csv` anew over all runs of a pair; rows that share a label are told apart by their run."""
    path = Path(results) / model / RUNS / "long.csv"
    with lock_beside(path):
        folders = list(run_folders(results, model))
        described = {folder.run: folder.description() for folder in folders}
        labels = unlike_labels({run: told["label"] for run, told in described.items()},
                               {run: told["train_seed"] for run, told in described.items()})  # fmt: skip
        frames = []
        for folder in folders:
            titles = {name: one.get("title", name) for name, one in described[folder.run]["data"].items()}
            frames.append(lines_of(folder, RUNS, labels[folder.run], titles))
        lines = pd.concat(frames, ignore_index=True)[LONG] if frames else pd.DataFrame(columns=LONG)
        write_whole(path, lines.to_csv(index=False, lineterminator="\n"))
    return path


def unlike_labels(labels: Mapping[str, str], train_seeds: Mapping[str, Any]) -> dict[str, str]:
    """Labels by run; runs of one training seed that share a label (a sweep over what it does not show) get their run's
    name behind it."""
    runs_by_label: dict[tuple[str, Any], list[str]] = {}
    for run, label in labels.items():
        runs_by_label.setdefault((label, train_seeds[run]), []).append(run)
    shared = {label for (label, _), runs in runs_by_label.items() if len(runs) > 1}
    return {run: f"{label} [{run}]" if label in shared else label for run, label in labels.items()}
