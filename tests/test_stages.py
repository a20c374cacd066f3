"""The pipeline on smoke models: every architecture, resuming, supplied checkpoints, the stored teacher, the rows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from distill.base.errors import UserError
from distill.config import load
from distill.config.evaluation import BertScoreConfig
from distill.evaluation.agreement import agreement
from distill.evaluation.bertscore import WHEEL
from distill.losses import build
from distill.models.load import load_model, load_tokenizer
from distill.models.tokenizers import pad_id
from distill.pipeline.measure import Files, measure
from distill.pipeline.plan import Plan
from distill.pipeline.stages import Stages
from distill.pipeline.store import MANIFEST, Store
from distill.pipeline.values import METRICS, Row, _cost
from distill.results import long
from distill.results.long import TRAINING
from distill.teacher.signal import HEAD, HIDDEN, INDEX, StoredTeacher, write_store
from distill.training.answers import read_answers
from distill.training.encoding import training_encoder
from distill.training.trainer import DistillTrainer

METHODS = ["sft", "kd", "seqkd", "imitkd", "gkd", "minillm", "distillm", "abkd", "akl"]
MODELS = ["gpt2", "opt", "llama2", "smollm2"]  # GPT-2, OPT, LLaMA with LoRA, LLaMA pruned


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = {}
    for file in sorted((folder / "model").glob("*.safetensors")):
        state |= load_file(file)
    return state


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("loss", ["ab", "sft"])
def test_every_architecture_end_to_end(smoke, model, loss, tmp_path, capsys):
    config = smoke(f"model={model}", f"loss={loss}", "seed=[10,20]")
    row, files = Row("row", config), Files(tmp_path / "results" / "runs", "runs")
    lines, told = measure(row, files)
    cost, agrees = lines["dataset"] == TRAINING, lines["metric"].str.startswith("agreement")
    topic = lines["metric"].str.contains(":")
    cost, agrees, texts = lines[cost], lines[agrees], lines[~(cost | agrees | topic)]
    assert len(agrees) == (len(config.data.eval) * 3 * 2 if loss == "ab" else 0)  # fine-tuned alone, it has no teacher
    assert agrees["value"].astype(float).ge(0).all() and told is not None
    assert len(texts) == len(config.data.eval) * len(METRICS) * 2
    assert lines["value"].notna().all() and (texts["n"] == 4).all()
    spent = cost[cost["seed"] == 20].set_index("metric")["value"].astype(float)
    steps = spent["seconds_per_sample"] * 21 / 60  # storing the signal comes on top
    assert spent["peak_gb"] > 0.05 and 0 < steps <= spent["minutes"] * (1 + 1e-9)
    if model == "llama2":
        student = row.plan.store.folder(row.plan.student) / "model"
        assert (student / "adapter_model.safetensors").is_file() and not (student / "model.safetensors").exists()
    shutil.rmtree(config.paths.store)  # a finished row needs no artifacts
    again, told = measure(Row("row", config), files)
    assert told is None and again["value"].tolist() == lines["value"].tolist()
    assert "found finished" in capsys.readouterr().out and not Path(config.paths.store).joinpath("train").exists()


@pytest.mark.parametrize("model", MODELS)
def test_every_method_trains_on_every_architecture(smoke, model):
    """The second epoch's rollouts and replays included: eight rows a step, sixteen in a rollout."""
    for method in METHODS:
        more = ["sampler.threshold=0.9", "sampler.capacity=8"] if method == "distillm" else []
        config = smoke(f"model={model}", f"method={method}", *more)
        twice = config.train.model_copy(update={"student": config.train.student.model_copy(update={"epochs": 2})})
        plan = Plan(config.model_copy(update={"train": twice, "eval": config.eval}))
        student = weights_of_model(Stages(plan).student())
        curve = pd.read_csv(plan.store.folder(plan.student) / "curve.csv")
        assert curve["loss"].notna().sum() == 6 and curve[["eval_loss", "eval_rouge_l"]].notna().all(1).sum() >= 2
        shares = curve["student_share"].dropna().tolist()
        expected = ("imitkd", "minillm", "gkd", "distillm")
        assert len(shares) == (6 if method in expected else 0), method
        if method in ("imitkd", "minillm"):
            assert shares == [1.0] * 6
        written = plan.store.manifest(plan.student)["written"]
        assert (written is not None and written["texts"] > 0) == (method in expected), (method, written)
        assert all(torch.isfinite(w).all() for w in student.values())


@pytest.mark.parametrize("method", ["imitkd", "minillm"])
def test_published_quirks_bf16_and_plain_text_go_together(smoke, tmp_path, method):
    """On LLaMA, whose rotary positions must not be rounded; the corpus raises the loss by its cross-entropy."""
    (tmp_path / "corpus.txt").write_text("\n\n".join(f"The river runs to the sea, number {n}." for n in range(80)))
    curves = {}
    for corpus in ([], [f"data.pretrain.file={tmp_path}/corpus.txt"]):
        words = ["model=smollm2", f"method={method}", "preset=reference", "train.precision=bf16", *corpus]
        plan = Plan(smoke(*words))
        stages = Stages(plan)
        stages.student()
        curves[bool(corpus)] = pd.read_csv(plan.store.folder(plan.student) / "curve.csv")["loss"].dropna()
    assert (curves[True] - curves[False]).between(4, 8).all()  # log 400 = 6.0 nats for a random model
    if method == "imitkd":
        assert plan.config.sampler.parameters["draw"] == "buffer" and plan.config.sampler.switches["draw"] == "fresh"


def weights_of_model(weights):
    return dict(load_model(weights).named_parameters())


def test_the_teacher_answers_once_and_its_text_is_trained_on(smoke, capsys):
    plan = Plan(smoke("model=gpt2", "method=seqkd"))
    Stages(plan).student()
    rows = read_answers(plan.store.folder(plan.answers)).rows
    told = plan.store.manifest(plan.answers)
    assert [r.id for r in rows] == [e.id for e in plan.data[0].examples] and told["rows"] == len(rows) == 21
    assert told["length"] == pytest.approx(sum(len(r.response) for r in rows) / 21) and 0 <= told["eos_rate"] <= 100
    own = training_encoder(plan.config, load_tokenizer(Stages(plan).teacher())).pairs(plan.data[0].examples, 512).rows
    assert [r.prompt for r in rows] == [r.prompt for r in own] and any(
        a.response != b.response for a, b in zip(rows, own, strict=True)
    )
    capsys.readouterr()
    distilled = Plan(smoke("model=gpt2", "loss=fkl", "sampler=teacher"))  # its hidden states over its own text
    Stages(distilled).student()
    out = capsys.readouterr().out
    assert "answers gpt2-teacher: found finished" in out and "signal gpt2-teacher: making it" in out
    assert distilled.signal.key != Plan(smoke("model=gpt2", "loss=fkl")).signal.key
    assert distilled.start == plan.start  # SeqKD starts where the distilled students do


def test_five_seeds_one_teacher_one_student(smoke, capsys):
    for seed in (10, 20, 30):
        Stages(Plan(smoke("model=gpt2", "loss=akl", f"seed={seed}"))).evaluate("student", [seed])
    out = capsys.readouterr().out
    for made in ("train gpt2-teacher: making", "train gpt2-start: making", "train gpt2-student-akl: making"):
        assert out.count(made) == 1
    config = smoke("model=gpt2", "loss=akl", "seed=[10,20,30]")
    together = Stages(Plan(smoke("model=gpt2", "loss=akl", f"paths.store={config.paths.store}2")))
    singles = Stages(Plan(config)).evaluate("student", [10, 20, 30])
    assert together.evaluate("student", [10, 20, 30]) == singles  # one load of five seeds writes the same texts


def test_a_finished_student_is_evaluated_without_its_inputs(smoke, capsys):
    plan = Plan(smoke("model=gpt2", "loss=fkl"))
    Stages(plan).student()
    for stage in ("base", "signal"):
        shutil.rmtree(Path(plan.config.paths.store) / stage)
    capsys.readouterr()
    Stages(plan).evaluate("student", [10])
    assert "making it" not in capsys.readouterr().out


def test_two_losses_share_teacher_signal_and_start(smoke, capsys):
    for loss in ("fkl", "ab"):
        Stages(Plan(smoke("model=gpt2", f"loss={loss}"))).student()
    out = capsys.readouterr().out
    for stage in ("train gpt2-teacher", "signal gpt2-teacher", "train gpt2-start"):
        assert out.count(f"{stage}: making it") == 1 and out.count(f"{stage}: found finished") == 1


def test_sft_needs_no_teacher_and_no_start(smoke, capsys):
    Stages(Plan(smoke("model=gpt2", "loss=sft"))).student()
    out = capsys.readouterr().out
    assert "gpt2-teacher" not in out and "gpt2-start" not in out


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stored_teacher_is_the_live_one(smoke, precision, tmp_path):
    """The same curve to rounding: losses, gradients' norms, validation."""
    curves = {}
    for signal in ("live", "stored"):
        config = smoke("model=opt", "loss=ab", f"train.precision={precision}", f"train.teacher_signal={signal}",
                       f"paths.store={tmp_path}/{signal}")  # fmt: skip
        plan = Plan(config)
        Stages(plan).student()
        curves[signal] = pd.read_csv(plan.store.folder(plan.student) / "curve.csv")
        assert plan.store.has(plan.signal) == (signal == "stored")
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    for column in ("loss", "grad_norm", "eval_loss", "eval_kd"):
        np.testing.assert_allclose(curves["stored"][column], curves["live"][column], rtol=tolerance)


def test_a_store_that_does_not_fit_its_rows_is_refused(smoke):
    stages = Stages(Plan(smoke("model=gpt2", "loss=fkl")))
    teacher = StoredTeacher(stages.signal(stages.teacher()))
    with pytest.raises(UserError, match="example nobody: 1 response positions"):
        teacher(torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool), ["nobody"])


@pytest.mark.parametrize("file", [HIDDEN, INDEX, HEAD])
def test_a_store_that_was_cut_short_is_refused_and_made_again(smoke, capsys, file):
    plan = Plan(smoke("model=gpt2", "loss=fkl"))
    stages = Stages(plan)
    folder = stages.signal(stages.teacher())
    whole = {f.name: f.read_bytes() for f in folder.iterdir()}
    (folder / file).write_bytes(whole[file][: len(whole[file]) * 2 // 3])
    with pytest.raises(UserError, match="remove the folder"):
        StoredTeacher(folder)
    capsys.readouterr()
    assert Stages(Plan(plan.config)).signal(stages.teacher()) == folder
    assert "cannot be read" in capsys.readouterr().out
    assert {f.name: f.read_bytes() for f in folder.iterdir() if f.name != MANIFEST} == {
        name: content for name, content in whole.items() if name != MANIFEST
    }


def test_another_teacher_is_another_store(smoke):
    keys = {Plan(smoke("model=gpt2", "loss=fkl", f"train.shared_seed={seed}")).signal.key for seed in (1, 2)}
    assert len(keys) == 2


def test_a_teacher_trained_again_gets_a_store_of_its_own(smoke, capsys):
    """Removed and made again under the same key with other weights, as another machine would."""
    plan = Plan(smoke("model=gpt2", "loss=fkl"))
    stages = Stages(plan)
    folder = stages.signal(stages.teacher())
    hidden = (folder / HIDDEN).read_bytes()
    capsys.readouterr()
    stages.signal(stages.teacher())
    assert "another copy" not in capsys.readouterr().out
    shutil.rmtree(plan.store.folder(plan.teacher))
    base = stages.base("teacher")
    weights = load_model(base)
    with torch.no_grad():
        weights.get_input_embeddings().weight.mul_(1.01)
    weights.save_pretrained(base.base)
    assert stages.signal(stages.teacher()) == folder
    assert "another copy" in capsys.readouterr().out
    assert (folder / HIDDEN).read_bytes() != hidden


def test_a_full_disk_is_refused_before_writing(smoke, monkeypatch):
    stages = Stages(Plan(smoke("model=gpt2", "loss=fkl")))
    teacher = stages.teacher()
    monkeypatch.setattr("distill.teacher.signal.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(UserError, match=r"has 0 bytes free; set train\.teacher_signal=live"):
        stages.signal(teacher)
    assert not list((Path(stages.config.paths.store) / "signal").iterdir())


KILL = """
import os, sys
from distill.config import load
from distill.pipeline.plan import Plan
from distill.pipeline.stages import Stages
from distill.training import callbacks
step = int(sys.argv[1])
original = callbacks.Progress.on_step_end
def stop(self, args, state, control, **kwargs):
    original(self, args, state, control, **kwargs)
    if state.global_step == step and "student" in self.label:
        os._exit(9)
callbacks.Progress.on_step_end = stop
Stages(Plan(load(sys.argv[2:]))).student()
"""


KILL_IN_VALIDATION = """
import os, sys
from distill.config import load
from distill.pipeline.plan import Plan
from distill.pipeline.stages import Stages
from distill.training import trainer
original = trainer.DistillTrainer.evaluate
def stop(self, *args, **kwargs):
    if self.model.divergence is not None and sys.argv[1] == "kill":
        os._exit(9)
    return original(self)
trainer.DistillTrainer.evaluate = stop
Stages(Plan(load(sys.argv[2:]))).student()
"""


def test_a_run_stopped_in_an_epochs_validation_loses_nothing(tmp_path):
    """A step that ends an epoch is saved after its validation only, so that the validation is done again."""
    words = ["debug=smoke", "model=gpt2", "loss=fkl", "train.save_steps=3", f"paths.store={tmp_path}/store"]

    def run(how):
        command = [sys.executable, "-c", KILL_IN_VALIDATION, how, *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert run("kill").returncode == 9
    done = run("go on")
    assert done.returncode == 0, done.stderr
    plan = Plan(load(words))
    curve = pd.read_csv(plan.store.folder(plan.student) / "curve.csv")
    assert curve["eval_loss"].notna().sum() == 1


@pytest.mark.parametrize(
    ("model", "row"),
    [
        ("gpt2", ["loss=skd", "sampler=adaptive", "sampler.threshold=0.9"]),
        ("gpt2", ["loss=skd", "loss.optimizer.lr=0.01", "loss.optimizer.max_grad_norm=0.1"]),
        ("openllama2", ["loss=fkl"]),
        ("gpt2", ["method=minillm"]),
    ],
)
def test_a_killed_training_goes_on_and_ends_in_the_same_weights(tmp_path, model, row):
    """Killed inside an epoch, between two checkpoints; LoRA's dropout shows that random states come back too, skd that
    a loss's own parameters and their optimizer do, and the others that a sampler's buffer does."""
    words = ["debug=smoke", f"model={model}", *row, "train.save_steps=1", f"paths.results={tmp_path}/results"]

    def run(store, step):
        command = [sys.executable, "-c", KILL, str(step), *words, f"paths.store={tmp_path}/{store}"]
        return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})

    assert run("killed", 2).returncode == 9
    config = load([*words, f"paths.store={tmp_path}/killed"])
    plan = Plan(config)
    partial = next((tmp_path / "killed" / "train").glob(".partial-*student*"))
    assert list((partial / "checkpoints").glob("checkpoint-*")) and not plan.store.has(plan.student)
    resumed = run("killed", -1)
    assert resumed.returncode == 0 and "going on from checkpoint-1" in resumed.stdout, resumed.stderr
    assert run("whole", -1).returncode == 0
    whole = weights_of(Store(tmp_path / "whole").folder(plan.student))
    killed = weights_of(plan.store.folder(plan.student))
    assert whole.keys() == killed.keys() and whole
    for name in whole:
        assert torch.equal(whole[name], killed[name]), name
    start = weights_of(plan.store.folder(plan.start))
    assert any(not torch.equal(start[n], whole[n]) for n in whole if n in start)


def test_supplied_teacher_and_student(smoke, tmp_path):
    """A folder in place of a trained teacher: nothing is trained for it, and its content is part of the key."""
    plan = Plan(smoke("model=gpt2", "loss=fkl"))
    teacher, start = Stages(plan).teacher(), Stages(plan).start()
    own = load(["model=gpt2", "loss=fkl", "data=micro", "data.generator.train=21", "data.generator.valid=6",
                "data.generator.eval=4", f"model.teacher.path={teacher.base}", f"model.student.path={start.base}",
                "train.student.epochs=1", "eval.max_new_tokens=8", f"paths.store={tmp_path}/own"])  # fmt: skip
    given = Plan(own)
    Stages(given).student()
    made = [e.name for e in given.store.entries()]
    assert len(made) == 2 and all("teacher" not in n or n.startswith("signal/") for n in made)
    shutil.copytree(teacher.base, tmp_path / "other")
    (tmp_path / "other" / "note.txt").write_text("changed")
    changed = own.model_copy(update={"model": own.model.model_copy(update={
        "teacher": own.model.teacher.model_copy(update={"path": str(tmp_path / "other")})})})  # fmt: skip
    assert Plan(changed).student.key != given.student.key


def test_an_adapter_lies_over_what_its_training_started_from(smoke, tmp_path):
    """A supplied student under LoRA: the finished adapter is evaluated over it, not over the pair's own base."""
    plan = Plan(smoke("model=llama2", "loss=sft"))
    base = Stages(plan).base("student").base
    own = load(["model=llama2", "loss=sft", "data=micro", "data.generator.train=21", "data.generator.valid=6",
                "data.generator.eval=4", f"model.student.path={base}", "train.student.epochs=1",
                "eval.max_new_tokens=8", f"paths.store={tmp_path}/own"])  # fmt: skip
    trained = Stages(Plan(own)).student()
    assert trained.base == base and trained.adapter is not None
    assert Stages(Plan(own)).student() == trained  # and so when it is found finished


def test_base_weights_depend_on_what_made_them():
    def student(*words):
        return Plan(load(list(words))).base("student").key

    assert student("model=micro") != student("model=micro", "data.template=alpaca")
    cut = ["model=smollm2", "data=micro"]
    assert len({student(*cut), student(*cut, "data.template=alpaca"), student(*cut, "train.max_length=300")}) == 3


def test_a_training_that_fails_early_leaves_no_folder(smoke):
    plan = Plan(smoke("model=gpt2", "loss=sft", "train.student.lr=1e30"))
    with pytest.raises(UserError, match=r"nan|inf"):
        Stages(plan).student()
    assert not list(plan.store.folder(plan.student).parent.iterdir())


def test_teacher_rows_name_the_teachers_seed(smoke, tmp_path):
    row = Row("Teacher", smoke("model=gpt2", "loss=sft", "train.shared_seed=5", "train.seed=6"), "teacher")
    lines, _ = measure(row, Files(tmp_path / "results" / "x", "t"))
    assert set(lines["train_seed"]) == {5}


def test_keys_follow_what_determines_and_nothing_else(smoke):
    base = Plan(smoke("model=gpt2", "loss=ab"))
    same = ["train.micro_batch_size=2", "eval.batch_tokens=99", "train.save_steps=1", "tracker=wandb", "seed=[1,2]",
            "paths.store=/elsewhere"]  # fmt: skip
    for override in same:
        plan = Plan(smoke("model=gpt2", "loss=ab", override))
        assert plan.run_key("student") == base.run_key("student"), override
    for override in [
        "loss.alpha=0.3",
        "train.teacher_signal=live",
        "train.seed=1",
        "train.student.lr=1e-3",
        "train.precision=bf16",
        "model=opt",
    ]:
        assert Plan(smoke("model=gpt2", "loss=ab", override)).student.key != base.student.key, override
    other = Plan(smoke("model=gpt2", "loss=ab", "train.seed=1"))
    assert (other.teacher.key, other.start.key) == (base.teacher.key, base.start.key)  # training seeds share both
    whole = smoke("model=gpt2", "loss=ab", "preset.loss_mean=micro_batches")  # smoke's own micro-batch is 4
    split = Plan(whole.model_copy(update={"train": whole.train.model_copy(update={"micro_batch_size": 2})}))
    assert split.student.key != Plan(whole).student.key and Plan(whole).student.key != base.student.key
    switched = Plan(smoke("model=gpt2", "loss=ab", "preset.ab_lines=published"))
    assert switched.student.key != base.student.key and switched.teacher.key == base.teacher.key
    other = Plan(smoke("model=gpt2", "loss=ab", "train.shared_seed=1"))
    assert base.base("student").key != other.base("student").key and base.start.key != other.start.key
    decoded = Plan(smoke("model=gpt2", "loss=ab", "eval.temperature=0.7"))
    assert decoded.student.key == base.student.key and decoded.run_key("student") != base.run_key("student")


def test_what_is_to_come_is_told_before_the_first_stage(smoke):
    plan = Plan(smoke("model=gpt2", "loss=skd"))
    stages = Stages(plan)
    told = stages.ahead("student")
    assert list(told) == [plan.teacher.label, f"{plan.signal.label} signal", plan.start.label, plan.student.label]
    assert not any(plan.store.has(spec) for spec in (plan.teacher, plan.signal, plan.start, plan.student))
    student, start, signal = told[plan.student.label], told[plan.start.label], told[f"{plan.signal.label} signal"]
    stages.student()
    network = build("skd", **plan.config.loss.parameters)
    network.prepare(stages._shape("student").classes, torch.device("cpu"))
    assert student.parts["loss's own"] == 20 * sum(p.numel() for p in network.parameters()) > 0
    assert "teacher" in student.parts and "teacher" not in start.parts
    assert signal.disk == plan.store.manifest(plan.signal)["bytes"]  # told exactly
    assert stages.ahead("student") == {} == stages.ahead("teacher")


def test_manifests_tell_what_was_done(smoke):
    plan = Plan(smoke("model=smollm2", "loss=fkl"))
    Stages(plan).student()
    manifest = json.loads((plan.store.folder(plan.student) / MANIFEST).read_text())
    assert manifest["rows"] == {"train": 21, "valid": 6} and manifest["steps"] == 3 and manifest["seconds"] > 0
    assert 0 < manifest["seconds_per_step"] * manifest["steps"] < manifest["seconds"]  # no validation in it
    assert manifest["samples"] == 21 and manifest["peak_bytes"] > 50e6
    assert "rouge_l" in manifest["best_metric"] and manifest["tokens"]["eos"] == 0
    base = plan.store.manifest(plan.base("student"))
    assert len(base["layers"]) == 2 and len(base["influence"]) == 3 and base["parameters"] > 0
    curve = pd.read_csv(plan.store.folder(plan.student) / "curve.csv")
    assert curve["loss"].notna().sum() == 3 and curve["eval_rouge_l"].notna().sum() == 1


def test_bertscore_and_exposure_bias_stand_beside_a_row(smoke, tmp_path):
    """The teacher's texts are there first, as in a table; a row measured without BERTScore gets it later."""
    plain = smoke("model=gpt2", "loss=fkl", "seed=[10,20]", "eval.sets=[dolly]")
    scored = plain.model_copy(
        update={"eval": plain.eval.model_copy(update={"bertscore": BertScoreConfig(encoder=WHEEL)})}
    )
    files = Files(tmp_path / "out", "t")
    measure(Row("Teacher", plain, "teacher"), files)
    lines, _ = measure(Row("FKL", plain), files)
    assert set(lines["metric"]) >= {"exaccerr:8"} and not lines["metric"].str.startswith("bertscore").any()
    assert lines[lines["metric"] == "exaccerr:8"]["value"].astype(float).abs().gt(0).all()
    assert Row("FKL", plain).run == Row("FKL", scored).run
    lines, told = measure(Row("FKL", scored), files)
    mine = lines[lines["metric"] == f"bertscore:{WHEEL}"]
    assert told is not None and sorted(mine["seed"]) == [10, 20]
    scores = long.read(files.scores, long.SCORES)
    scores = scores[scores["row"] == "FKL"]
    assert len(scores) == 4 and scores["bertscore"].notna().all() and set(scores["encoder"]) == {WHEEL}
    assert scores["bertscore"].mean() == pytest.approx(mine["value"].astype(float).mean(), abs=1e-3)
    assert measure(Row("FKL", scored), files)[1] is None  # found finished
    shallow = scored.eval.model_copy(update={"bertscore": BertScoreConfig(encoder=WHEEL, layers=2)})
    measure(Row("FKL", scored.model_copy(update={"eval": shallow})), files)
    other = long.read(files.scores, long.SCORES)
    other = other[other["row"] == "FKL"]  # another encoder's take the place of the first's
    assert (
        len(other) == 4
        and set(other["encoder"]) == {f"{WHEEL}@2"}
        and (other["bertscore"].to_numpy() != scores["bertscore"].to_numpy()).all()
    )
    before = files.scores.read_bytes()
    measure(Row("FKL", scored.model_copy(update={"eval": shallow})), files)
    assert files.scores.read_bytes() == before
    files.scores.unlink()  # a stop between values and scores, or the file moved away
    measure(Row("FKL", scored), files)
    assert len(long.read(files.scores, long.SCORES)) == 4


def test_students_of_one_teacher_share_what_it_read(smoke, tmp_path, monkeypatch):
    """References and the teacher's own texts are read by it once; its values are those of a live teacher."""
    files, read = Files(tmp_path / "out", "t"), []
    original = write_store
    monkeypatch.setattr("distill.pipeline.stages.write_store", lambda *a: read.append(len(a[1])) or original(*a))
    measure(Row("Teacher", smoke("model=gpt2", "loss=fkl", "eval.sets=[dolly]"), "teacher"), files)
    for loss in ("fkl", "rkl"):
        row = Row(loss, smoke("model=gpt2", f"loss={loss}", "eval.sets=[dolly]"))
        measure(row, files)
    assert read == [27, 4, 4]  # training and validation rows, references, own texts
    plan, stages = row.plan, Stages(row.plan)
    student, teacher = (load_model(w).eval() for w in (stages.student(), stages.teacher()))
    tokenizer = load_tokenizer(stages.student())
    rows = training_encoder(plan.config, tokenizer).pairs(plan.sets["dolly"].examples, 512).rows
    live, told = (
        agreement(student, teacher, rows, pad_id(tokenizer)),
        plan.store.manifest(plan.agreement(plan.sets["dolly"])),
    )
    for name, value in live.items():
        assert told[name] == pytest.approx(value, rel=1e-5), name


def test_a_metric_that_came_later_writes_no_text_again(smoke, tmp_path, capsys):
    plain = smoke("model=gpt2", "loss=sft", "seed=[10]", "eval.sets=[dolly]")
    files = Files(tmp_path / "out", "t")
    measure(Row("SFT", plain), files)
    shutil.rmtree(plain.paths.store)
    scored = plain.model_copy(
        update={"eval": plain.eval.model_copy(update={"bertscore": BertScoreConfig(encoder=WHEEL)})}
    )
    lines, told = measure(Row("SFT", scored), files)
    assert told is None and len(lines) and "so BERTScore is left out" in capsys.readouterr().out
    assert not Path(plain.paths.store).exists()


def test_metrics_of_kept_texts_are_added_and_name_the_commit_that_wrote_them(smoke, tmp_path):
    row, files = Row("SFT", smoke("model=gpt2", "loss=sft", "seed=[10]", "eval.sets=[dolly]")), Files(tmp_path, "t")
    before, _ = measure(row, files)
    manifest = row.plan.store.folder(row.plan.evaluation("student", row.plan.sets["dolly"], 10)) / MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"commit": "0123456789"}))
    kept = before[before["metric"] != "exact_match"]  # as a version kept them that had no exact match
    kept.to_csv(files.values, index=False)
    after, told = measure(row, files)
    assert told is None
    (added,) = after[after["metric"] == "exact_match"].to_dict("records")
    assert added["commit"] == "0123456789" != before["commit"][0]
    assert added["value"] == before[before["metric"] == "exact_match"]["value"].item()
    assert len(after) == len(before)
    assert added["engine"] == "transformers" and added["decode"] == "sample T=1 max=8"


def test_a_peak_that_cannot_be_counted_is_not_told(smoke, monkeypatch):
    monkeypatch.setattr("distill.pipeline.store.reset_peak", lambda: False)
    row = Row("SFT", smoke("model=gpt2", "loss=sft"))
    Stages(row.plan).student()
    assert row.plan.store.manifest(row.plan.student)["peak_bytes"] is None
    assert not list(_cost(row))


def test_the_best_checkpoint_is_kept(smoke, monkeypatch):
    """By the metric that the schedule names, also when it is not the last one."""
    told = iter([3.0, 9.0, 5.0])
    monkeypatch.setattr("distill.training.job._scorer", lambda *_: lambda _: next(told))
    saved = {}
    original = DistillTrainer._save

    def save(self, output_dir=None, state_dict=None):
        saved[self.state.global_step] = {n: p.detach().clone() for n, p in self.model.student.named_parameters()}
        original(self, output_dir, state_dict)

    monkeypatch.setattr(DistillTrainer, "_save", save)
    config = smoke("model=gpt2", "loss=sft")
    schedule = config.train.student.model_copy(update={"epochs": 3})
    plan = Plan(config.model_copy(update={"train": config.train.model_copy(update={"student": schedule})}))
    Stages(plan).student()
    assert plan.store.manifest(plan.student)["best_metric"] == {"rouge_l": 9.0, "step": 6}
    kept = weights_of(plan.store.folder(plan.student))
    assert sorted(saved) == [3, 6, 9] and all(torch.equal(kept[n], saved[6][n]) for n in kept)
    assert any(not torch.equal(kept[n], saved[9][n]) for n in kept)


def test_wandb_goes_offline_one_run_a_stage(smoke, tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    plan = Plan(smoke("model=gpt2", "loss=fkl", "tracker=wandb"))
    Stages(plan).student()
    runs = list((tmp_path / "store" / "wandb").glob("offline-run-*"))
    assert len(runs) == 3  # teacher, start, student


def test_columns_that_came_later_are_filled(tmp_path):
    path, few = tmp_path / "long.csv", ["row", "run", "stage", "step"]
    long.append(path, [{"row": "a", "run": "1", "stage": "s, t", "step": 3}], few, long.CURVE_KEY)
    wide = [*few, "threshold", "eos_rate"]
    assert long.read(path, wide)["eos_rate"].isna().all()
    long.append(path, [{"row": "b", "run": "2", "stage": "s", "step": 4, "eos_rate": 5.5}], wide, long.CURVE_KEY)
    assert path.read_text() == 'row,run,stage,step,threshold,eos_rate\na,1,"s, t",3,,\nb,2,s,4,,5.5\n'


def test_long_files_refuse_other_columns(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="move it away"):
        long.read(path, long.VALUES)


TOGETHER = [["loss=ab", "sampler=teacher"], ["method=minillm"],
            ["loss=alphanet", "loss.per=batch", "sampler=adaptive", "sampler.threshold=0.9"]]  # fmt: skip


@pytest.mark.parametrize("row", TOGETHER)
def test_two_processes_train_as_one(tmp_path, row):
    """torchrun over gloo: the global batch, its gradient and the results files are those of one process.

    AlphaNet per batch settles on the alpha whose sum over both processes' tokens is larger; what the student writes
    depends on the prompt and the step alone, and the processes share buffer and rollout.
    """
    words = ["-m", "distill.run", *row, "model=gpt2", "debug=smoke"]

    def run(name, *launcher):
        folders = [f"paths.store={tmp_path}/{name}", f"paths.results={tmp_path}/{name}-results"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*launcher, *words, *folders], capture_output=True, text=True, check=False, env=environment
        )
        assert done.returncode == 0, done.stderr[-2000:]
        (student,) = (tmp_path / name / "train").glob("*student*")
        return pd.read_csv(student / "curve.csv"), pd.read_csv(tmp_path / f"{name}-results/gpt2/runs/long.csv")

    one_curve, one_values = run("one", sys.executable)
    two_curve, two_values = run(
        "two", sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"
    )
    for column in ("loss", "grad_norm", "eval_loss"):
        np.testing.assert_allclose(two_curve[column], one_curve[column], rtol=1e-5)
    assert len(two_values) == len(one_values) and two_values["run"].tolist() == one_values["run"].tolist()
