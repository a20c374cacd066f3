"""`python -m distill.table PAPER/TABLE [overrides]`: writes a paper's table or figure.

Measures the rows that are missing, then writes the table. Beside the overrides of `distill.run` it takes `rows=[A,B]`
(only these rows and the context rows), `train_seeds=[1,2,3]` (students are trained with several seeds) and
`note="two rows ran at a time"` (a remark that is stored in the table's manifest and shown in its header).
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

    say(f"{words[0]}: loading the libraries")
    from distill.pipeline.request import requested
    from distill.results.terminal import show

    table, chosen = requested(words)
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
