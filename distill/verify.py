"""`python -m distill.verify FILE [row=LABEL] [column=TITLE]`: makes a cell of a table again and compares it.

FILE is any file of a measured table, such as results/micro/abkd/losses_gpt2.csv. Without row and column a cell is
drawn. Everything that the cell needs, teacher included, is made again in a store of its own from the settings that the
row's run recorded, and the values are compared one by one. Another kind of processor rounds otherwise, which changes
every training and so the teacher too. Exit code 0 if they are equal to the byte; where the run was made on another kind
of processor, with other threads or versions, also if they differ by no more than such rows do by chance, as far as the
pair's kept tables tell of trainings and teachers; 1 if they differ by more, or if the table shows another number than
its runs have. `store=FOLDER` keeps that store, so that a stopped check goes on. A folder outside the project, of which
a run records only the name, is given by its key, such as model.teacher.path=FOLDER.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from distill.base.errors import UserError, command


def main(words: list[str]) -> int:
    """Verify one cell; see the module."""
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if words else 2
    options = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    folders = {key: options.pop(key) for key in list(options) if "." in key}
    unknown = [w for w in words[1:] if "=" not in w] + [w for w in options if w not in ("row", "column", "store")]
    if unknown:
        raise UserError(
            f"{unknown[0]}: not a word of this command; give row=LABEL, column=TITLE, store=FOLDER, or a folder by its"
            " key"
        )
    from distill.base.console import say
    from distill.pipeline.verification import Cell, verified
    from distill.results.terminal import show

    store = Path(options.get("store", ".")).expanduser()
    if any(path.is_file() for path in (store, *store.parents)):
        raise UserError(f"store={options['store']}: it is not a folder that can be written to; choose another folder")
    cell = Cell.of(words[0], options.get("row"), options.get("column"))
    say(f"{cell.manifest.table} on {cell.manifest.model}: row {cell.row.label}, column {cell.column.title}")
    if misprint := cell.misprint():
        say(f"different: {misprint}; distill.table writes the table again from its runs")
        return 1
    with tempfile.TemporaryDirectory(prefix="distill-verify-") as scratch:
        verdict = verified(cell, str(Path(options.get("store", scratch)).expanduser()), folders)
    show(verdict.values, f"{cell.row.label}, {cell.column.title}")
    say(verdict.text)
    return 0 if verdict.holds else 1


if __name__ == "__main__":
    raise SystemExit(command(main))
