"""The wheel: what it carries, and that it works from any folder without the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CARRIED = {"conf": "_conf", "experiments": "_experiments", "results/paper": "_paper"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, since setuptools would take modules that were removed from a kept `build` folder."""
    pytest.importorskip("setuptools")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("distill", *CARRIED):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    words = ["wheel", ".", "--no-deps", "--no-build-isolation", "--no-cache-dir", "-w", str(target)]
    words = [sys.executable, "-m", "pip", *words]
    done = subprocess.run(words, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(target.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The unpacked wheel inside a repository of another project, as a virtual environment often lies."""
    folder = tmp_path_factory.mktemp("project")
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], [*author, "commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site-packages")
    return folder / "site-packages"


def python(installed, cwd, *words):
    """Without `PYTHONPATH` the environment's own copy, the checkout, would be imported."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, capture_output=True, text=True, timeout=120, check=False, env=environment
    )


def test_every_module_yaml_and_csv_is_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as file:
        inside = set(file.namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "distill").rglob("*.py")}
    assert modules <= inside, f"add to packages in pyproject.toml: {sorted(modules - inside)}"
    for folder, name in CARRIED.items():
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        carried = {f"distill/{name}/{path.relative_to(ROOT / folder).as_posix()}" for path in files}
        assert files and carried <= inside, sorted(carried - inside)


def test_the_users_line_from_another_folder(installed, tmp_path):
    done = python(installed, tmp_path, "-m", "distill.run", *"loss=akl model=gpt2 -m seed=10,20 debug=smoke".split())
    assert done.returncode == 0, done.stderr[-2000:]
    (described,) = (tmp_path / ".smoke/results/gpt2/runs").glob("*/run.json")
    assert '"commit": "distill 0.' in described.read_text()  # and not the commit of the repository around it


def test_tables_numbers_and_lists_from_another_folder(installed, tmp_path):
    program = (
        "import distill\nfrom distill.results import experiment, printed\nfrom distill.base.provenance import commit\n"
        "loaded = experiment.load('abkd/losses_gpt2')\n"
        "print(distill.__file__, len(printed.paper_numbers(loaded, 'gpt2')[0]), len(experiment.names()), commit())"
    )
    done = python(installed, tmp_path, "-c", program)
    assert done.returncode == 0, done.stderr
    file, numbers, names, *commit = done.stdout.split()
    assert Path(file).is_relative_to(installed) and int(numbers) > 10 and int(names) >= 10
    assert commit[0] == "distill"
    listed = python(installed, tmp_path, "-m", "distill.list", "models", "tables")
    assert "python -m distill.table abkd/losses_gpt2" in listed.stdout and "make abkd" not in listed.stdout
    assert listed.returncode == 0 and "smollm2" in listed.stdout and "abkd/losses_gpt2" in listed.stdout
