"""`python -m tests.faults [KIND ...]` tries every case of the catalogue, or those of some kinds.

It writes docs/faults.md, which has each case with its exit code and the lines that the command printed about it. With
kinds it only prints.
"""

from __future__ import annotations

import re
import sys
import tempfile
import traceback
from pathlib import Path

from tests.faults import CASES, Case, Outcome, Workshop

PAGE = Path(__file__).resolve().parents[2] / "docs" / "faults.md"
KINDS = {
    "a": "loaders that fill in silently",
    "b": "leftovers in a checkpoint's folder",
    "c": "folders and hub ids",
    "d": "damaged files, and failures that come late",
    "e": "a bad job among good ones",
    "f": "checks that a sister command lacks",
    "g": "names that become paths, cells and columns",
    "h": "ids outside the common vocabulary",
    "i": "a metric that cannot move",
    "j": "0 and false in place of nothing",
    "k": "files as people have them",
    "l": "text that spells a special token",
    "m": "users and shells",
    "n": "paths in what is shared",
    "o": "slow without a word",
    "p": "too strict",
    "q": "messages",
    "r": "adapters",
    "s": "corrections, networks and spans",
}
INTRODUCTION = """# What happens when something is wrong

Each line below was tried on the commands as a user types them; the page is written by `make catalogue`, and
`tests/test_faults.py` holds every line. *Refused* means exit code 2 before any work, with one message that says what
was found, what is allowed and what to type; `exit code 2`, that something was done before. Folders of the trial read
`FOLDER`.
"""


def main(kinds: list[str]) -> int:
    """Try the cases and write the page; 1 if a case did not go as the catalogue says."""
    chosen = [case for case in CASES if not kinds or case.kind in kinds]
    lines, wrong = [INTRODUCTION], 0
    for kind, title in KINDS.items():
        of_kind = [case for case in chosen if case.kind == kind]
        if not of_kind:
            continue
        lines += [f"## {kind}. {title[0].upper()}{title[1:]}", "", "| tried | outcome | printed |", "|---|---|---|"]
        for case in of_kind:
            right, line = _tried(case)
            wrong += not right
            print(f"{'ok   ' if right else 'WRONG'} {kind}: {case.title}", flush=True)
            lines.append(line)
        lines.append("")
    if kinds:
        print("\n".join(lines[1:]))
    else:
        PAGE.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
        print(f"{len(chosen)} cases, {wrong} not as they should be: {PAGE}")
    return 1 if wrong else 0


def _tried(case: Case) -> tuple[bool, str]:
    """Whether a case went right, and its line of the page."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            outcome = case.act(Workshop(Path(folder)))
        except Exception:  # the other cases are tried nevertheless
            return False, f"| {case.title} | not tried | `{traceback.format_exc().splitlines()[-1]}` |"
        right = outcome.code == case.code and all(text in outcome.text for text in case.says)
        printed = "<br>".join(f"`{line}`" for line in _lines(case, outcome, folder)) or "runs as usual"
    began = "making it" in outcome.text
    result = "goes on" if outcome.code == 0 else "refused" if outcome.code == 2 and not began else "exit code 2"
    return right, f"| {case.title} | {result} | {printed.replace('|', chr(92) + '|')} |"


def _lines(case: Case, outcome: Outcome, folder: str) -> list[str]:
    """The lines that a command printed about a case, without the folders and times of the trial."""
    lines = [line.strip() for line in re.split(r"[\n\r]", outcome.text)]
    chosen = outcome.errors or [line for line in lines if any(text in line for text in case.says)]
    shortened = []
    for line in dict.fromkeys(chosen):
        line = re.sub(r"/tmp/[\w./-]*?sound-\w+", "FOLDER", line.replace(folder, "FOLDER"))
        shortened.append(re.sub(r"\x1b\[\w", "", line).replace("`", "'").removeprefix("error: ")[:400])
    return shortened[:4]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
