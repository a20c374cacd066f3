"""What ran: commit, library versions, hardware."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from distill.base.locations import CHECKOUT

PACKAGES = ("torch", "transformers", "accelerate", "peft", "tokenizers", "numpy", "rouge-score", "hydra-core")


@lru_cache
def commit() -> str:
    """The commit of the code that runs, or `distill VERSION` outside a git checkout.

    `+dirty` is added if files differ from the commit, other than those that runs write. The result is read once per
    process, at the first call, so that files that the run itself writes later do not count.
    """

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # An installed copy, or an unpacked archive, may lie inside another project's repository
        if CHECKOUT is None or Path(git("rev-parse", "--show-toplevel")).resolve() != CHECKOUT:
            return f"distill {version()}"
        short = git("rev-parse", "--short=10", "HEAD")
        changed = git("status", "--porcelain", "--", ".", ":(exclude)results", ":(exclude)bench/kept")
    except (subprocess.CalledProcessError, FileNotFoundError):
        return f"distill {version()}"
    return short + ("+dirty" if changed else "")


def version() -> str:
    """The version of the package that runs; `unknown` where it is not installed."""
    try:
        return metadata.version("distill")
    except metadata.PackageNotFoundError:
        return "unknown"


def versions() -> dict[str, str]:
    """Versions of the libraries that numbers depend on."""
    return {name: metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()}


def hardware() -> dict[str, Any]:
    """Processor, cores, threads that torch computes with, memory and accelerators.

    Several kinds of processors have one name, and round otherwise (`processor_kind`).
    """
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": _processor(),
        "kind": processor_kind(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory, 1),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def processor_kind() -> str:
    """Which instructions torch uses, and a hash of the processor's model, stepping and instructions."""
    import torch

    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return platform.processor()
    named = ("vendor_id", "cpu family", "model", "stepping", "flags")
    lines = path.read_text().split("\n\n")[0].splitlines()
    kind = [line for line in lines if line.split("\t")[0] in named]
    return f"{torch.backends.cpu.get_cpu_capability()} {hashlib.sha256(repr(kind).encode()).hexdigest()[:12]}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
