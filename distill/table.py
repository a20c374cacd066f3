"""`python -m distill.table PAPER/TABLE [overrides]`: writes a paper's table or figure.

Measures the rows that are missing, then writes the table. PAPER/TABLE may be a table's file of your own. Beside the
overrides of `distill.run` it takes `rows=[A,B]` (only these rows and the context rows), `train_seeds=[1,2,3]` (students
are trained with several seeds), `teachers=[11,12]` (each row's first training is repeated with teachers of these
seeds), `row.Mine="loss=skl loss.mix=0.3"` (a row of your own below the table's) and
`note="two rows ran at a time"` (a remark that is stored in the table's manifest and shown in its header).
`--dry-run` makes nothing: it tells what is there and what would run, and how long that took before; without PAPER/TABLE
it does so for every table of a pair (`--dry-run model=micro`).
`--config-dir DIR` adds a folder of your own configs (`DIR/loss/NAME.yaml`) and tables
(`DIR/experiments/PAPER/TABLE.yaml`).
"""

from __future__ import annotations

from distill.base.errors import command


def main(words: list[str]) -> int:
    """Measure and write one table; see the module."""
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if words else 2
    from distill.base.console import say
    from distill.base.processes import is_main_process

    dry, words = "--dry-run" in words, [word for word in words if word != "--dry-run"]
    named = bool(words) and "=" not in words[0]
    say(f"{words[0] if named else 'all tables'}: loading the libraries")
    from distill.pipeline.request import requested
    from distill.results.terminal import show

    if dry and not named:
        from distill.pipeline.preview import overview

        show(overview(words), "tables")
        return 0
    table, chosen = requested(words)
    if dry:
        from distill.pipeline.preview import preview, sets_line

        say(sets_line(table))
        show(preview(table, chosen), f"{table.name} on {table.model}: what a run would make")
        return 0
    failures = table.measure(chosen)
    if is_main_process() and table.any_measured():
        written = table.write()
        experiment = table.experiment
        if experiment.kind != "figure":
            rouge = all(c.metric.startswith(("rouge_l", "best_rouge_l")) for c in experiment.columns.values())
            show(written.frame, f"{experiment.title} - {table.model}{', ROUGE-L' if rouge else ''}")
        for line in written.header:
            say(line)
        say(f"{experiment.kind}: {written.path}")
    return 2 if failures else 0


if __name__ == "__main__":
    raise SystemExit(command(main))
