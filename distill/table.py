"""`python -m distill.table PAPER/TABLE [overrides]`: writes a paper's table or figure.

Measures the rows that are missing, then writes the table. PAPER/TABLE may be a table's file of your own; PAPER alone is
all tables and figures of a paper that have numbers for the pair. Beside the overrides of `distill.run` it takes
  rows=[A,B]            only these rows and the context rows
  train_seeds=[1,2,3]   students are trained with several seeds
  teachers=[11,12]      each row's first training is repeated with teachers of these seeds
  row.Mine="loss=skl loss.mix=0.3"    a row of your own below the table's
  note="two rows ran at a time"       a remark that is stored in the table's manifest and shown in its header
  other_pair=true       a pair of the papers for which this table has no numbers
`--dry-run` makes nothing: it tells what is there and what would run, and how long that took before; without PAPER/TABLE
it does so for every table of a pair (`--dry-run model=micro`).
`--config-dir DIR` adds a folder of your own configs (`DIR/loss/NAME.yaml`) and tables
(`DIR/experiments/PAPER/TABLE.yaml`).
"""

from __future__ import annotations

from collections.abc import Sequence

from distill.base.errors import UserError, command, report_and_go_on


def main(words: list[str]) -> int:
    """Measure and write one table, or all of a paper; see the module."""
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if words else 2
    from distill.base import locations
    from distill.base.console import say

    dry, words = "--dry-run" in words, [word for word in words if word != "--dry-run"]
    named = bool(words) and "=" not in words[0]
    say(f"{words[0] if named else 'all tables'}: loading the libraries")
    tables = list(locations.tables())
    of_paper = [name for name in tables if named and name.split("/")[0] == words[0]]
    if dry and (of_paper or not named):
        from distill.pipeline.preview import overview
        from distill.results.terminal import show

        lines, unread, problems = overview(of_paper or tables, words[1:] if named else words)
        if len(lines):
            show(lines, "tables")
        for problem in unread:
            say(problem)
        if problems:
            raise UserError(problems)
        return 0
    if of_paper:
        return _all(of_paper, words[1:])
    return _one(words, dry)


def _all(names: Sequence[str], words: Sequence[str]) -> int:
    """All tables that have numbers for the pair; a table that fails does not stop the others."""
    from distill.base.console import say
    from distill.pipeline.request import NotFor

    code, reported = 0, set[str]()
    for name in names:
        try:
            code = max(code, _one([name, *words]))
        except NotFor as error:
            say(f"left out: {error}")
        except UserError as error:
            new = [problem for problem in error.problems if problem not in reported]
            reported.update(new)
            report_and_go_on(UserError(new, error.shared))
            code = 2
    return code


def _one(words: Sequence[str], dry: bool = False) -> int:
    """One table, or with `dry` what a run would make of it."""
    from distill.base.console import say
    from distill.base.processes import is_main_process
    from distill.pipeline.request import requested
    from distill.results.metrics import is_rouge
    from distill.results.terminal import show

    table, chosen = requested(words)
    if table.remembered:
        say(f"{table.name}: {table.remembered}")
    if dry:
        from distill.pipeline.preview import preview, sets_line, stand_in_for_data

        for problem in stand_in_for_data(table):
            say(problem)
        say(sets_line(table))
        show(preview(table, chosen), f"{table.name} on {table.model}: what a run would make")
        return 0
    failures = table.measure(chosen)
    if is_main_process() and table.any_measured():
        written = table.write()
        experiment = table.experiment
        if experiment.kind != "figure":
            rouge = all(is_rouge(c.metric) for c in experiment.columns.values())
            show(written.frame, f"{experiment.title} - {table.model}{', ROUGE-L' if rouge else ''}")
        for line in written.header:
            say(line)
        say(f"{experiment.kind}: {written.path}")
    return 2 if failures else 0


if __name__ == "__main__":
    raise SystemExit(command(main))
