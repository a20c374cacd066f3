"""What holds the floors apart: entry points that nobody imports, and results that need no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "distill"


def imported(path):
    """Modules of the project that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("distill"):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_entry_points_are_imported_by_nobody():
    entries = {f"distill.{path.stem}" for path in PACKAGE.glob("*.py")} - {"distill.__init__"}
    assert entries == {
        "distill.run",
        "distill.table",
        "distill.list",
        "distill.store",
        "distill.judge",
        "distill.verify",
    }
    for path in PACKAGE.rglob("*.py"):
        assert not entries & set(imported(path)), path


def test_results_import_no_torch():
    modules = [f"distill.results.{path.stem}" for path in (PACKAGE / "results").glob("*.py") if path.stem != "__init__"]
    code = f"import sys\nfor name in {modules!r}: __import__(name)\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_module_is_on_a_floor():
    """The layers of pyproject.toml name every package."""
    layers = (ROOT / "pyproject.toml").read_text().split("layers = [")[1].split("]")[0]
    for folder in PACKAGE.iterdir():
        if (folder / "__init__.py").is_file():
            assert f"distill.{folder.name}" in layers, folder
