"""A run's folder: all measurements of one model with one decoding. Several tables may use the same run.

`results/<model>/runs/<run>/` holds `facts.csv` (one line a value), `scores.csv` (one line a prompt), `curve.csv`,
`samples.jsonl` (a few responses) and `run.json` (what ran). Each file is written whole or not at all, under the run's
lock. Facts and scores that are in the files already are never replaced.
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

FACT_COLUMNS = ["dataset", "data", "metric", "seed", "value", "n", "commit"]
CURVE_COLUMNS = ["stage", "train_seed", "step", "epoch"]  # further columns are losses and metrics
FACT_KEY = ["dataset", "data", "metric", "seed"]
SCORE_KEY = ["dataset", "data", "id", "topic", "seeds"]  # the other columns of scores.csv are metrics
LONG_COLUMNS = ["table", "row", "column", "dataset", "metric", "seed", "value", "n", "preset", "run", "train_seed",
                "shared_seed", "decode", "engine", "commit"]  # fmt: skip
RUN_COLUMNS = ("preset", "train_seed", "shared_seed", "decode", "engine")  # of LONG_COLUMNS, those read from run.json
UNITED_KEYS = ("data", "stages", "evaluations", "artifacts", "hub")  # of run.json: later measurements add entries
SUMMED_KEYS = ("wall_seconds",)  # of run.json: later measurements add their value


@dataclass(frozen=True)
class Fact:
    """One measured value.

    Attributes:
        dataset: the data set's name; `training`, `validation` or `benchmarks` for a value that is not about a set.
        data: the hash of the set's content; "" for a value that is not about a set.
        metric: the metric's name.
        value: the value with all its digits.
        n: the number of responses, positions or rows that the value is over.
        commit: the commit of the code that made the artifact.
        seed: the generation seed; None for a value that does not depend on one.
    """

    dataset: str
    data: str
    metric: str
    value: float
    n: int
    commit: str
    seed: int | None = None

    def line(self) -> dict[str, str]:
        """The fact as a line of `facts.csv`."""
        seed = "" if self.seed is None else str(self.seed)
        return {k: str(v) for k, v in asdict(self).items()} | {"value": repr(self.value), "seed": seed}


@dataclass(frozen=True)
class Measured:
    """Measurements that are added to a run's folder in one step.

    Attributes:
        facts: values; ignored where the run has one of the same set, metric and seed.
        renewed: values that take the place of those of an earlier version.
        description: new entries of `run.json`; see `merged`.
        scores: scores by prompt, with the columns `SCORE_KEY` and one column for each metric.
        curve: training and validation curves of the stages behind the run; ignored if the run has its curves.
        samples: prompts with references and responses; ignored for a data set whose samples the run has.
    """

    facts: Sequence[Fact]
    description: Mapping[str, Any]
    scores: pd.DataFrame = field(default_factory=pd.DataFrame)
    curve: pd.DataFrame | None = None
    samples: Sequence[Mapping[str, Any]] = ()
    renewed: Sequence[Fact] = ()


class RunFolder:
    """The folder of one run.

    Args:
        results: the results folder.
        model: the pair's name.
        run: the run's name.
    """

    def __init__(self, results: str | Path, model: str, run: str):
        self.model, self.run = model, run
        self.folder = Path(results) / model / RUNS / run

    def facts(self) -> pd.DataFrame:
        """The run's facts, all columns as text; without rows if nothing was measured.

        Raises:
            UserError: the file is damaged.
        """
        path = self.folder / "facts.csv"
        frame = read_frame(path, FACT_COLUMNS)
        _as_numbers(path, frame, ["value", "n"])
        return frame

    def scores(self) -> pd.DataFrame:
        """The run's scores by prompt: the columns of `SCORE_KEY` as text, those of metrics as numbers.

        Raises:
            UserError: the file is damaged.
        """
        path = self.folder / "scores.csv"
        frame = read_frame(path, SCORE_KEY)
        return _as_numbers(path, frame, [c for c in frame.columns if c not in SCORE_KEY])

    def curve(self) -> pd.DataFrame:
        """Training and validation curves of the stages behind the run; without rows if the run has none.

        Raises:
            UserError: the file is damaged.
        """
        path = self.folder / "curve.csv"
        frame = read_frame(path, CURVE_COLUMNS)
        return _as_numbers(path, frame, [c for c in frame.columns if c != "stage"])

    def description(self) -> dict[str, Any]:
        """The content of `run.json`; empty if nothing was measured.

        Raises:
            UserError: the file is damaged.
        """
        path = self.folder / "run.json"
        if not path.is_file():
            return {}
        content = _json(path, _text(path))
        if not isinstance(content, dict) or content.get("run") != self.run:
            raise _damaged(path, f"it does not describe the run {self.run}")
        return content

    def samples(self) -> list[dict[str, Any]]:
        """The prompts of `samples.jsonl` with references and responses.

        Raises:
            UserError: the file is damaged.
        """
        path = self.folder / "samples.jsonl"
        samples = [_json(path, line) for line in _text(path).splitlines()] if path.is_file() else []
        if any(not isinstance(sample, dict) or "dataset" not in sample for sample in samples):
            raise _damaged(path, "a line has no data set")
        return samples

    def add(self, measured: Measured) -> None:
        """Add measurements to the run's files. Facts and scores that are there already are not replaced, but `renewed`.

        Raises:
            UserError: a file is damaged; then none is written.
        """
        with lock_beside(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            facts, scores, samples, content = self.facts(), self.scores(), self.samples(), self.description()
            renewed, new = (
                pd.DataFrame([fact.line() for fact in values], columns=FACT_COLUMNS)[facts.columns]
                for values in (measured.renewed, measured.facts)
            )
            earlier = pd.MultiIndex.from_frame(facts[FACT_KEY]).isin(pd.MultiIndex.from_frame(renewed[FACT_KEY]))
            all_facts = pd.concat([facts[~earlier], new, renewed], ignore_index=True).drop_duplicates(FACT_KEY)
            # First, since it names the artifacts that are needed: a run that is stopped here keeps them
            content = merged(content, measured.description)
            write_whole(self.folder / "run.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
            if len(all_facts) > len(facts) or len(renewed):
                self._write("facts.csv", all_facts)
            if not measured.scores.empty:
                self._write("scores.csv", with_scores(scores, measured.scores))
            if measured.curve is not None and not (self.folder / "curve.csv").is_file():
                self._write("curve.csv", measured.curve)
            present = {sample["dataset"] for sample in samples}
            if new_samples := [sample for sample in measured.samples if sample["dataset"] not in present]:
                lines = [json.dumps(sample, ensure_ascii=False) for sample in [*samples, *new_samples]]
                write_whole(self.folder / "samples.jsonl", "\n".join(lines) + "\n")

    def _write(self, name: str, frame: pd.DataFrame) -> None:
        write_whole(self.folder / name, frame.to_csv(index=False, lineterminator="\n"))


def read_frame(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A CSV file with all values as text, or an empty frame of these columns if the file does not exist.

    Raises:
        UserError: the file is damaged or lacks one of the columns.
    """
    if not path.is_file():
        return pd.DataFrame(columns=list(columns), dtype=str)
    try:
        frame = pd.read_csv(io.StringIO(_text(path)), dtype=str, keep_default_na=False)
    except ValueError as error:  # pandas' ParserError and EmptyDataError are ValueErrors
        raise _damaged(path, f"it is not a table ({error})") from None
    if missing := [c for c in columns if c not in frame.columns]:
        raise _damaged(path, f"the columns {', '.join(missing)} are missing")
    return frame


def _as_numbers(path: Path, frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """A frame of text with these columns as numbers; an empty text is no number (NaN).

    Raises:
        UserError: a text is not a number.
    """
    try:
        numbers = {name: frame[name].replace("", "nan").astype(float) for name in columns}
    except ValueError as error:
        raise _damaged(path, f"a value is not a number ({error})") from None
    return frame.assign(**numbers)


def _text(path: Path) -> str:
    """The text of a result file. All of them end with a line feed, so that one that was cut is noticed.

    Raises:
        UserError: the file is not text, or it was cut.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _damaged(path, f"it is not text ({error})") from None
    if not text.endswith("\n"):
        raise _damaged(path, "its end is missing" if text else "it is empty")
    return text


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise _damaged(path, f"it is not JSON ({error})") from None


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is damaged: {reason}; restore it from git, or remove {path.parent} to measure again")


def with_scores(present: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Scores by prompt with new prompts as rows and new metrics as columns; scores that are present stay."""
    if present.empty:
        return new
    left, right = (frame.set_index(SCORE_KEY) for frame in (present, new))
    columns = [*left.columns, *(c for c in right.columns if c not in left.columns)]
    index = left.index.append(right.index.difference(left.index, sort=False))
    scores = left.reindex(index=index, columns=columns).combine_first(right).reindex(index=index, columns=columns)
    return scores.reset_index()


def merged(present: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """A run's description with the entries that a later measurement adds; entries that are there already stay.

    Mappings and lists under `UNITED_KEYS` are united, and numbers under `SUMMED_KEYS` are added.
    """
    result = dict(present)
    for key, value in new.items():
        old = result.get(key)
        if key not in result:
            result[key] = value
        elif isinstance(old, dict) and isinstance(value, Mapping) and key in UNITED_KEYS:
            result[key] = {**value, **old}
            result[key] = {k: result[key][k] for k in dict.fromkeys([*old, *value])}
        elif isinstance(old, list) and isinstance(value, Sequence) and key in UNITED_KEYS:
            result[key] = old + [entry for entry in value if entry not in old]
        elif key in SUMMED_KEYS:
            result[key] = round(old + value, 1)
    return result


def run_folders(results: str | Path, model: str) -> Iterator[RunFolder]:
    """The folders of all runs of a pair, sorted by name."""
    for path in sorted((Path(results) / model / RUNS).glob("*/run.json")):
        yield RunFolder(results, model, path.parent.name)


def long_lines(folder: RunFolder, table: str, row: str, titles: Mapping[str, str]) -> pd.DataFrame:
    """A run's facts as lines of a long file: the column `data` and `LONG_COLUMNS`.

    Args:
        folder: the run.
        table: the value of the column `table`.
        row: the row's label.
        titles: the data sets' titles by name; a set without a title is shown by its name.
    """
    facts, description = folder.facts(), folder.description()
    lines = facts.assign(table=table, row=row, run=folder.run)
    lines["column"] = [titles.get(name, name) for name in facts["dataset"]]
    for name in RUN_COLUMNS:
        lines[name] = str(description.get(name, ""))
    return lines[["data", *LONG_COLUMNS]]


def write_runs_file(results: str | Path, model: str) -> Path:
    """Write `runs/long.csv` with the facts of all runs of a pair, and return its path."""
    path = Path(results) / model / RUNS / "long.csv"
    with lock_beside(path):
        folders = list(run_folders(results, model))
        descriptions = {folder.run: folder.description() for folder in folders}
        run_labels, train_seeds = (
            {run: description[key] for run, description in descriptions.items()} for key in ("label", "train_seed")
        )
        labels = unique_labels(run_labels, train_seeds)
        frames = []
        for folder in folders:
            data_sets = descriptions[folder.run]["data"]
            titles = {name: data.get("title", name) for name, data in data_sets.items()}
            frames.append(long_lines(folder, RUNS, labels[folder.run], titles))
        lines = pd.concat(frames, ignore_index=True)[LONG_COLUMNS] if frames else pd.DataFrame(columns=LONG_COLUMNS)
        write_whole(path, lines.to_csv(index=False, lineterminator="\n"))
    return path


def unique_labels(labels: Mapping[str, str], train_seeds: Mapping[str, Any]) -> dict[str, str]:
    """Row labels by run, unique within a training seed.

    Two runs with the same label and training seed differ in a setting that the label does not show. Wherever such a
    label occurs, the run's name is appended to it.

    Args:
        labels: each run's label, by run name.
        train_seeds: each run's training seed, by run name.
    """
    runs_by_label: dict[tuple[str, Any], list[str]] = {}
    for run, label in labels.items():
        runs_by_label.setdefault((label, train_seeds[run]), []).append(run)
    shared = {label for (label, _), runs in runs_by_label.items() if len(runs) > 1}
    return {run: f"{label} [{run}]" if label in shared else label for run, label in labels.items()}
