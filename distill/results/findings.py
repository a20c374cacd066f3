"""`python -m distill.results.findings` writes the measured tables of docs/findings.md again (`make docs`).

The page is text by hand around tables between marks: below `<!-- abkd/losses_gpt2 micro -->` stands what that table's
page says of the paper's claims, below `<!-- all -->` how the claims of all kept tables came out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from distill.base import locations
from distill.base.errors import UserError, command
from distill.base.files import write_whole
from distill.results import experiment as experiments
from distill.results.comparisons import Tested, claimed, comparisons, orders
from distill.results.header import header
from distill.results.manifest import Manifest
from distill.results.markdown import markdown_table
from distill.results.printed import paper_numbers
from distill.results.sections import claims_table
from distill.results.table import columns_of, rows_of

PAGE = Path("docs/findings.md")
MARK = re.compile(r"(<!-- (all|\S+ \S+) -->\n).*?(<!-- end -->)", re.DOTALL)
ALL = "all"


def kept_manifests(results: Path) -> list[Manifest]:
    """The manifests of all kept tables and figures."""
    return [Manifest.read(path) for path in sorted(results.glob("*/*/*.manifest.json"))]


def written_again(page: str, results: Path) -> str:
    """The page with its tables from the kept results.

    Raises:
        UserError: the page has no marks for a kept table with claims, or marks for one that is not kept.
    """
    blocks, counts = {}, []
    for manifest in kept_manifests(results):
        if manifest.table not in experiments.names():
            continue  # a table's file of one's own
        block, counted = _block(manifest, results)
        if block:
            blocks[f"{manifest.table} {manifest.model}"] = block
            counts += counted
    blocks[ALL] = markdown_table(pd.DataFrame(counts).fillna("")) + "\n"
    marked = {name for _, name, _ in MARK.findall(page)}
    if missing := sorted(blocks.keys() - marked):
        raise UserError(
            f"{PAGE} has no place for {missing[0]}; add the lines `<!-- {missing[0]} -->` and `<!-- end -->`"
        )
    if unknown := sorted(marked - blocks.keys()):
        raise UserError(f"{PAGE} has a place for {unknown[0]}, which is not kept or says nothing; remove its two marks")
    return MARK.sub(lambda match: match[1] + blocks[match[2]] + match[3], page)


def _block(manifest: Manifest, results: Path) -> tuple[str, list[dict[str, str]]]:
    """What a kept table says of the paper's claims with an interval, and its lines of the count; empty if nothing."""
    experiment = experiments.load(manifest.table).for_pair(manifest.model)
    rows = rows_of(manifest, results)
    columns = [c for c in columns_of(experiment, manifest) if any(row.cell(c) is not None for row in rows)]
    orders_of_rows = orders(rows, columns, paper_numbers(experiment, manifest.model)[0])
    agreements = {title: agreement for title, agreement in orders_of_rows.items() if agreement.low is not None}
    tests = claimed(comparisons(rows, columns, experiment), experiment)
    if not agreements and not tests:
        return "", []
    path = manifest.folder("../results") / f"{manifest.name}.md"
    trainings = max(len(row.row.runs) for row in rows)
    each = "One training a row" if trainings == 1 else f"Up to {trainings} trainings a row"
    scale = header(rows, experiment, manifest)[0]
    link = f"[{manifest.table}]({path.as_posix()})"
    claims = markdown_table(claims_table(experiment, agreements, tests))
    lines = [f"{link}: {scale} {each}.", "", claims, ""]
    counts = []
    for row in dict.fromkeys(row for row, _, _ in tests):
        others = dict.fromkeys(other for claiming, other, _ in tests if claiming == row)
        of_row = [test for (claiming, _, _), test in tests.items() if claiming == row]
        fewest = min(test.comparison.fewest_trainings for test in of_row)
        named = {"claim": f"{row} above {', '.join(others)}", "table": link, "pair": manifest.model}
        named["trainings"] = "1" if fewest == 1 else f"{fewest} or more"
        counts.append(named | {word: _count(of_row, word) for word in ("yes", "open", "reversed")})
        if with_others := [test for test in of_row if test.verdict != "open" and test.by_teacher]:
            counts[-1]["other sign with another teacher"] = (
                f"{sum(test.turns for test in with_others)} of {len(with_others)}"
            )
    return "\n".join(lines), counts


def _count(tests: Iterable[Tested], verdict: str) -> str:
    """How many tests have a verdict, and in brackets how many of them stand after Holm's adjustment."""
    of_verdict = [test for test in tests if test.verdict == verdict]
    if not of_verdict or verdict == "open":
        return str(len(of_verdict) or "")
    return f"{len(of_verdict)} ({sum(test.stands for test in of_verdict)})"


def main(arguments: list[str]) -> int:
    """Write the page again where the command was started."""
    if arguments or not PAGE.is_file():
        raise UserError(f"start it in the project's folder, which has {PAGE}, and without arguments")
    write_whole(PAGE, written_again(PAGE.read_text(encoding="utf-8"), locations.PAPER.parent))
    return 0


if __name__ == "__main__":
    raise SystemExit(command(main))
