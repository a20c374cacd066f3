"""How long a command takes before it does anything, beside `import torch`, and how long a table's rows take to compose.

    python -m bench.startup

Commands run in turns, each in a process of its own; the least of five counts.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

from bench.measure import interleaved, met, report

BASE = "import torch"
COMMANDS = {
    BASE: ["-c", "import torch"],
    "run --cfg job": ["-m", "distill.run", "--cfg", "job", "loss=ab", "model=openllama2"],
    "list": ["-m", "distill.list"],
    "list models": ["-m", "distill.list", "models"],
}
LIMIT, TABLE_LIMIT, ROWS = 1.4, 2.0, 30


def main() -> None:
    """Measure, print and keep."""
    best = interleaved({name: _run(words) for name, words in COMMANDS.items()}, repeats=5)
    rows: list[dict[str, object]] = [
        {
            "what": name,
            "seconds": taken,
            "ratio": (ratio := taken / best[BASE]),
            "limit": LIMIT,
            "met": met(ratio <= LIMIT),
        }
        for name, taken in best.items()
    ]
    taken = table_seconds()
    rows.append({"what": f"{ROWS} rows compose", "seconds": taken, "ratio": taken / best[BASE],
                 "limit": f"{TABLE_LIMIT} s", "met": met(taken <= TABLE_LIMIT)})  # fmt: skip
    report("startup", "Seconds of a command, and their ratio to import torch", rows)


def _run(words: list[str]) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, *words], capture_output=True, check=True)


def table_seconds() -> float:
    """Seconds to compose and check thirty rows with different losses and values, imports aside."""
    from distill.config import load
    from distill.results import experiment

    overrides = [row.overrides for row in experiment.load("abkd/losses_gpt2").rows.values()]
    load(["loss=fkl"])
    started = time.perf_counter()
    for i in range(ROWS):
        load([*overrides[i % len(overrides)], "model=gpt2", f"loss.temperature={1 + i / 100}"])
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
