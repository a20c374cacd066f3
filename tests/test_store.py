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


def a_run(results, *names):
    folder = results / "micro/runs/abc"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"artifacts": list(names)}))


def test_list_and_prune(tmp_path, capsys):
    store, results = Store(tmp_path / "store"), tmp_path / "results"
    kept, loose = SPEC, Spec("evaluate", "other", {})
    for spec in (kept, loose):
        store.make(spec, lambda folder: {})
    (tmp_path / "store" / "train" / ".partial-half-000").mkdir()
    a_run(results, kept.name)
    folders = ["--store", str(tmp_path / "store"), "--results", str(results)]
    assert cli.main(["list", *folders]) == 0
    shown = capsys.readouterr().out
    assert "in a run" in shown and "no run needs it" in shown and "unfinished" in shown
    assert cli.main(["prune", "--yes", *folders]) == 0
    assert store.has(kept) and not store.has(loose) and not list((tmp_path / "store" / "train").glob(".partial*"))
    with pytest.raises(UserError, match="no such results folder"):
        cli.main(["prune", "--store", str(tmp_path / "store"), "--results", str(tmp_path / "none")])
    with pytest.raises(UserError, match="no such store"):
        cli.main(["--store", str(tmp_path / "none")])


def test_prune_leaves_what_is_no_artifact_and_what_is_a_link(tmp_path):
    store, results = Store(tmp_path / "store"), tmp_path / "results"
    a_run(results)
    for name in ("wandb/offline-run-1", "judge", "logs/x"):
        (tmp_path / "store" / name).mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "weights").write_text("1")
    (tmp_path / "store/train").mkdir()
    (tmp_path / "store/train/thing-0").symlink_to(elsewhere)
    (tmp_path / "store/train/nowhere-0").symlink_to(tmp_path / "gone")
    assert cli.prune(store, results) == []
    assert (elsewhere / "weights").is_file() and (tmp_path / "store/wandb/offline-run-1").is_dir()
    (results / "micro/runs/abc/run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json: it does not list the artifacts that the run needs"):
        cli.prune(store, results)


def test_what_a_living_run_needs_is_not_pruned(tmp_path):
    """A process that holds a lease, finished inputs and a half-made artifact among them; dead leases count no more."""
    store, results = Store(tmp_path / "store"), tmp_path / "results"
    a_run(results)
    half = Spec("train", "half", {"b": 2})
    store.make(SPEC, lambda folder: {})
    store.folder(half).with_name(f".partial-{store.folder(half).name}").mkdir(parents=True)
    script = (
        "import sys, time; from pathlib import Path; from distill.pipeline.leases import lease\n"
        "with lease(Path(sys.argv[1]), sys.argv[2:]):\n    print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "store"), SPEC.name, half.name]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    assert cli.prune(store, results) == [] and store.has(SPEC)
    holder.kill()
    holder.wait()
    assert len(cli.prune(store, results)) == 2 and not store.has(SPEC)
    assert not list((tmp_path / "store/leases").glob("*.json"))


def test_a_kill_between_the_manifest_and_the_rename_loses_nothing(tmp_path):
    """What the build would go on from is there until the artifact is in place."""
    script = (
        "import os, sys; from pathlib import Path; from distill.pipeline.store import Spec, Store\n"
        "def build(folder):\n    (folder / 'checkpoints').mkdir(exist_ok=True); return {}\n"
        "def replace(self, target):\n    os._exit(9) if target.name.startswith('thing') else original(self, target)\n"
        "original = Path.replace; Path.replace = replace\n"
        "Store(sys.argv[1]).make(Spec('train', 'thing', {'a': 1}), build)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == 9
    (partial,) = (tmp_path / "train").glob(".partial-*")
    assert (partial / "checkpoints").is_dir() and (partial / MANIFEST).is_file()
    folder = Store(tmp_path).make(SPEC, lambda found: {"kept": (found / "checkpoints").is_dir()})
    assert Store(tmp_path).manifest(SPEC)["kept"] is True and sorted(f.name for f in folder.iterdir()) == [MANIFEST]


def test_what_a_kill_after_the_rename_left_is_removed(tmp_path):
    store = Store(tmp_path)
    folder = store.make(SPEC, lambda partial: {})
    (folder / "checkpoints/checkpoint-1").mkdir(parents=True)
    (folder / "attempts.json").write_text("[]")
    store.make(SPEC, lambda partial: {})
    assert sorted(file.name for file in folder.iterdir()) == [MANIFEST]


def test_overlapping_makers_never_touch_a_finished_artifact(tmp_path):
    """Of several that are asked for together, only the missing are built."""
    store, other = Store(tmp_path), Spec("train", "other", {})
    first = store.make(SPEC, lambda folder: {"rows": 1})
    stamp = (first / MANIFEST).stat().st_mtime_ns
    asked = []

    def build(specs, folders):
        asked.extend(specs)
        return [{} for _ in specs]

    assert len(store.make_all([SPEC, other], build)) == 2
    assert asked == [other] and (first / MANIFEST).stat().st_mtime_ns == stamp
