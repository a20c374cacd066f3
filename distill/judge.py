"""`python -m distill.judge PAPER/TABLE [overrides] eval.judge.model=NAME`: a judge model rates a table's responses.

Sends the responses that `distill.table` has stored to an OpenAI-compatible server at OPENAI_BASE_URL, with the key
OPENAI_API_KEY. It takes the overrides of `distill.table` and (defaults in parentheses):
  what=[diversity,quality,criteria,preference]
                what is judged (all four): diversity of a prompt's responses and quality of each response, 1 to 10;
                accuracy, completeness, fluency and relevance (MGSR), 1 to 5; win, tie or loss of a row against others
  of=ROW        the row that is compared with the others by preference (the table's last, which is the paper's method)
  set=NAME      the evaluation set (the table's first)
  topics=[open_qa,closed_qa]   only prompts with these topics (all)
  limit=N       only the first N prompts (all)
  cost=true     print the estimated cost and stop
Only responses of the first training seed are judged; by criteria and preference of quality, only those of the first
generation seed.
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

KINDS = ("diversity", "quality", "criteria", "preference")
COLUMNS = ["row", "run", "against", "against_run", "dataset", "id", "what", "seed", "seeds", "value", "judge"]


@dataclass
class JudgedValue:
    """A value that is computed from the judge's answers to one or more questions.

    Attributes:
        record: the value's row of the CSV file, without the value and the judge.
        questions: what the judge is asked.
        combine: computes the value from the answers, which may be None; by default it is the first answer.
    """

    record: dict[str, Any]
    questions: list[Any]
    combine: Callable[[list[Any]], float | None] = field(default=lambda answers: answers[0])


def main(words: list[str]) -> int:
    """Judge the responses of one table; the module's docstring describes the words."""
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if words else 2
    options: dict[str, list[Any] | None] = {}
    for name in ("what", "of", "set", "topics", "limit", "cost"):
        options[name], words = option(words, name)
    for name, kind in (("limit", int), ("cost", bool)):
        values = options[name]
        if values is not None and [type(x) for x in values] != [kind]:
            raise UserError(f"{name}={values[0]}: give {'a number' if kind is int else 'true or false'}")
    table, labels = requested(words)
    if not table.is_measured:
        raise UserError(
            f"{table.name}: it has no responses of its own, only a judge's numbers; judge the table whose rows it"
            " compares, such as akl/main"
        )
    judged_values = list(_judged_values(table, labels, options, " ".join(map(shlex.quote, words))))
    from distill.base.console import bar, say
    from distill.judging.judge import Judge

    judge = Judge(table.config.eval.judge, Path(table.config.paths.store) / "judge")
    questions = [q for value in judged_values for q in value.questions]
    say(f"judge {judge.model} at {judge.address}: {judge.cost(questions).describe()}")
    if options["cost"] == [True]:
        return 0
    with bar(len(set(questions)), "judging", "question") as progress_bar:
        answers = iter(judge.ask(questions, progress_bar.update))
    if judge.refusals:
        say(f"the server refused {len(judge.refusals)} questions, whose values are missing: {judge.refusals[0]}")
    records = []
    for judged in judged_values:
        value = judged.combine([next(answers) for _ in judged.questions])
        records.append({**judged.record, "value": "" if value is None else f"{value:g}", "judge": judge.model})
    return _write(table, records)


def _judged_values(
    table: Table, labels: Sequence[str], options: dict[str, list[Any] | None], words: str
) -> Iterator[JudgedValue]:
    """All values that the options ask for; `words` are the arguments of `distill.table` that write the responses."""
    kinds = [str(x) for x in options["what"] or KINDS]
    unknown = [x for x in kinds if x not in KINDS]
    if unknown:
        raise UserError(f"what=[{','.join(unknown)}] is unknown; give some of {', '.join(KINDS)}")
    set_name = str((options["set"] or [next(iter(_plan(table).sets))])[0])
    rows = [label for label in labels if label in table.rows]
    of = str((options["of"] or [table.experiment.method])[0])
    if "preference" in kinds and of not in rows:
        raise UserError(f"of={of} is not among the chosen rows; give one of {', '.join(rows)}")
    tasks = _tasks(table, set_name, options)
    texts = {label: _texts(table, label, set_name, tasks, words) for label in rows}
    for label in rows:
        yield from _scores(table, label, set_name, tasks, texts[label], kinds)
    if "preference" in kinds:
        for label in rows:
            if label != of:
                yield from _preferences(table, of, label, set_name, tasks, texts)


def _plan(table: Table) -> Any:
    """The plan of the table's last row. All rows have the same sets."""
    return table.rows[table.labels[-1]][0].plan


def _tasks(table: Table, set_name: str, options: dict[str, list[Any] | None]) -> dict[str, str]:
    """Instruction and input of the chosen examples, by example id."""
    sets = _plan(table).sets
    if set_name not in sets:
        raise UserError(f"set={set_name} is not a set of the table; give one of {', '.join(sets)}")
    topics, limit = options["topics"], options["limit"]
    examples = [e for e in sets[set_name].examples if topics is None or e.topic in topics]
    if not examples:
        available = ", ".join(sorted({e.topic for e in sets[set_name].examples}))
        raise UserError(f"topics={topics}: no prompt of {set_name} has such a topic; give some of {available}")
    examples = examples[: int(limit[0])] if limit else examples
    return {e.id: e.instruction + (f"\n\n{e.input}" if e.input else "") for e in examples}


def _texts(table: Table, label: str, set_name: str, tasks: dict[str, str], words: str) -> dict[str, list[str]]:
    """A row's responses to each task, in the order of the generation seeds.

    Raises:
        UserError: responses are not in the store. The message says how to write them.
    """
    from distill.evaluation.responses import read_responses

    row = table.rows[label][0]
    measured = bool(row.folder.description())
    # distill.table does not run a row again whose values are measured, even if its responses are not in the store
    results = row.config.paths.results
    reason = f". {results} already has its values, so write them again with other results" if measured else ""
    other_results = f" paths.results={results}-again" if measured else ""
    texts: dict[str, list[str]] = {example_id: [] for example_id in tasks}
    for seed in row.config.seed:
        spec = row.plan.evaluation(row.role, row.plan.sets[set_name], seed)
        if not row.plan.store.has(spec):
            raise UserError(
                f"row {label}: its responses with generation seed {seed} are not in {row.config.paths.store}{reason};"
                f" run first: python -m distill.table {words}{other_results}"
            )
        for response in read_responses(row.plan.store.folder(spec)):
            if response.id in texts:
                texts[response.id].append(response.text)
    # A prompt that was dropped as too long has no response
    return {example_id: responses for example_id, responses in texts.items() if responses}


def _scores(
    table: Table, label: str, set_name: str, tasks: dict[str, str], texts: dict[str, list[str]], kinds: Sequence[str]
) -> Iterator[JudgedValue]:
    """The scores of one row: diversity, quality and criteria."""
    from distill.judging import questions as ask
    from distill.results.table import seeds_name

    row = table.rows[label][0]
    common = {"row": label, "run": row.run, "against": "", "against_run": "", "dataset": set_name}
    common["seeds"] = seeds_name(row.config.seed)
    for example_id, responses in texts.items():
        task = tasks[example_id]
        if "diversity" in kinds and len(responses) > 1:
            yield JudgedValue(
                {**common, "id": example_id, "what": "diversity", "seed": ""}, [ask.diversity(task, responses)]
            )
        for seed, text in zip(row.config.seed, responses, strict=True):
            record = {**common, "id": example_id, "seed": seed}
            if "quality" in kinds:
                yield JudgedValue({**record, "what": "quality"}, [ask.quality(task, text)])
            if "criteria" in kinds and seed == row.config.seed[0]:
                for name in ask.CRITERIA:
                    question = ask.criterion(name, task, text)  # type: ignore[arg-type]
                    yield JudgedValue({**record, "what": name}, [question])


def _preferences(
    table: Table, of: str, label: str, set_name: str, tasks: dict[str, str], texts: dict[str, dict[str, list[str]]]
) -> Iterator[JudgedValue]:
    """The preferences between two rows, each asked in both orders. Equal responses are skipped, as in the paper."""
    from distill.judging.questions import preference, verdict
    from distill.results.table import seeds_name

    row, other = table.rows[of][0], table.rows[label][0]
    common = {"row": of, "run": row.run, "against": label, "against_run": other.run, "dataset": set_name}
    common["seeds"] = seeds_name(row.config.seed)
    for example_id, responses in texts[of].items():
        task, other_responses = tasks[example_id], texts[label].get(example_id)
        if other_responses is None:
            continue
        record = {**common, "id": example_id, "seed": ""}
        pairs = {"prefer quality": (responses[:1], other_responses[:1])}
        if len(responses) > 1:
            pairs["prefer diversity"] = (responses, other_responses)
        for name, (first, second) in pairs.items():
            if first != second:
                both_orders = [preference(task, first, second), preference(task, second, first)]
                yield JudgedValue({**record, "what": name}, both_orders, lambda answers: verdict(*answers))


def _write(table: Table, records: list[dict[str, Any]]) -> int:
    """Write the values to a CSV file and their means to a markdown file; print the means; return the exit code."""
    import pandas as pd

    from distill.base.console import say
    from distill.base.files import lock_beside, write_whole
    from distill.results.header import header
    from distill.results.judged import values_path
    from distill.results.markdown import markdown_table
    from distill.results.table import rows_of, seeds_name
    from distill.results.terminal import show

    manifest, results = table.manifest(), table.config.paths.results
    folder, judge = manifest.folder(results), table.config.eval.judge.model
    path = values_path(folder, manifest.name)
    frame = pd.DataFrame(records, columns=COLUMNS).astype(str)
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock_beside(path):
        if path.is_file():  # earlier values of other runs, judges and prompts remain
            earlier = pd.read_csv(path, dtype=str, keep_default_na=False)
            frame = pd.concat([earlier, frame]).drop_duplicates([c for c in COLUMNS if c != "value"], keep="last")
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
    for set_name, values in frame.groupby("dataset", sort=False):
        scores, preferences = values[values["against"] == ""], values[values["against"] != ""]
        for description, means in (
            ("scores, with the number of prompts", _means(scores)),
            ("preference in percent of the pairs", _ratios(preferences)),
        ):
            if not means.empty:
                title = f"{set_name}: {description}"
                show(means, f"{title}, by {judge}")
                text += [f"## {title}", "", markdown_table(means), ""]
    missing = int(frame["value"].isna().sum())
    summary = f"{len(frame) - missing} values; {missing} missing, since the judge gave no answer that could be read."
    say(summary)
    markdown = folder / f"{manifest.name}_judge.md"
    write_whole(markdown, "\n".join([*text, summary]) + "\n")
    say(f"table: {markdown}")
    return 0


def _means(frame: Any) -> Any:
    """The mean scores by row and kind, with the number of prompts (`mean_scores`)."""
    if frame.empty:
        return frame
    import pandas as pd

    from distill.results.judged import mean_scores

    columns = []
    for kind, (mean, count) in mean_scores(frame).items():
        columns.append(mean.map(f"{{:.2f}} ({count})".format, na_action="ignore").rename(kind))

    means = pd.concat(columns, axis=1) if columns else pd.DataFrame()
    order = [row for row in frame["row"].unique() if row in means.index]
    return means.loc[order].fillna("").rename_axis("row").reset_index()


def _ratios(frame: Any) -> Any:
    """The percentages of wins, ties and losses for each pair of rows, with the number of pairs of responses."""
    from distill.results.judged import AGAINST, PREFER, shares

    rows = []
    for (row, against), pair in frame.groupby(["row", "against"], sort=False):
        cells = {"row": f"{row}{AGAINST}{against}"}
        for what, values in pair.groupby("what", sort=False)["value"]:
            kind, verdicts = what.removeprefix(PREFER), values.dropna()
            for name, share in shares(verdicts).items():
                cells[f"{kind} {name}"] = f"{share:.1f}" if len(verdicts) else ""
            cells[f"{kind} pairs"] = str(len(verdicts))
        rows.append(cells)
    import pandas as pd

    return pd.DataFrame(rows)


if __name__ == "__main__":
    raise SystemExit(command(main))
