"""The store: one maker, no half-written artifacts, what a kill and an error leave behind."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

from distill import store as cli
from distill.base.errors import UserError
from distill.pipeline.store import MANIFEST, Spec, Store

SPEC = Spec("train", "thing", {"a": 1})


def test_made_once_and_found(tmp_path):
    store, built = Store(tmp_path), []

    def build(folder):
        built.append(folder)
        (folder / "x").write_text("1")
        return {"rows": 3}

    first = store.make(SPEC, build)
    assert store.make(SPEC, build) == first and len(built) == 1 and (first / "x").is_file()
    manifest = json.loads((first / MANIFEST).read_text())
    assert manifest["determinants"] == {"a": 1} and manifest["rows"] == 3 and manifest["commit"]
    assert not built[0].exists()  # it was renamed


def test_the_key_is_a_function_of_all_determinants():
    keys = {Spec(s, "x", d).key for s in ("train", "base") for d in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": 1, "b": None})}
    assert len(keys) == 8
    assert Spec("train", "x", {"a": 1, "b": 2}).key == Spec("train", "y", {"b": 2, "a": 1}).key


def test_a_user_error_leaves_nothing_and_a_checkpoint_stays(tmp_path):
    store = Store(tmp_path)

    def fail(folder):
        (folder / "half").write_text("1")
        raise UserError("no")

    def fail_later(folder):
        (folder / "checkpoints" / "checkpoint-1").mkdir(parents=True)
        raise UserError("no")

    with pytest.raises(UserError):
        store.make(SPEC, fail)
    assert not store.has(SPEC) and list((tmp_path / "train").iterdir()) == []
    with pytest.raises(UserError):
        store.make(SPEC, fail_later)
    assert not store.has(SPEC)
    assert store.make(SPEC, lambda folder: {"kept": (folder / "checkpoints").is_dir()})
    assert store.manifest(SPEC)["kept"] is True


def test_two_processes_make_one(tmp_path):
    """Both ask for it at once; it is built once, and the second waits and finds it whole."""
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from distill.pipeline.store import Spec, Store
        root = Path(sys.argv[1])
        def build(folder):
            with (root / "builds").open("a") as log:
                log.write("x")
            (folder / "part").write_text("1")
            time.sleep(1.5)
            (folder / "whole").write_text("1")
            return {}
        folder = Store(root).make(Spec("train", "thing", {"a": 1}), build)
        assert (folder / "whole").is_file() and (folder / "artifact.json").is_file()
    """)
    command = [sys.executable, "-c", script, str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [p.communicate(timeout=60)[0] for p in running]
    assert [p.returncode for p in running] == [0, 0]
    assert (tmp_path / "builds").read_text() == "x"
    assert "done in" in "".join(outputs)


def test_a_killed_build_is_taken_up_again(tmp_path):
    script = (
        "import os, sys; from distill.pipeline.store import Spec, Store\n"
        "def build(folder):\n    (folder / 'part').write_text('1'); os._exit(9)\n"
        "Store(sys.argv[1]).make(Spec('train', 'thing', {'a': 1}), build)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == 9
    store = Store(tmp_path)
    assert not store.has(SPEC)
    folder = store.make(SPEC, lambda partial: {"found": (partial / "part").is_file()})
    assert store.manifest(SPEC)["found"] is True and (folder / "part").is_file()


def test_list_and_prune(tmp_path, capsys):
    store, results = Store(tmp_path / "store"), tmp_path / "results"
    kept, loose = SPEC, Spec("evaluate", "other", {})
    for spec in (kept, loose):
        store.make(spec, lambda folder: {})
    (tmp_path / "store" / "train" / ".partial-half-000").mkdir()
    (results / "micro").mkdir(parents=True)
    (results / "micro" / "t.manifest.json").write_text(json.dumps({"rows": {"r": {"artifacts": [kept.name]}}}))
    folders = ["--store", str(tmp_path / "store"), "--results", str(results)]
    assert cli.main(["list", *folders]) == 0
    shown = capsys.readouterr().out
    assert "in a table" in shown and "no table needs it" in shown and "unfinished" in shown
    assert cli.main(["prune", "--yes", *folders]) == 0
    assert store.has(kept) and not store.has(loose) and not list((tmp_path / "store" / "train").glob(".partial*"))
    with pytest.raises(UserError, match="no such results folder"):
        cli.main(["prune", "--store", str(tmp_path / "store"), "--results", str(tmp_path / "none")])
    with pytest.raises(UserError, match="no such store"):
        cli.main(["--store", str(tmp_path / "none")])
