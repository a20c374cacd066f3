"""Cases about commands, files of results, shells and machines (kinds e, f, g, m, n, o, q, and the rest of d)."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import torch

from distill.base import locations
from distill.models import precision
from tests.faults.models import NOTHING_MADE, _encoder, refused_before_work
from tests.faults.workshop import Outcome, Workshop, case, environment, rows, write

SMOKE = ("model=gpt2", "debug=smoke", "loss=sft")
TABLE = ("abkd/losses_gpt2", "model=micro", "debug=smoke", "rows=[FKLD]", "seed=10")


# --------------------------------------------------------------------------- d. damaged files, late failures
def _stopped_training(w: Workshop) -> tuple[tuple[str, ...], list[Path]]:
    """Words of a run whose training was stopped after its second epoch, and its checkpoints, the oldest first."""
    from distill.base.errors import UserError
    from distill.training import callbacks

    words = ("loss=sft", "train.student.epochs=4", "train.student.select=loss", "train.save_steps=1")
    original = callbacks.Progress.on_evaluate

    def stop(self, args, state, control, **more):  # type: ignore[no-untyped-def]
        original(self, args, state, control, **more)
        if state.epoch >= 2:
            raise UserError("stopped by the case")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks.Progress, "on_evaluate", stop)
        assert w.pair(*words).code == 2
    found = (w.folder / "store").glob("train/*student*/checkpoints/checkpoint-*")
    checkpoints = sorted(found, key=lambda path: int(path.name.split("-")[1]))
    assert len(checkpoints) > 1, checkpoints
    return words, checkpoints


def _damaged_checkpoint(w: Workshop, name: str, content: bytes) -> Outcome:
    words, checkpoints = _stopped_training(w)
    (checkpoints[-1] / name).write_bytes(content)
    outcome = w.pair(*words)
    assert f"going on from {checkpoints[-2].name}" in outcome.text, outcome.text
    return outcome


@case(
    "d",
    "a checkpoint's trainer_state.json of 0 bytes",
    "trainer_state.json: it is empty",
    "set aside as damaged-",
    code=0,
)
def empty_state(w: Workshop) -> Outcome:
    return _damaged_checkpoint(w, "trainer_state.json", b"")


@case("d", "a checkpoint's optimizer.pt of 0 bytes", "optimizer.pt: it is empty", "set aside as damaged-", code=0)
def empty_optimizer(w: Workshop) -> Outcome:
    return _damaged_checkpoint(w, "optimizer.pt", b"")


@case(
    "d",
    "a checkpoint's model.safetensors cut off",
    "model.safetensors: damaged or cut off",
    "set aside as damaged-",
    code=0,
)
def checkpoint_cut_off(w: Workshop) -> Outcome:
    return _damaged_checkpoint(w, "model.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{")


@case("d", "a checkpoint's random state is garbage", "rng_state.pth: damaged or cut off", code=0)
def garbage_random_state(w: Workshop) -> Outcome:
    return _damaged_checkpoint(w, "rng_state.pth", b"garbage" * 9)


@case("d", "the best checkpoint is damaged, the last one is sound", "set aside as damaged-", code=0)
def best_is_damaged(w: Workshop) -> Outcome:
    words, checkpoints = _stopped_training(w)
    state = json.loads((checkpoints[-1] / "trainer_state.json").read_text())
    state["best_model_checkpoint"] = str(checkpoints[0])
    (checkpoints[-1] / "trainer_state.json").write_text(json.dumps(state))
    (checkpoints[0] / "model.safetensors").write_bytes(b"")
    outcome = w.pair(*words)
    (weights,) = (w.folder / "store").glob("train/gpt2-student-*/model/model.safetensors")
    assert weights.stat().st_size
    return outcome


@case("d", "a checkpoint lacks optimizer.pt", "optimizer.pt missing", "set aside as damaged-", code=0)
def no_optimizer(w: Workshop) -> Outcome:
    words, checkpoints = _stopped_training(w)
    (checkpoints[-1] / "optimizer.pt").unlink()
    return w.pair(*words)


@case("d", "trainer_state.json that is a list", "trainer_state.json: it holds a list", "set aside as damaged-", code=0)
def state_is_a_list(w: Workshop) -> Outcome:
    return _damaged_checkpoint(w, "trainer_state.json", b"[]")


@case("d", "attempts.json that is an object", "attempts.json: it is damaged; the time", code=0)
def attempts_is_an_object(w: Workshop) -> Outcome:
    words, checkpoints = _stopped_training(w)
    (checkpoints[0].parents[1] / "attempts.json").write_text('{"x": 1}')
    return w.pair(*words)


@case("d", "eval.bertscore.layers deeper than the encoder", "eval.bertscore.layers=99")
def too_deep(w: Workshop) -> Outcome:
    return refused_before_work(w.pair("loss=sft", f"eval.bertscore.encoder={_encoder(w)}", "eval.bertscore.layers=99"))


@case("d", "a language model as encoder", "is no encoder that bert_score can read")
def no_encoder(w: Workshop) -> Outcome:
    return refused_before_work(w.pair("loss=sft", f"eval.bertscore.encoder={w.checkpoint('T')}"))


@case("d", "attempts.json of 0 bytes", "attempts.json: it is damaged; the time", code=0)
def empty_attempts(w: Workshop) -> Outcome:
    words, checkpoints = _stopped_training(w)
    (checkpoints[0].parents[1] / "attempts.json").write_bytes(b"")
    return w.pair(*words)


@case("d", "artifact.json of 0 bytes", "artifact.json: it is empty", "counts as unfinished", "making it", code=0)
def empty_manifest(w: Workshop) -> Outcome:
    assert w.pair("loss=sft").code == 0
    (manifest,) = (w.folder / "store").glob("train/*student*/artifact.json")
    manifest.write_bytes(b"")
    return w.pair("loss=sft", "seed=[11]")


@case("d", "weights of an artifact of 0 bytes", "it was of", "counts as unfinished", "making it", code=0)
def empty_weights_of_artifact(w: Workshop) -> Outcome:
    assert w.pair("loss=sft").code == 0
    (weights,) = (w.folder / "store").glob("train/*student*/model/model.safetensors")
    weights.write_bytes(b"")
    return w.pair("loss=sft", "seed=[11]")


@case(
    "d",
    "texts of an artifact of 0 bytes",
    "generations.jsonl: it was of",
    "counts as unfinished",
    "evaluate Test: 4 prompts",
    code=0,
)
def empty_texts(w: Workshop) -> Outcome:
    import shutil

    assert w.pair("loss=sft").code == 0
    (texts,) = (w.folder / "store").glob("evaluate/*student*/generations.jsonl")
    texts.write_bytes(b"")
    shutil.rmtree(w.folder / "results")
    return w.pair("loss=sft")


@case("d", "a run's facts.csv of 0 bytes", "facts.csv", "damaged")
def empty_facts(w: Workshop) -> Outcome:
    assert w.run(*SMOKE).code == 0
    for facts in (w.folder / "results").glob("*/runs/*/facts.csv"):
        facts.write_bytes(b"")
    return refused_before_work(w.run(*SMOKE))


@case("d", "a run's run.json cut off", "run.json", "damaged")
def cut_off_description(w: Workshop) -> Outcome:
    assert w.run(*SMOKE).code == 0
    for path in (w.folder / "results").glob("*/runs/*/run.json"):
        path.write_bytes(path.read_bytes()[:100])
    return refused_before_work(w.run(*SMOKE))


@case("d", "the disk is full", "the disk is full", "make room")
def full_disk(w: Workshop) -> Outcome:
    import errno

    from distill.pipeline import store

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "store/x")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "write_whole", full)
        return w.run(*SMOKE)


@case("d", "tracker=wandb with a key and no network", "tracker=wandb works offline", "cannot be reached", code=0)
def wandb_without_network(w: Workshop) -> Outcome:
    with environment({"WANDB_API_KEY": "x" * 40, "WANDB_SILENT": "true", "WANDB_BASE_URL": "http://127.0.0.1:9"}):
        return w.run(*SMOKE, "tracker=wandb")


@case("d", "WANDB_BASE_URL is no address", "WANDB_BASE_URL=wandb.example is no address", "unset")
def no_address(w: Workshop) -> Outcome:
    with environment({"WANDB_BASE_URL": "wandb.example"}):
        return refused_before_work(w.run(*SMOKE, "tracker=wandb"))


@case(
    "d",
    "the facts file of another run is empty",
    "facts.csv is damaged: it is empty or cut off; restore it from git, or remove",
)
def empty_facts_of_another_run(w: Workshop) -> Outcome:
    write(w.folder / "results/gpt2/runs/0123456789ab/facts.csv", "")
    return refused_before_work(w.run(*SMOKE))


@case("d", "store/train is a file", "is a file, where the store has a folder")
def stage_is_a_file(w: Workshop) -> Outcome:
    write(w.folder / "store/train", "")
    return refused_before_work(w.run(*SMOKE))


@case("d", "distill.store prune beside a run that lost its run.json", "run.json is missing", "restore it from git")
def prune_without_a_description(w: Workshop) -> Outcome:
    assert w.run(*SMOKE).code == 0
    for run in (w.folder / "results").glob("gpt2/runs/*/run.json"):
        run.unlink()
    before = sorted((w.folder / "store").glob("*/*"))
    outcome = w.command("store", "prune", "--yes", f"--store={w.folder}/store", f"--results={w.folder}/results")
    assert sorted((w.folder / "store").glob("*/*")) == before
    return outcome


@case("d", "distill.list with a table's file that is not UTF-8", "is not the file of a table", code=0)
def list_with_a_damaged_table(w: Workshop) -> Outcome:
    write(w.folder / "own/experiments/mine/table.yaml", b"title: \xff\xfe\nrows:")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locations, "_user_folders", [])
        return w.command("list", "tables", "--config-dir", str(w.folder / "own"))


# --------------------------------------------------------------------------- e. one bad job spoils the others
@case("e", "a job of a sweep diverges", "failed", "earning rate", "table: ")
def one_diverges(w: Workshop) -> Outcome:
    outcome = w.run(*SMOKE, "-m", "train.student.lr=1e-4,1e30")
    (table,) = (w.folder / "results").glob("gpt2/runs/sweep-*.csv")
    lines = table.read_text().splitlines()
    assert len(lines) == 3 and "failed" in lines[2] and "reason" in lines[0], lines
    return outcome


@case("e", "a job of a sweep stops by a fault of the program", "failed", "RuntimeError: an accident", "table: ")
def one_has_an_accident(w: Workshop) -> Outcome:
    from distill import run

    original = run._measure

    def accident(composed):  # type: ignore[no-untyped-def]
        if composed.train.student.lr == 2e-4:
            raise RuntimeError("an accident")
        original(composed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_measure", accident)
        outcome = w.run(*SMOKE, "-m", "train.student.lr=2e-4,1e-4")
    (table,) = (w.folder / "results").glob("gpt2/runs/sweep-*.csv")
    assert len(table.read_text().splitlines()) == 3
    return Outcome(outcome.code, outcome.text.replace("Traceback", "Its traceback"))


@case("e", "all jobs of a sweep fail", "failed", "table: ")
def all_fail(w: Workshop) -> Outcome:
    outcome = w.run(*SMOKE, "-m", "train.student.lr=1e30,1e31")
    assert len(list((w.folder / "results").glob("gpt2/runs/sweep-*.csv"))) == 1
    return outcome


def _page(w: Workshop) -> tuple[dict[str, list[str]], str]:
    """The cells of the table by row, and its page."""
    table = w.folder / "results/micro/abkd/losses_gpt2"
    lines = [line.split(",") for line in table.with_suffix(".csv").read_text(encoding="utf-8").splitlines()]
    return {label: cells[1:] for label, _, *cells in lines}, table.with_suffix(".md").read_text(encoding="utf-8")


@case("e", "a row of a table stops by a fault of the program", "RuntimeError: an accident", "table: ")
def row_has_an_accident(w: Workshop) -> Outcome:
    from distill.pipeline import tables

    original = tables.measure

    def accident(row, needed):  # type: ignore[no-untyped-def]
        if row.label == "FKLD":
            raise RuntimeError("an accident")
        return original(row, needed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "measure", accident)
        outcome = w.command("table", *TABLE, *w.words)
    cells, page = _page(w)
    assert set(cells["FKLD"]) == {"failed"} and "Failed: FKLD (RuntimeError: an accident)." in page, page
    assert w.command("table", *TABLE, *w.words).code == 0
    cells, page = _page(w)
    assert "failed" not in cells["FKLD"] and "Failed:" not in page
    return Outcome(outcome.code, outcome.text.replace("Traceback", "Its traceback"))


@case("e", "the second job of a sweep has a damaged teacher", "job model.teacher.path=", "teacher: ", "it is empty")
def second_job_is_damaged(w: Workshop) -> Outcome:
    sound, bad = w.checkpoint("T"), w.with_weights("epoch=4", lambda s: s)
    (bad / "model.safetensors").write_bytes(b"")
    words = [word for word in w.of_pair() if not word.startswith("model.teacher.path")]
    return refused_before_work(w.run(*words, "loss=fkl", "-m", f"model.teacher.path={sound},{bad}"))


@case("e", "a row of a table diverges", "row Bad: ", "earning rate", "Failed: Bad (", "table: ")
def row_diverges(w: Workshop) -> Outcome:
    outcome = w.command("table", *TABLE, "row.Bad=loss=fkl train.student.lr=1e30", *w.words)
    cells, _ = _page(w)
    assert set(cells["Bad"]) == {"failed"} and "failed" not in cells["FKLD"], cells
    return outcome


@case("e", "every row of a table fails", "row Teacher: ", "Failed: Teacher (", "table: ")
def every_row_fails(w: Workshop) -> Outcome:
    outcome = w.command("table", *TABLE, "train.teacher.lr=1e30", "train.student.lr=1e30", *w.words)
    cells, _ = _page(w)
    assert "failed" in cells["FKLD"] and "failed" in cells["Teacher"], cells
    return outcome


# --------------------------------------------------------------------------- f. checks that a sister command lacks
def _unwritable(w: Workshop) -> str:
    return f"paths.results={write(w.folder / 'file', '')}/results"


@case("f", "distill.run with results that cannot be written", "is not a folder that can be written to")
def run_unwritable(w: Workshop) -> Outcome:
    return refused_before_work(w.command("run", *SMOKE, *w.words, _unwritable(w)))


@case("f", "distill.table with results that cannot be written", "is not a folder that can be written to")
def table_unwritable(w: Workshop) -> Outcome:
    return refused_before_work(w.command("table", *TABLE, *w.words, _unwritable(w)))


@case("f", "distill.table --dry-run with results that cannot be written", "is not a folder that can be written to")
def dry_run_unwritable(w: Workshop) -> Outcome:
    return refused_before_work(w.command("table", *TABLE, *w.words, _unwritable(w), "--dry-run"))


@(
    case("f", "distill.table with a broken checkpoint", "all rows, before the first", code=2)
    if False
    else case("f", "distill.table with a checkpoint that is damaged", "model.safetensors: it is empty")
)
def table_with_damaged_checkpoint(w: Workshop) -> Outcome:
    path = w.checkpoint("T") / "model.safetensors"
    path.write_bytes(b"")
    words = w.of_pair(teacher=path.parent)
    outcome = w.command("table", "abkd/losses_gpt2", *words[1:], "model.name=own", "rows=[FKLD,RKLD]", *w.words)
    assert len(outcome.errors) == 1, outcome.errors
    return refused_before_work(outcome)


@case("f", "distill.table with data that cannot be read", "train.jsonl:1: input is a number (0)")
def table_with_bad_data(w: Workshop) -> Outcome:
    w.data(train=[{**rows(1)[0], "input": 0}])
    words = w.of_pair()
    outcome = w.command("table", "abkd/losses_gpt2", *words[1:], "model.name=own", "rows=[FKLD,RKLD]", *w.words)
    assert len(outcome.errors) == 1, outcome.errors
    return refused_before_work(outcome)


# --------------------------------------------------------------------------- g. names become paths, cells, columns
@case("g", "model.name=org/model", "model.name: 'org/model' is no name")
def slash_in_a_name(w: Workshop) -> Outcome:
    return refused_before_work(w.run(*SMOKE, "model.name=org/model"))


@case("g", "data.name=../up", "data.name: '../up' is no name")
def path_as_a_name(w: Workshop) -> Outcome:
    return refused_before_work(w.run("model=gpt2", "data=jsonl", "data.name=../up"))


@case("g", "a set called training", "training: no name for a set")
def reserved_name(w: Workshop) -> Outcome:
    return refused_before_work(w.pair("loss=sft", "+data.eval.training.file=test.jsonl"))


@case("g", "a set called NA", code=0)
def set_called_na(w: Workshop) -> Outcome:
    w.data()
    outcome = w.pair("loss=sft", "+data.eval.NA.file=test.jsonl", "+data.eval.NA.title=NA")
    assert ",NA," in (w.folder / "results/gpt2/runs/long.csv").read_text()
    (table,) = [line for line in outcome.text.splitlines() if "Test" in line and "┃" in line]
    assert "NA" in table
    return outcome


@case("g", "rows called NA and null", code=0)
def row_called_na(w: Workshop) -> Outcome:
    words = [*TABLE, *w.words, "row.NA='loss=rkl'", "row.null='loss=jsd'"]
    outcome = w.command("table", *words)
    (lines,) = (w.folder / "results").glob("*/abkd/losses_gpt2.csv")
    starts = [line.split(",")[0] for line in lines.read_text().splitlines()]
    assert {"NA", "null"} <= set(starts), starts
    again = w.command("table", *words)
    assert again.code == 0 and NOTHING_MADE not in again.text
    return outcome


@case("g", "a row whose label has a line break", "row.", "'\\n', which cannot be seen")
def row_with_a_break(w: Workshop) -> Outcome:
    return refused_before_work(w.command("table", *TABLE, *w.words, "row.a\nb='loss=rkl'"))


@case("g", "a row whose label has a space that does not break", "row.", "'\\xa0', which cannot be seen")
def row_with_a_hidden_space(w: Workshop) -> Outcome:
    return refused_before_work(w.command("table", *TABLE, *w.words, "row.a\xa0b='loss=rkl'"))


# --------------------------------------------------------------------------- m. users and shells
@case("m", "files follow the umask", code=0)
def modes(w: Workshop) -> Outcome:
    outcome = w.run(*SMOKE)
    for path in (w.folder / "store").glob("*/*/model/*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o644, path
    return outcome


@case("m", "~ in the folders of a run", code=0)
def home(w: Workshop) -> Outcome:
    with environment({"HOME": str(w.folder)}):
        outcome = w.command("run", *SMOKE, "paths.store=~/s", "paths.results=~/r")
    assert (w.folder / "r" / "gpt2").is_dir() and not Path("~").exists()
    return outcome


@case("m", "~ in the folders of data and checkpoints", code=0)
def home_of_data(w: Workshop) -> Outcome:
    words = [word.replace(str(w.folder), "~") for word in w.of_pair()]
    with environment({"HOME": str(w.folder)}):
        return w.run(*words, "loss=sft")


@case("m", "~ in distill.store", "no such store")
def home_of_store(w: Workshop) -> Outcome:
    with environment({"HOME": str(w.folder)}):
        outcome = w.command("store", "list", "--store", "~/nothing")
    assert f"{w.folder}/nothing" in outcome.text
    return outcome


@case("m", "~ of a user who does not exist", "~nobody-here/x: no such folder")
def unknown_home(w: Workshop) -> Outcome:
    return refused_before_work(w.run(*SMOKE, "model.teacher.path=~nobody-here/x"))


@case("m", "RANK and WORLD_SIZE of another launcher in the shell", "left in the shell", "WORLD_SIZE", code=0)
def other_launcher(w: Workshop) -> Outcome:
    with environment({"RANK": "3", "WORLD_SIZE": "8"}):
        return w.run(*SMOKE)


@case("m", "accelerate's mixed precision in the shell", "left in the shell", "ACCELERATE_MIXED_PRECISION", code=0)
def mixed_precision_in_the_shell(w: Workshop) -> Outcome:
    with environment({"ACCELERATE_MIXED_PRECISION": "bf16"}):
        return w.run(*SMOKE)


@case("m", "several processes of MPI", "OMPI_COMM_WORLD_SIZE=4", "torchrun", "unset")
def mpi(w: Workshop) -> Outcome:
    with environment({"OMPI_COMM_WORLD_SIZE": "4"}):
        return refused_before_work(w.run(*SMOKE))


# --------------------------------------------------------------------------- n. paths in what is shared
@case("n", "absolute paths of teacher, student and data", code=0)
def absolute_paths(w: Workshop) -> Outcome:
    outcome = w.pair()
    _no_paths(w)
    return outcome


@case("n", "absolute paths of encoder and corpus in a table", code=0)
def absolute_paths_in_a_table(w: Workshop) -> Outcome:
    corpus = write(w.folder / "corpus.txt", "red old house near the river\n\n" * 60)
    words = [*w.of_pair(), f"data.pretrain.file={corpus}", f"eval.bertscore.encoder={_encoder(w)}"]
    words = [word for word in words if "bertscore.encoder=null" not in word]
    outcome = w.command("table", "abkd/losses_gpt2", *words[1:], "model.name=own", "rows=[FKLD]", *w.words)
    _no_paths(w)
    return outcome


@case("n", "distill.verify of a run whose teacher lay outside the project", "model.teacher.path was T-", "=FOLDER")
def verified_with_a_teacher_of_elsewhere(w: Workshop) -> Outcome:
    folders = {"model.teacher.id": "T", "model.teacher.path": "T", "model.student.id": "S"}
    w.of_pair()  # makes them
    given = [f"{key}={w.folder / name}" for key, name in folders.items()] + [f"data.root={w.data()}"]
    words = [*w.of_pair(), "data.eval={dolly: {title: Dolly Eval, file: test.jsonl}}", "model.name=own"]
    table = w.command("table", "abkd/losses_gpt2", *words[1:], "rows=[FKLD]", *w.words)
    assert table.code == 0, table.text
    cell = (str(w.folder / "results/own/abkd/losses_gpt2.csv"), "row=FKLD", "column=Dolly Eval")
    again = w.command("verify", *cell, *given, f"store={w.folder}/again")
    assert again.code == 0 and "equal to the byte" in again.text, again.text
    _no_paths(w)
    wrong = w.command("verify", *cell, "model.teacher.pat=/", f"store={w.folder}/again")
    assert wrong.code == 2 and "did you mean model.teacher.path" in wrong.text, wrong.text
    return w.command("verify", *cell, f"store={w.folder}/again")


def _no_paths(w: Workshop) -> None:
    files = [path for path in (w.folder / "results").rglob("*") if path.is_file() and path.suffix != ".png"]
    assert files
    for path in files:
        assert str(w.folder) not in path.read_text(encoding="utf-8", errors="replace"), path


# --------------------------------------------------------------------------- o. slow without a word
@case("o", "bf16 on a processor without its instructions", "times slower than in fp32", "train.precision=fp32")
def slow_bf16(w: Workshop) -> Outcome:
    speeds = {torch.bfloat16: 1.0, torch.float32: 230.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "products_per_second", speeds.__getitem__)
        return refused_before_work(w.pair("loss=sft", "train.precision=bf16"))


@case("o", "the same where everything is finished", "found finished", code=0)
def slow_bf16_finished(w: Workshop) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "products_per_second", {torch.bfloat16: 1.0, torch.float32: 2.0}.__getitem__)
        assert w.pair("loss=sft", "train.precision=bf16").code == 0
        patch.setattr(precision, "products_per_second", {torch.bfloat16: 1.0, torch.float32: 230.0}.__getitem__)
        return w.pair("loss=sft", "train.precision=bf16")


@case("o", "a row of 2 MB with overlong_prompt=cut", "1 prompts cut", code=0)
def long_row(w: Workshop) -> Outcome:
    w.data(train=[{**rows(1)[0], "input": "red old house " * 150_000}, *rows(16)])
    return w.pair("loss=sft", "train.overlong_prompt=cut")


@case("o", "no time is foretold by a formula", code=0)
def no_guesses(w: Workshop) -> Outcome:
    outcome = w.run(*SMOKE)
    lines = [line for line in outcome.text.splitlines() if line.startswith("to come:")]
    assert lines and not any(line.rstrip().endswith((" s", " min", " h")) for line in lines), lines
    return outcome


# --------------------------------------------------------------------------- q. messages that mislead
@case("q", "a path with = in it", code=0)
def path_with_equals(w: Workshop) -> Outcome:
    folder = w.folder / "epoch=3 (best)"
    w.checkpoint("T").rename(folder)
    words = [word.replace("'", "") for word in w.of_pair(teacher=folder)]
    return w.run(*words, "loss=fkl")


@case("q", "JSON that ends in a string", "not JSON (Unterminated string starting at column 17)")
def unterminated(w: Workshop) -> Outcome:
    w.data(train='{"instruction": "a", "output": "b"}\n{"instruction": "a\n')
    return refused_before_work(w.pair("loss=sft"))


@case(
    "q",
    "data.root is set, and its file has another name",
    "holds test.jsonl, training.jsonl, valid.jsonl",
    "data.train.file=NAME",
)
def other_file_name(w: Workshop) -> Outcome:
    folder = w.data()
    (folder / "train.jsonl").rename(folder / "training.jsonl")
    words = [word for word in w.of_pair()]
    (folder / "train.jsonl").unlink(missing_ok=True)
    return refused_before_work(w.run(*words, "loss=sft"))


@case("q", "data.root is no folder", "data.root=/nowhere: no such folder")
def root_is_no_folder(w: Workshop) -> Outcome:
    return refused_before_work(w.pair("loss=sft", "data.root=/nowhere"))


@case("q", "runs of a sweep that share a label", "]: train.student.lr=", code=0)
def shared_label(w: Workshop) -> Outcome:
    return w.run(*SMOKE, "-m", "train.student.lr=1e-4,1e-3")


@case("q", "rows=[fkld]", "no row is named fkld; did you mean FKLD")
def row_in_lower_case(w: Workshop) -> Outcome:
    return refused_before_work(
        w.command("table", "abkd/losses_gpt2", "model=micro", "debug=smoke", "rows=[fkld]", *w.words)
    )


@case("q", "model.lora.targets=all-linear", code=0)
def all_linear(w: Workshop) -> Outcome:
    return w.run("model=openllama2", "debug=smoke", "loss=sft", "model.lora.targets=all-linear")


@case(
    "q",
    "targets alone for a pair without adapters",
    "model.lora: this pair has no adapters",
    "such as 'model.lora={r: 16",
)
def targets_alone(w: Workshop) -> Outcome:
    return refused_before_work(w.run(*SMOKE, "model.lora.targets=all-linear"))


@case("q", "a sweep without jobs", "a sweep without jobs")
def no_jobs(w: Workshop) -> Outcome:
    return refused_before_work(w.run(*SMOKE, "-m", "seed=range(1,1)"))


@case("e", "the only row of a figure diverges", "row epsilon 1e-7: ", "Failed: epsilon 1e-7 (", "figure: ")
def row_of_a_figure_diverges(w: Workshop) -> Outcome:
    words = ("mgsr/fig_limits", "model=micro", "debug=smoke", "rows=[epsilon 1e-7]", "seed=10")
    return w.command("table", *words, "train.student.lr=1e30", *w.words)


@case("q", "a sweep over paths with = in them", "]: model.teacher.path=", code=0)
def sweep_over_paths(w: Workshop) -> Outcome:
    folders = [w.checkpoint("T", seed=seed).rename(w.folder / f"epoch={seed}") for seed in (3, 4)]
    words = [word for word in w.of_pair() if not word.startswith("model.teacher.path")]
    return w.run(*words, "loss=fkl", "-m", f"model.teacher.path={folders[0]},{folders[1]}")


@case("q", "seed=1.5", "1.5 is no whole number; write seed=[10,20,30]")
def broken_seed(w: Workshop) -> Outcome:
    return refused_before_work(w.run(*SMOKE, "seed=1.5"))


@case("q", "seed=10-14", "seed: 10-14 is no list of numbers; write seed=[10,11,12,13,14]")
def range_of_seeds(w: Workshop) -> Outcome:
    return refused_before_work(w.run(*SMOKE, "seed=10-14"))


@case("q", "eval.sets=dolly", "a list is needed; write eval.sets=[dolly]")
def word_for_a_list(w: Workshop) -> Outcome:
    return refused_before_work(w.run("model=micro", "loss=sft", "eval.sets=dolly"))


@case("q", "an empty path", "model.teacher.path: empty")
def empty_path(w: Workshop) -> Outcome:
    return refused_before_work(w.run(*SMOKE, "model.teacher.path="))


@case("q", "a value without a key", "oops: not an override")
def without_key(w: Workshop) -> Outcome:
    return refused_before_work(w.run(*SMOKE, "oops"))
