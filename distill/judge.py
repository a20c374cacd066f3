"""`python -m distill.judge PAPER/TABLE [overrides] eval.judge.model=NAME`: a judge model's opinion of a table's texts.

Reads the responses that `distill.table` kept, over the OpenAI-compatible interface at OPENAI_BASE_URL with the key
OPENAI_API_KEY. Beside the table's own words it takes:
  what=[diversity,quality,criteria,preference]
                what is judged (all four): diversity of a prompt's answers and quality of each, 1 to 10; MGSR's
                accuracy, completeness, fluency and relevance, 1 to 5; win, tie or loss of a row against the others
  of=ROW        the row that preference is about (the table's last, the paper's own)
  set=NAME      the set (the table's first)
  topics=[open_qa,closed_qa]   topics of the set (all)
  limit=N       its first N prompts (all)
  cost=true     tell the cost and stop
Criteria and preference of quality are of the first generation seed's answers, all of the first training seed's.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.base.errors import UserError, command
from distill.pipeline.request import option, requested
from distill.pipeline.tables import Table

WHAT = ("diversity", "quality", "criteria", "preference")
JUDGED = ["row", "run", "against", "against_run", "dataset", "id", "what", "seed", "seeds", "value", "judge"]


@dataclass
class Wish:
    """Questions whose answers make one value of one line; a value that needs several answers combines them."""

    line: dict[str, Any]
    questions: list[Any]
    combine: Callable[[list[Any]], float | None] = field(default=lambda answers: answers[0])


def main(words: list[str]) -> int:
    """Judge one table's texts; see the module."""
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if words else 2
    chosen: dict[str, list[Any] | None] = {}
    for name in ("what", "of", "set", "topics", "limit", "cost"):
        chosen[name], words = option(words, name)
    for name, kind in (("limit", int), ("cost", bool)):
        given = chosen[name]
        if given is not None and [type(x) for x in given] != [kind]:
            raise UserError(f"{name}={given[0]}: give {'a number' if kind is int else 'true or false'}")
    table, labels = requested(words)
    wishes = list(_wishes(table, labels, chosen, " ".join(map(shlex.quote, words))))
    from distill.base.console import bar, say
    from distill.judging.judge import Judge

    judge = Judge(table.config.eval.judge, Path(table.config.paths.store) / "judge")
    questions = [q for wish in wishes for q in wish.questions]
    say(f"judge {judge.model} at {judge.address}: {judge.cost(questions).describe()}")
    if chosen["cost"] == [True]:
        return 0
    with bar(len(set(questions)), "judging", "question") as shown:
        answers = iter(judge.ask(questions, shown.update))
    if judge.refused:
        say(f"{len(judge.refused)} questions were refused and count as missing: {judge.refused[0]}")
    lines = []
    for wish in wishes:
        value = wish.combine([next(answers) for _ in wish.questions])
        lines.append({**wish.line, "value": "" if value is None else f"{value:g}", "judge": judge.model})
    return _write(table, lines)


def _wishes(table: Table, labels: Sequence[str], chosen: dict[str, list[Any] | None], words: str) -> Iterator[Wish]:
    """All that is to be asked; `words` are those that `distill.table` would be given for the same texts."""
    what = [str(x) for x in chosen["what"] or WHAT]
    unknown = [x for x in what if x not in WHAT]
    if unknown:
        raise UserError(f"what={unknown}: there are {', '.join(WHAT)}")
    name = str((chosen["set"] or [next(iter(_plan(table).sets))])[0])
    rows = [label for label in labels if label in table.rows]
    of = str((chosen["of"] or [list(table.experiment.rows)[-1]])[0])
    if "preference" in what and of not in rows:
        raise UserError(f"of={of}: no chosen row (rows: {', '.join(rows)})")
    tasks = _tasks(table, name, chosen)
    texts = {label: _texts(table, label, name, tasks, words) for label in rows}
    for label in rows:
        yield from _scores(table, label, name, tasks, texts[label], what)
    if "preference" in what:
        for label in rows:
            if label != of:
                yield from _preferences(table, of, label, name, tasks, texts)


def _plan(table: Table) -> Any:
    """The graph of the table's last row; its sets are those of all."""
    return table.rows[table.labels[-1]][0].plan


def _tasks(table: Table, name: str, chosen: dict[str, list[Any] | None]) -> dict[str, str]:
    """The chosen prompts' tasks as a judge reads them, by example id."""
    sets = _plan(table).sets
    if name not in sets:
        raise UserError(f"set={name}: the table's sets are {', '.join(sets)}")
    topics, limit = chosen["topics"], chosen["limit"]
    examples = [e for e in sets[name].examples if topics is None or e.topic in topics]
    if not examples:
        raise UserError(f"topics={topics}: {name} has {', '.join(sorted({e.topic for e in sets[name].examples}))}")
    examples = examples[: int(limit[0])] if limit else examples
    return {e.id: e.instruction + (f"\n\n{e.input}" if e.input else "") for e in examples}


def _texts(table: Table, label: str, name: str, tasks: dict[str, str], words: str) -> dict[str, list[str]]:
    """A row's answers to each task, by generation seed.

    Raises:
        UserError: they are not in the store; how they come there.
    """
    from distill.evaluation.responses import read_responses

    row = table.rows[label][0]
    measured = bool(row.folder.description())
    # A row whose values are kept counts as finished, though its texts are in no store here
    kept = ": its values are kept without them, so they are to be written anew beside other results" if measured else ""
    scratch = f" paths.results={row.config.paths.results}-again" if measured else ""
    found: dict[str, list[str]] = {i: [] for i in tasks}
    for seed in row.config.seed:
        spec = row.plan.evaluation(row.role, row.plan.sets[name], seed)
        if not row.plan.store.has(spec):
            raise UserError(
                f"row {label}: its responses with seed {seed} are not in {row.config.paths.store}{kept}; run first:"
                f" python -m distill.table {words}{scratch}"
            )
        for one in read_responses(row.plan.store.folder(spec)):
            if one.id in found:
                found[one.id].append(one.text)
    return {i: several for i, several in found.items() if several}  # a prompt may have been left out as too long


def _scores(
    table: Table, label: str, name: str, tasks: dict[str, str], texts: dict[str, list[str]], what: Sequence[str]
) -> Iterator[Wish]:
    from distill.judging import questions as ask
    from distill.results.table import seeds_name

    row = table.rows[label][0]
    common = {"row": label, "run": row.run, "against": "", "against_run": "", "dataset": name}
    common["seeds"] = seeds_name(row.config.seed)
    for i, several in texts.items():
        if "diversity" in what and len(several) > 1:
            yield Wish({**common, "id": i, "what": "diversity", "seed": ""}, [ask.diversity(tasks[i], several)])
        for seed, text in zip(row.config.seed, several, strict=True):
            line = {**common, "id": i, "seed": seed}
            if "quality" in what:
                yield Wish({**line, "what": "quality"}, [ask.quality(tasks[i], text)])
            if "criteria" in what and seed == row.config.seed[0]:
                for kind in ask.CRITERIA:
                    yield Wish({**line, "what": kind}, [ask.criterion(kind, tasks[i], text)])  # type: ignore[arg-type]


def _preferences(
    table: Table, of: str, label: str, name: str, tasks: dict[str, str], texts: dict[str, dict[str, list[str]]]
) -> Iterator[Wish]:
    """One row's answers against another's, in both orders; equal answers are left out, as in the paper."""
    from distill.judging.questions import preference, verdict
    from distill.results.table import seeds_name

    row, other = table.rows[of][0], table.rows[label][0]
    common = {"row": of, "run": row.run, "against": label, "against_run": other.run, "dataset": name}
    common["seeds"] = seeds_name(row.config.seed)
    for i, ours in texts[of].items():
        theirs = texts[label].get(i)
        if theirs is None:
            continue
        line = {**common, "id": i, "seed": ""}
        pairs = {"prefer quality": (ours[:1], theirs[:1])}
        if len(ours) > 1:
            pairs["prefer diversity"] = (ours, theirs)
        for what, (a, b) in pairs.items():
            if a != b:
                both = [preference(tasks[i], a, b), preference(tasks[i], b, a)]
                yield Wish({**line, "what": what}, both, lambda answers: verdict(*answers))


def _write(table: Table, lines: list[dict[str, Any]]) -> int:
    """The judged values, and their means as tables on the terminal and in markdown."""
    import pandas as pd

    from distill.base.console import say
    from distill.base.files import lock_beside, write_whole
    from distill.results.header import header
    from distill.results.rendering import markdown_table
    from distill.results.table import rows_of, seeds_name
    from distill.results.terminal import show

    manifest, results = table.manifest(), table.config.paths.results
    folder, judge = manifest.folder(results), table.config.eval.judge.model
    path = folder / f"{manifest.name}_judge_long.csv"
    frame = pd.DataFrame(lines, columns=JUDGED).astype(str)
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock_beside(path):
        if path.is_file():  # earlier judgements stand beside these
            earlier = pd.read_csv(path, dtype=str, keep_default_na=False)
            frame = pd.concat([earlier, frame]).drop_duplicates([c for c in JUDGED if c != "value"], keep="last")
        write_whole(path, frame.to_csv(index=False, lineterminator="\n"))
    runs = {row.run for rows in table.rows.values() for row in rows}
    current = frame["run"].isin(runs) & frame["against_run"].isin({"", *runs})
    current &= (frame["judge"] == judge) & (frame["seeds"] == seeds_name(table.config.seed))
    frame = frame[current].assign(value=pd.to_numeric(frame[current]["value"]))
    text = [
        f"# {table.experiment.title}: {judge} as a judge",
        "",
        *header(rows_of(manifest, results), table.experiment, manifest),
        "",
    ]
    for name, judged in frame.groupby("dataset", sort=False):
        alone, paired = judged[judged["against"] == ""], judged[judged["against"] != ""]
        for kind, shaped in (
            ("scores, with the number of prompts", _means(alone)),
            ("preference in percent of the pairs", _ratios(paired)),
        ):
            if not shaped.empty:
                title = f"{name}: {kind}"
                show(shaped, f"{title}, by {judge}")
                text += [f"## {title}", "", markdown_table(shaped), ""]
    missing = int(frame["value"].isna().sum())
    told = (
        f"{len(frame) - missing} values; {missing} missing, since the judge gave no answer to them that could be read."
    )
    say(told)
    shown = folder / f"{manifest.name}_judge.md"
    write_whole(shown, "\n".join([*text, told]) + "\n")
    say(f"table: {shown}")
    return 0


def _means(frame: Any) -> Any:
    """Rows by what was scored: each a mean over prompts of a prompt's mean over its answers, with the prompts' number.

    The prompts of a column are those that every row which was scored has, so that rows compare.
    """
    if frame.empty:
        return frame
    columns = []
    for what, several in frame.dropna(subset="value").groupby("what", sort=False):
        by_prompt = several.pivot_table("value", "id", "row", aggfunc="mean", sort=False).dropna()
        shown = f"{{:.2f}} ({len(by_prompt)})".format
        columns.append(by_prompt.mean().map(shown, na_action="ignore").rename(what))
    import pandas as pd

    shaped = pd.concat(columns, axis=1) if columns else pd.DataFrame()
    order = [row for row in frame["row"].unique() if row in shaped.index]
    return shaped.loc[order].fillna("").rename_axis("row").reset_index()


def _ratios(frame: Any) -> Any:
    """Pairs of rows by win, tie and loss."""
    rows = []
    for (row, against), pair in frame.groupby(["row", "against"], sort=False):
        line = {"row": f"{row} vs {against}"}
        for what, values in pair.groupby("what", sort=False)["value"]:
            kind, read = what.removeprefix("prefer "), values.dropna()
            for name, at in (("win", 1.0), ("tie", 0.5), ("loss", 0.0)):
                line[f"{kind} {name}"] = f"{100 * (read == at).mean():.1f}" if len(read) else ""
            line[f"{kind} pairs"] = str(len(read))
        rows.append(line)
    import pandas as pd

    return pd.DataFrame(rows)


if __name__ == "__main__":
    raise SystemExit(command(main))
