"""Interleaved timing, peak memory in a process of its own, and the CSV that keeps the results."""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table

from distill.base.memory import peak_bytes
from distill.base.provenance import commit
from distill.models.load import Weights
from distill.pipeline.nodes import Node, Source, ensure
from distill.pipeline.plan import Plan, Role

KEPT = Path(__file__).parent / "kept"
PACKAGES = ("torch", "transformers", "trl", "liger-kernel")


def interleaved(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Least seconds of each, taking turns, so that slow minutes of the machine meet all; the first turn warms up."""
    best = dict.fromkeys(runs, float("inf"))
    for turn in range(repeats + 1):
        for name, run in runs.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            started = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                best[name] = min(best[name], time.perf_counter() - started)
    return best


def peak_mb() -> float:
    """The most memory that this process has held.

    Raises:
        RuntimeError: the system does not tell.
    """
    peak = peak_bytes()
    if peak is None:
        raise RuntimeError("peak memory is read from /proc, which this system does not have")
    return peak / 2**20


def held_mb() -> float:
    """What this process holds now, by the same measure."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() / 2**20
    return psutil.Process().memory_info().rss / 2**20


def in_own_process(module: str, *words: str) -> list[float]:
    """Numbers that `python -m module words` prints on its last line: peak memory needs a process that held nothing."""
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr}")
    return [float(x) for x in done.stdout.strip().splitlines()[-1].split()]


def hardware() -> str:
    """Processor or GPU, and how many threads compute on it."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {torch.get_num_threads()} threads"


def met(reached: bool) -> str:
    """A cell that says whether a figure is what was asked."""
    return "yes" if reached else "no"


def report(name: str, title: str, rows: list[dict[str, object]]) -> None:
    """Print the rows and keep them in bench/kept/<name>.csv, in place of the last run's on this hardware."""
    table = Table(title=f"{title} ({hardware()})", title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=160).print(table)
    versions = " ".join(f"{p}={v}" for p in PACKAGES if (v := _version(p)))
    stamp = {
        "hardware": hardware(),
        "versions": versions,
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }
    path = KEPT / f"{name}.csv"
    others = []
    if path.is_file():
        with path.open(newline="") as file:
            others = [row for row in csv.DictReader(file) if row["hardware"] != stamp["hardware"]]
    path.parent.mkdir(exist_ok=True)
    kept = [{k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} | stamp for row in rows]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(kept[0]))
        writer.writeheader()
        writer.writerows([*others, *kept])


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def made(plan: Plan, source: Source, role: Role = "student") -> Weights:
    """The weights of a part of a plan, made if they are missing."""
    if isinstance(source, Node):
        ensure(plan.store, [source])
    return plan.weights(source, role)
