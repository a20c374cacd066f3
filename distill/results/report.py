"""The files of a table: CSV in the paper's shape, markdown beside the paper's numbers, manifest; and the terminal's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.markup import escape
from rich.table import Table as RichTable

from distill.base.console import console
from distill.config.schema import Config
from distill.pipeline.values import OF_TOPIC
from distill.results import long
from distill.results.experiment import CONTEXT, Experiment, Printed, printed
from distill.results.long import BENCHMARKS, COSTS, TRAINING
from distill.results.shape import Cell, Column, Comparison, cell, compare, printed_p, table

# Columns of a section that not every metric has
OPTIONAL = ("paper", "difference", "against", "p", "p from printed", "tokens", "ended %")


@dataclass(frozen=True)
class Measured:
    """A row's label, its lines of the long file (all training seeds) and the runs they come from."""

    label: str
    lines: pd.DataFrame
    runs: list[str]


def columns_of(experiment: Experiment) -> list[Column]:
    """The experiment's columns."""
    return [Column(title, c.dataset, c.metric) for title, c in experiment.columns.items()]


def frame(rows: list[Measured], experiment: Experiment) -> pd.DataFrame:
    """The table in the paper's shape; `group` sets the context rows apart."""
    shaped = table([(r.label, r.lines) for r in rows], columns_of(experiment))
    shaped.insert(1, "group", ["context" if r.label in CONTEXT else "paper" for r in rows])
    return shaped


def show(shaped: pd.DataFrame, title: str) -> None:
    """Print a table on the terminal."""
    rich = RichTable(title=escape(title), title_justify="left")
    names = [c for c in shaped.columns if c != "group"]
    for name in names:
        rich.add_column(name, justify="left" if name == "row" else "right", no_wrap=name == "row")
    lines = shaped.to_dict("records")
    for i, line in enumerate(lines):
        ends = i + 1 < len(lines) and line.get("group") != lines[i + 1].get("group")
        rich.add_row(*(escape(str(line[n])) or "-" for n in names), end_section=ends)
    console.print(rich)


def scale(config: Config, experiment: Experiment, told: dict[str, Any], written: Sequence[str] = ()) -> list[str]:
    """What ran, in plain words, and that it is not the paper's scale where it is not.

    Args:
        written: how the rows' texts were written (`decoding`).
    """
    sizes = {}
    for name, stage in told.get("stages", {}).items():
        if name.startswith("base/") and "parameters" in stage:
            sizes["teacher" if "-teacher-" in name else "student"] = f"{stage['parameters'] / 1e6:.2f}M"
    model, train, data = config.model, config.train, told.get("data", {})
    parameters = f" ({sizes.get('teacher', '?')} -> {sizes.get('student', '?')} parameters)" if sizes else ""
    teacher, student = model.teacher.path, model.student.path
    trained = f"teacher {'supplied (' + teacher + ')' if teacher else _epochs(train.teacher.epochs)}, student"
    trained += f" {_epochs(train.student.epochs)}" + (f" from {student}" if student else "")
    cuts = [f"{name} {d['note']}" for name, d in data.items() if d.get("note")]
    lines = [
        f"Pair `{model.name}`{parameters}, weights from {model.source}, data `{config.data.name}`:"
        f" {data.get('train', {}).get('rows', '?')} training and {data.get('valid', {}).get('rows', '?')} validation"
        f" rows, {trained}, {train.precision}, preset {config.preset.name}.",
        *written,
    ]
    if cuts:
        lines.append(f"Cut: {', '.join(cuts)} rows.")
    if other := [f"{name} {d['counted']} ({d['papers']})" for name, d in data.items() if d.get("counted")]:
        lines.append(f"Other numbers of rows than the papers' (in brackets): {', '.join(other)}.")
    present = [*config.data.eval, TRAINING, BENCHMARKS]
    absent = [title for title, column in experiment.columns.items() if column.dataset not in present]
    if absent:
        lines.append(f"Empty columns: data `{config.data.name}` has no {' and no '.join(absent)}.")
    if model.name != experiment.model:
        lines.append(
            f"This is not the paper's scale (its pair is `{experiment.model}`): the rows compare with each other, not"
            " with the paper's numbers."
        )
    if config.debug.smoke:
        lines.append("debug=smoke: random weights and generated data; the numbers mean nothing.")
    return lines


def decoding(rows: Sequence[Measured]) -> list[str]:
    """How the rows' texts were written, as the long file says; row by row where that differs."""
    found: dict[str, dict[str, None]] = {}  # labels by decoding, in order
    for row in rows:
        for how, engine in row.lines[["decode", "engine"]].drop_duplicates().itertuples(index=False, name=None):
            found.setdefault(f"{how}, by {engine}", {})[row.label] = None
    if len(found) < 2:
        return [f"Texts: {how}." for how in found]
    return [f"Texts: {' | '.join(f'{how}: ' + ', '.join(labels) for how, labels in found.items())}."]


def partly(rows: Sequence[Measured], seeds: Sequence[int], train_seeds: Sequence[int]) -> list[str]:
    """Rows that were measured over fewer seeds than the table says."""
    lines = []
    for row in rows:
        for name, asked in (("seed", seeds), ("train_seed", train_seeds if row.label != "Teacher" else ())):
            has = sorted({int(s) for s in row.lines[name]})
            if set(asked) - set(has):
                kind = "generation" if name == "seed" else "training"
                lines.append(f"{row.label} is over {kind} seed{'s' * (len(has) > 1)} {', '.join(map(str, has))} only.")
    return lines


def apart(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which rows of a manifest were made over different copies of one stage, such as a teacher trained again.

    A stage's name holds the hash of all that determines it, but not the rounding of the machine that made it.
    """
    copies: dict[str, dict[str, dict[str, None]]] = {}  # labels of each copy of each stage, in order
    for row in rows:
        for name, stage in row.get("stages", {}).items():
            copy = str(stage.get("weights") or (stage.get("seconds"), stage.get("commit")))
            copies.setdefault(name, {}).setdefault(copy, {})[row["label"]] = None
    return [
        f"Made over different copies of {name}, so not to be compared: {' | '.join(map(', '.join, several.values()))}."
        for name, several in copies.items()
        if len(several) > 1
    ]


def machines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """On what and by which commit the rows of a manifest were trained themselves; a cost is said of both."""
    found: dict[str, dict[str, None]] = {}  # labels by machine and commit, in order
    for row in rows:
        for name, stage in row.get("stages", {}).items():
            if name.startswith("train/") and f"-{row['role']}-" in name:
                found.setdefault(f"{_machine(stage['hardware'])} at {stage['commit']}", {})[row["label"]] = None
    if len(found) < 2:
        return [f"Trained on {how}." for how in found]
    several = " | ".join(f"{', '.join(labels)} on {how}" for how, labels in found.items())
    return [f"Trained on unlike machines or by unlike commits, so costs compare within one only: {several}."]


def _machine(hardware: Mapping[str, Any]) -> str:
    """A manifest's hardware in words."""
    if accelerators := hardware["accelerators"]:
        return " + ".join(f"{accelerators.count(one)} x {one}" for one in dict.fromkeys(accelerators))
    threads = hardware.get("threads", "not noted")  # by earlier versions
    return f"{hardware['processor']} ({hardware['cores']} cores, torch's threads: {threads})"


def _epochs(count: int) -> str:
    return f"{count} epoch" + ("s" if count > 1 else "")


def varied(train_seeds: list[int], seeds: list[int]) -> str:
    """Which seed varied behind a spread; without generation seeds nothing was written."""
    if not seeds:
        several = "s" if len(train_seeds) > 1 else ""
        return f"Training seed{several} {', '.join(map(str, train_seeds))}; one teacher, one student start."
    generation = f"generation seeds {', '.join(map(str, seeds))}"
    trained = ", ".join(map(str, train_seeds))
    if len(train_seeds) == 1:
        over = f"{generation}; one training (seed {trained})"
    else:
        over = f"student training seeds {trained}, each the mean over {generation} (of a row with one training, such as"
        over += " the Teacher, over generation seeds)"
    return f"Mean (sample standard deviation) over {over}; one teacher, one student start."


def markdown(
    rows: list[Measured], experiment: Experiment, model: str, scores: pd.DataFrame, header: list[str], spread: str
) -> str:
    """Measured beside paper beside difference, column by column, with a paired test against one row.

    Args:
        scores: lines of the long file of scores, with each prompt's `topic`.
    """
    paper, differing = printed(experiment, model)
    by_label = {r.label: r for r in rows}
    against = by_label.get(experiment.against)
    text = [f"# {experiment.title}", "", *header, "", spread, ""]
    text += [plain(frame(rows, experiment)), ""]
    tested_any = any_printed = False
    for column in columns_of(experiment):
        if all(cell(r.lines, column) is None for r in rows):
            continue
        lines, (metric, _, topic) = [], column.metric.partition(OF_TOPIC)
        which = {"rouge_l": "topic", "bertscore": "encoder"}.get(metric) if topic else None
        tested = scores[scores[which] == topic] if which else scores
        for row in rows:
            value = cell(row.lines, column)
            number = paper.get((row.label, column.title))
            test = None
            if metric in ("rouge_l", "bertscore") and against is not None and row is not against:
                test = compare(tested, row.runs, against.runs, column.dataset, metric)
                tested_any = tested_any or test is not None
            theirs = paper.get((experiment.against, column.title))
            line = _line(row, column, value, number, theirs, test)
            if metric in COSTS and against is not None:
                line |= _ratios(value, cell(against.lines, column), number, theirs)
            lines.append(line)
        section = pd.DataFrame(lines)
        any_printed = any_printed or bool(section["p from printed"].any())
        section = section.fillna("").drop(columns=[c for c in OPTIONAL if c in section and not section[c].any()])
        other = experiment.against
        names = {"against": f"against {other} (95 %)", "over": f"over {other}", "paper's over": f"paper's over {other}"}
        section = section.rename(columns=names)
        text += [f"## {column.title}", "", *([f"{COSTS[metric]}.", ""] if metric in COSTS else []), plain(section), ""]
    text += _printed_tests(experiment, model, paper)
    if any_printed:
        text += [
            f"p from printed: two-sided pooled t-test against {experiment.against} from the means and standard"
            " deviations that the paper prints, taken as over five generation seeds. It is not the p that a paper"
            " prints, which may be of a one-sided test.",
            "",
        ]
    if tested_any:
        text.append(
            f"Tests against {experiment.against} are paired over prompts, of each prompt's mean over seeds: bootstrap"
            " interval, and two-sided p of the permutation test; they tell whether these trained models differ on such"
            " prompts, not whether another training would."
        )
    if differing:
        text += ["", "The documents disagree with each other:", "", *(f"- {d}" for d in differing)]
    return "\n".join(text) + "\n"


def _line(
    row: Measured,
    column: Column,
    value: Cell | None,
    number: Printed | None,
    against: Printed | None,
    test: Comparison | None,
) -> dict[str, str]:
    difference = f"{value.mean - float(number.mean):+.2f}" if value and number else ""
    p = ""
    if number and against and number is not against and all(float(one.std or 0) for one in (number, against)):
        p = f"{printed_p(number.numbers, against.numbers):.2g}"
    whole = column.metric == "rouge_l"
    length, ended = (cell(row.lines, Column("", column.dataset, m)) if whole else None for m in ("length", "eos_rate"))
    return {
        "row": row.label,
        "measured": str(value or ""),
        "paper": str(number or ""),
        "difference": difference,
        "against": f"{test.difference:+.2f} [{test.low:+.2f}, {test.high:+.2f}]" if test else "",
        "p": test.p_text if test else "",
        "p from printed": p,
        "tokens": f"{length.mean:.1f}" if length else "",
        "ended %": f"{ended.mean:.1f}" if ended else "",
    }


def _printed_tests(experiment: Experiment, model: str, paper: dict[tuple[str, str], Printed]) -> list[str]:
    """The p-values that a paper prints beside those that its printed means and standard deviations give."""
    own, lines = list(experiment.rows)[-1], []
    for title, column in experiment.columns.items():
        p = column.p.get(model) or column.p.get(experiment.model)
        ours, theirs = paper.get((own, title)), paper.get((experiment.against, title))
        if p and ours and theirs:
            one, two = (printed_p(ours.numbers, theirs.numbers, alternative=a) for a in ("greater", "two-sided"))
            numbers = {"paper's p": f"{p:.2g}", "one-sided": f"{one:.2g}", "two-sided": f"{two:.2g}"}
            lines.append({"column": title, own: str(ours), experiment.against: str(theirs), **numbers})
    if not lines:
        return []
    return [
        "## The paper's own p-values",
        "",
        f"Of {own} over {experiment.against}, beside those of a pooled t-test on the means and standard deviations that"
        " it prints, taken as over five generation seeds.",
        "",
        plain(pd.DataFrame(lines)),
        "",
    ]


def _ratios(value: Cell | None, base: Cell | None, number: Printed | None, theirs: Printed | None) -> dict[str, str]:
    """What a row costs over another: machines differ, and ratios less."""
    return {
        "difference": "",
        "over": f"{value.mean / base.mean:.2f}" if value and base else "",
        "paper's over": f"{float(number.mean) / float(theirs.mean):.2f}" if number and theirs else "",
    }


def plain(data: pd.DataFrame) -> str:
    """A markdown table."""
    names = [c for c in data.columns if c != "group"]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(x) for x in line) + " |" for line in data[names].itertuples(index=False)]
    return "\n".join(lines)


def update_manifest(
    path: Path, table_name: str, told: dict[str, dict[str, Any]], root: Path, notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Add rows (by run) and notes to the manifest; paths in it are relative to `root`, and outside it only names."""
    manifest: dict[str, Any] = {"table": table_name, "rows": {}}
    if path.is_file():
        manifest = json.loads(path.read_text(encoding="utf-8"))
    for run, row in told.items():
        config = row["config"]
        config["paths"] = {key: _relative(value, root) for key, value in config["paths"].items()}
        config["data"]["root"] = _relative(config["data"]["root"], root) if config["data"]["root"] else None
        manifest["rows"][run] = row
    if notes:
        manifest["notes"] = list(dict.fromkeys([*manifest.get("notes", []), *notes]))
    path.parent.mkdir(parents=True, exist_ok=True)
    long.replace(path, (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())
    return manifest


def _relative(value: str, root: Path) -> str:
    place = Path(value)
    if not place.is_absolute():
        return value
    return str(place.relative_to(root)) if place.is_relative_to(root) else place.name
