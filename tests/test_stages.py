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
from distill.pipeline.keys import VERSIONS
from distill.pipeline.nodes import facts_of, upcoming
from distill.pipeline.plan import Plan
from distill.pipeline.rows import Row
from distill.pipeline.store import MANIFEST, Store
from distill.results.metrics import METRICS, TRAINING
from distill.teacher.signal import HEAD, HIDDEN, INDEX, StoredTeacher, write_store
from distill.training.answers import read_answers
from distill.training.encoding import training_encoder
from distill.training.trainer import DistillTrainer
from tests.making import TORCHRUN, evaluate, made, measured, own_errors, signal, student, teacher

METHODS = ["sft", "kd", "seqkd", "imitkd", "gkd", "minillm", "distillm", "abkd", "akl", "mgsr"]
MODELS = ["gpt2", "opt", "llama2", "smollm2"]  # GPT-2, OPT, LLaMA with LoRA, LLaMA pruned


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = {}
    for file in sorted((folder / "model").glob("*.safetensors")):
        state |= load_file(file)
    return state


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("loss", ["ab", "sft"])
def test_every_architecture_end_to_end(smoke, model, loss, capsys):
    config = smoke(f"model={model}", f"loss={loss}", "seed=[10,20]")
    row = Row("row", config)
    facts, made_now = measured(row)
    assert made_now
    own = facts["seed"] == ""
    agrees = facts[facts["metric"].str.startswith("agreement")]
    texts = facts[~own & ~facts["metric"].str.contains(":")]
    assert len(agrees) == (len(config.data.eval) * 3 if loss == "ab" else 0)  # fine-tuned alone, it has no teacher
    assert agrees["value"].ge(0).all() and (agrees["seed"] == "").all()
    of_texts = [m for m in METRICS if m.stage == "evaluate" and not m.is_family]
    assert len(texts) == len(config.data.eval) * len(of_texts) * 2
    assert facts["value"].notna().all() and (texts["n"] == 4).all()
    spent = facts[facts["dataset"] == TRAINING].set_index("metric")["value"]
    steps = spent["seconds_per_sample"] * 21 / 60  # storing the signal comes on top
    assert spent["peak_gb"] > 0.05 and 0 < steps <= spent["minutes"] * (1 + 1e-9)
    (best,) = facts[facts["dataset"] == "validation"]["value"]
    assert best == row.folder.curve().query("stage == @row.plan.student.label")["eval_rouge_l"].max()
    if model == "llama2":
        folder = row.plan.store.folder(row.plan.student) / "model"
        assert (folder / "adapter_model.safetensors").is_file() and not (folder / "model.safetensors").exists()
    files = {f.name: f.read_bytes() for f in row.folder.folder.iterdir()}
    assert set(files) == {"facts.csv", "scores.csv", "curve.csv", "samples.jsonl", "run.json"}
    shutil.rmtree(config.paths.store)  # a finished row needs no artifacts
    again, made_now = measured(Row("row", config))
    assert not made_now and again.equals(facts)
    assert {f.name: f.read_bytes() for f in row.folder.folder.iterdir()} == files
    assert "found finished" in capsys.readouterr().out and not Path(config.paths.store).joinpath("train").exists()


@pytest.mark.parametrize("model", MODELS)
def test_every_method_trains_on_every_architecture(smoke, model):
    """The second epoch's rollouts and replays included: eight rows a step, sixteen in a rollout."""
    for method in METHODS:
        more = ["sampler.threshold=0.9", "sampler.capacity=8"] if method == "distillm" else []
        config = smoke(f"model={model}", f"method={method}", *more)
        twice = config.train.model_copy(update={config.stage: config.schedule.model_copy(update={"epochs": 2})})
        plan = Plan(config.model_copy(update={"train": twice, "eval": config.eval}))
        weights = weights_of_model(student(plan))
        curve = pd.read_csv(plan.store.folder(plan.student) / "curve.csv")
        assert curve["loss"].notna().sum() == 6 and curve[["eval_loss", "eval_rouge_l"]].notna().all(1).sum() >= 2
        shares = curve["student_share"].dropna().tolist()
        expected = ("imitkd", "minillm", "gkd", "distillm", "mgsr")
        assert len(shares) == (6 if method in expected else 0), method
        if method in ("imitkd", "minillm", "mgsr"):
            assert shares == [1.0] * 6
        if method == "mgsr":
            assert curve["corrected"].max() > 0 and curve[["error_kl", "eval_span", "kd_kept_mass"]].notna().any().all()
            assert plan.store.manifest(plan.student)["spans"]["texts"] == 42  # of the student, each epoch
        written = plan.store.manifest(plan.student)["written"]
        assert (written is not None and written["texts"] > 0) == (method in expected), (method, written)
        assert all(torch.isfinite(w).all() for w in weights.values())


PARTS = {  # what the tables of MGSR switch on, a few at a time
    "mean limits": ["loss.limits=mean", "loss.domain=log", "sampler.scrg.corrections=3", "loss.span.kind=adjacent"],
    "quantiles": ["loss.limits=quantile", "loss.low=0.9", "loss.high=0.999", "sampler.scrg.teacher=greedy"],
    "one part": ["loss.parts=[target]", "loss.keep=1", "loss.span.kind=random", "data.prune.share=0.2"],
    "DKD": ["loss=dkd", "loss.span.chunker=spacy", "loss.span.per=pairs"],
    "SKD": ["loss=skd", "loss.span.chunker=punkt"],
    "fixed threshold": ["loss=fixed_clip"],
    "cumulative threshold": ["loss=top_p_clip", "sampler=mixed"],
    "Zhang 2023": ["loss=filtration"],
    "Wang 2021": ["loss=selective"],
    "Wang 2021, queue": ["loss=selective", "loss.scope=queue"],
    "Raman 2023": ["loss=slim", "loss.cross_entropy=false"],
}


@pytest.mark.parametrize("model", ["gpt2", "opt", "openllama2"])
def test_every_part_of_mgsr_trains_on_every_architecture(smoke, model):
    """Beside the other parts of the method: weights move, and stay finite."""
    for part, words in PARTS.items():
        plan = Plan(smoke(f"model={model}", "method=mgsr", *words))
        weights, start = weights_of_model(student(plan)), weights_of_model(made(plan, plan.start))
        assert all(torch.isfinite(w).all() for w in weights.values()), part
        assert any(not torch.equal(start[name], weights[name]) for name in weights), part
        curve = pd.read_csv(plan.store.folder(plan.student) / "curve.csv")
        assert curve["loss"].notna().sum() == 3 and curve["corrected"].max() > 0, part
        assert curve["eval_span"].notna().any(), part


@pytest.mark.parametrize("method", ["imitkd", "minillm"])
def test_published_quirks_bf16_and_plain_text_go_together(smoke, tmp_path, method):
    """On LLaMA, whose rotary positions must not be rounded; the corpus raises the loss by its cross-entropy."""
    (tmp_path / "corpus.txt").write_text("\n\n".join(f"The river runs to the sea, number {n}." for n in range(80)))
    curves = {}
    for corpus in ([], [f"data.pretrain.file={tmp_path}/corpus.txt"]):
        words = ["model=smollm2", f"method={method}", "preset=reference", "train.precision=bf16", *corpus]
        plan = Plan(smoke(*words))
        student(plan)
        curves[bool(corpus)] = pd.read_csv(plan.store.folder(plan.student) / "curve.csv")["loss"].dropna()
    # log 400 = 6.0 nats for a random model; MiniLLM's term is half forward KL, which is small between random models
    low, high = (4, 8) if method == "imitkd" else (2, 4)
    assert (curves[True] - curves[False]).between(low, high).all()
    if method == "imitkd":
        assert plan.config.sampler.parameters["draw"] == "buffer" and plan.config.sampler.switches["draw"] == "fresh"


def weights_of_model(weights):
    return dict(load_model(weights).named_parameters())


def test_the_teacher_answers_once_and_its_text_is_trained_on(smoke, capsys):
    plan = Plan(smoke("model=gpt2", "method=seqkd"))
    student(plan)
    rows = read_answers(plan.store.folder(plan.answers)).rows
    manifest = plan.store.manifest(plan.answers)
    assert [r.id for r in rows] == [e.id for e in plan.data[0].examples] and manifest["rows"] == len(rows) == 21
    assert (
        manifest["length"] == pytest.approx(sum(len(r.response) for r in rows) / 21)
        and 0 <= manifest["eos_rate"] <= 100
    )
    own = training_encoder(plan.config, load_tokenizer(teacher(plan))).pairs(plan.data[0].examples, 512).rows
    assert [r.prompt for r in rows] == [r.prompt for r in own] and any(
        a.response != b.response for a, b in zip(rows, own, strict=True)
    )
    capsys.readouterr()
    distilled = Plan(smoke("model=gpt2", "loss=fkl", "sampler=teacher"))  # its hidden states over its own text
    student(distilled)
    out = capsys.readouterr().out
    assert "answers gpt2-teacher: found finished" in out and "signal gpt2-teacher: making it" in out
    assert distilled.signal.key != Plan(smoke("model=gpt2", "loss=fkl")).signal.key
    assert distilled.start == plan.start  # SeqKD starts where the distilled students do


def test_five_seeds_one_teacher_one_student(smoke, capsys):
    for seed in (10, 20, 30):
        evaluate(Plan(smoke("model=gpt2", "loss=akl", f"seed={seed}")), "student", [seed])
    out = capsys.readouterr().out
    for line in ("train gpt2-teacher: making", "train gpt2-start: making", "train gpt2-student-akl: making"):
        assert out.count(line) == 1
    config = smoke("model=gpt2", "loss=akl", "seed=[10,20,30]")
    together = Plan(smoke("model=gpt2", "loss=akl", f"paths.store={config.paths.store}2"))
    singles = evaluate(Plan(config), "student", [10, 20, 30])
    assert evaluate(together, "student", [10, 20, 30]) == singles  # one load of five seeds writes the same texts


def test_a_finished_student_is_evaluated_without_its_inputs(smoke, capsys):
    plan = Plan(smoke("model=gpt2", "loss=fkl"))
    student(plan)
    for stage in ("base", "signal"):
        shutil.rmtree(Path(plan.config.paths.store) / stage)
    capsys.readouterr()
    evaluate(plan, "student", [10])
    assert "making it" not in capsys.readouterr().out


def test_two_losses_share_teacher_signal_and_start(smoke, capsys):
    for loss in ("fkl", "ab"):
        student(Plan(smoke("model=gpt2", f"loss={loss}")))
    out = capsys.readouterr().out
    for stage in ("train gpt2-teacher", "signal gpt2-teacher", "train gpt2-start"):
        assert out.count(f"{stage}: making it") == 1 and out.count(f"{stage}: found finished") == 1


def test_sft_needs_no_teacher_and_no_start(smoke, capsys):
    student(Plan(smoke("model=gpt2", "loss=sft")))
    out = capsys.readouterr().out
    assert "gpt2-teacher" not in out and "gpt2-start" not in out


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stored_teacher_is_the_live_one(smoke, precision, tmp_path):
    """The same curve to rounding: losses, gradients' norms, validation."""
    curves = {}
    for how in ("live", "stored"):
        config = smoke("model=opt", "loss=ab", f"train.precision={precision}", f"train.teacher_signal={how}",
                       f"paths.store={tmp_path}/{how}")  # fmt: skip
        plan = Plan(config)
        student(plan)
        curves[how] = pd.read_csv(plan.store.folder(plan.student) / "curve.csv")
        assert plan.store.has(plan.signal) == (how == "stored")
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    for column in ("loss", "grad_norm", "eval_loss", "eval_kd"):
        np.testing.assert_allclose(curves["stored"][column], curves["live"][column], rtol=tolerance)


def test_a_store_that_does_not_fit_its_rows_is_refused(smoke):
    stored = StoredTeacher(signal(Plan(smoke("model=gpt2", "loss=fkl"))))
    with pytest.raises(UserError, match="example nobody: 1 response positions"):
        stored(torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool), ["nobody"])


@pytest.mark.parametrize(("sizes", "message"), [(True, "it was of"), (False, "cannot be read")])
@pytest.mark.parametrize("file", [HIDDEN, INDEX, HEAD])
def test_a_store_that_was_cut_short_is_refused_and_made_again(smoke, capsys, file, sizes, message):
    """By the sizes in its manifest, or, as in earlier versions' manifests without them, when it is read."""
    plan = Plan(smoke("model=gpt2", "loss=fkl"))
    folder = signal(plan)
    if not sizes:
        manifest = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps({key: x for key, x in manifest.items() if key != "files"}))
    whole = {f.name: f.read_bytes() for f in folder.iterdir()}
    (folder / file).write_bytes(whole[file][: len(whole[file]) * 2 // 3])
    with pytest.raises(UserError, match="remove the folder"):
        StoredTeacher(folder)
    capsys.readouterr()
    assert signal(Plan(plan.config)) == folder
    assert message in capsys.readouterr().out
    assert {f.name: f.read_bytes() for f in folder.iterdir() if f.name != MANIFEST} == {
        name: content for name, content in whole.items() if name != MANIFEST
    }


def test_another_teacher_is_another_store(smoke):
    keys = {Plan(smoke("model=gpt2", "loss=fkl", f"train.shared_seed={seed}")).signal.key for seed in (1, 2)}
    assert len(keys) == 2


def test_a_teacher_trained_again_gets_a_store_of_its_own(smoke, capsys):
    """Removed and made again under the same key with other weights, as another machine would."""
    plan = Plan(smoke("model=gpt2", "loss=fkl"))
    folder = signal(plan)
    hidden = (folder / HIDDEN).read_bytes()
    capsys.readouterr()
    signal(plan)
    assert "another copy" not in capsys.readouterr().out
    shutil.rmtree(plan.store.folder(plan.teacher))
    base = made(plan, plan.base("teacher"), "teacher")
    weights = load_model(base)
    with torch.no_grad():
        weights.get_input_embeddings().weight.mul_(1.01)
    weights.save_pretrained(base.base)
    teacher(plan)
    assert signal(plan) == folder
    assert "another copy" in capsys.readouterr().out
    assert (folder / HIDDEN).read_bytes() != hidden


def test_a_full_disk_is_refused_before_writing(smoke, monkeypatch):
    plan = Plan(smoke("model=gpt2", "loss=fkl"))
    teacher(plan)
    monkeypatch.setattr("distill.teacher.signal.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(UserError, match=r"has 0 bytes free; set train\.teacher_signal=live"):
        signal(plan)
    assert not list((Path(plan.config.paths.store) / "signal").iterdir())


KILL = """
import os, sys
from distill.config import load
from distill.pipeline.plan import Plan
from distill.pipeline.nodes import ensure
from distill.training import callbacks
step = int(sys.argv[1])
original = callbacks.Progress.on_step_end
def stop(self, args, state, control, **kwargs):
    original(self, args, state, control, **kwargs)
    if state.global_step == step and "student" in self.label:
        os._exit(9)
callbacks.Progress.on_step_end = stop
plan = Plan(load(sys.argv[2:]))
ensure(plan.store, [plan.student])
"""


KILL_IN_VALIDATION = """
import os, sys
from distill.config import load
from distill.pipeline.plan import Plan
from distill.pipeline.nodes import ensure
from distill.training import trainer
original = trainer.DistillTrainer.evaluate
def stop(self, *args, **kwargs):
    if self.model.divergence is not None and sys.argv[1] == "kill":
        os._exit(9)
    return original(self)
trainer.DistillTrainer.evaluate = stop
plan = Plan(load(sys.argv[2:]))
ensure(plan.store, [plan.student])
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


KILL_BEFORE_RENAME = """
import os, sys
from pathlib import Path
from distill.config import load
from distill.pipeline.plan import Plan
from distill.pipeline.nodes import ensure
from distill.training.trainer import DistillTrainer
plan = Plan(load(sys.argv[2:]))
rename, step = Path.replace, DistillTrainer.training_step
def replace(self, target):
    if sys.argv[1] == "kill" and target == plan.store.folder(plan.student):
        os._exit(9)
    return rename(self, target)
def training_step(self, *args, **kwargs):
    print("a training step")
    return step(self, *args, **kwargs)
Path.replace, DistillTrainer.training_step = replace, training_step
ensure(plan.store, [plan.student])
"""


def test_a_training_killed_before_its_folder_is_renamed_is_not_trained_again(tmp_path):
    words = ["debug=smoke", "model=gpt2", "loss=fkl"]

    def run(how, store):
        command = [sys.executable, "-c", KILL_BEFORE_RENAME, how, *words, f"paths.store={tmp_path}/{store}"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    killed = run("kill", "killed")
    assert killed.returncode == 9 and "a training step" in killed.stdout, killed.stderr
    plan = Plan(load([*words, f"paths.store={tmp_path}/killed"]))
    assert not plan.store.has(plan.student)
    resumed = run("go on", "killed")
    assert resumed.returncode == 0 and "a training step" not in resumed.stdout, resumed.stderr
    whole = run("go on", "whole")
    assert whole.returncode == 0, whole.stderr
    folders = [Store(tmp_path / name).folder(plan.student) for name in ("killed", "whole")]
    resumed_weights, whole_weights = (weights_of(folder) for folder in folders)
    assert whole_weights and all(torch.equal(whole_weights[n], resumed_weights[n]) for n in whole_weights)
    assert (folders[0] / "curve.csv").read_bytes() == (folders[1] / "curve.csv").read_bytes()
    assert not (folders[0] / "checkpoints").exists()


# In the first step the limits are still those of the start; with a wide edge they matter in every bit
AFTER_TWO = ["loss.optimizer.lr=0.1", "loss.domain=log", "loss.epsilon=1", "loss.epsilon_start=1"]
REPLAYING = "train.seed=12"  # the third step takes texts of the first two, and the first is behind the kill


@pytest.mark.parametrize(
    ("model", "row"),
    [
        ("gpt2", ["loss=skd", "sampler=adaptive", "sampler.threshold=0.9"]),
        ("gpt2", ["loss=skd", "loss.optimizer.lr=0.01", "loss.optimizer.max_grad_norm=0.1"]),
        ("openllama2", ["loss=fkl"]),
        ("gpt2", ["method=minillm"]),
        ("gpt2", ["method=mgsr", "loss.limits=mean", *AFTER_TWO]),
        ("gpt2", ["method=mgsr", "sampler=adaptive", "sampler.threshold=0.9", "loss.epsilon_start=0.1", REPLAYING]),
        ("gpt2", ["loss=selective", "loss.scope=queue"]),
    ],
)
def test_a_killed_training_goes_on_and_ends_in_the_same_weights(tmp_path, model, row):
    """Killed inside an epoch, between two checkpoints; LoRA's dropout shows that random states come back too, skd that
    a loss's own parameters and their optimizer do, and `REPLAYING` that a sampler's buffer does."""
    words = ["debug=smoke", f"model={model}", *row, "train.save_steps=1", f"paths.results={tmp_path}/results"]

    def run(store, step):
        command = [sys.executable, "-c", KILL, str(step), *words, f"paths.store={tmp_path}/{store}"]
        return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})

    killed_at = 3 if "loss.limits=mean" in row else 2
    assert run("killed", killed_at).returncode == 9
    config = load([*words, f"paths.store={tmp_path}/killed"])
    plan = Plan(config)
    partial = next((tmp_path / "killed" / "train").glob(".partial-*student*"))
    assert list((partial / "checkpoints").glob("checkpoint-*")) and not plan.store.has(plan.student)
    resumed = run("killed", -1)
    assert resumed.returncode == 0 and f"going on from checkpoint-{killed_at - 1}" in resumed.stdout, resumed.stderr
    assert run("whole", -1).returncode == 0
    whole = weights_of(Store(tmp_path / "whole").folder(plan.student))
    killed = weights_of(plan.store.folder(plan.student))
    assert whole.keys() == killed.keys() and whole
    for name in whole:
        assert torch.equal(whole[name], killed[name]), name
    counts = [Store(tmp_path / name).manifest(plan.student) for name in ("whole", "killed")]
    assert all(counts[0].get(name) == counts[1].get(name) for name in ("written", "spans"))
    curves = [pd.read_csv(Store(tmp_path / name).folder(plan.student) / "curve.csv") for name in ("whole", "killed")]
    same = [name for name in curves[0].columns if not name.startswith(("seconds", "memory"))]
    pd.testing.assert_frame_equal(curves[0][same], curves[1][same])
    if REPLAYING in row:
        assert curves[0][["replay_share", "corrected"]].max().gt(0).all()
    assert "method=mgsr" not in row or counts[0]["spans"]["texts"]
    start = weights_of(plan.store.folder(plan.start))
    assert any(not torch.equal(start[n], whole[n]) for n in whole if n in start)


def test_supplied_teacher_and_student(smoke, tmp_path):
    """A folder in place of a trained teacher: nothing is trained for it, and its content is part of the key."""
    plan = Plan(smoke("model=gpt2", "loss=fkl"))
    own_teacher, start = teacher(plan), made(plan, plan.start)
    own = load(["model=gpt2", "loss=fkl", "data=micro", "data.generator.train=21", "data.generator.valid=6",
                "data.generator.eval=4", f"model.teacher.path={own_teacher.base}", f"model.student.path={start.base}",
                "train.student.epochs=1", "eval.max_new_tokens=8", f"paths.store={tmp_path}/own"])  # fmt: skip
    given = Plan(own)
    student(given)
    names = [e.name for e in given.store.entries(list(VERSIONS))]
    assert len(names) == 2 and all("teacher" not in n or n.startswith("signal/") for n in names)
    shutil.copytree(own_teacher.base, tmp_path / "other")
    settings = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**settings, "embd_pdrop": 0.5}))
    changed = own.model_copy(update={"model": own.model.model_copy(update={
        "teacher": own.model.teacher.model_copy(update={"path": str(tmp_path / "other")})})})  # fmt: skip
    assert Plan(changed).student.key != given.student.key


def test_an_adapter_lies_over_what_its_training_started_from(smoke, tmp_path):
    """A supplied student under LoRA: the finished adapter is evaluated over it, not over the pair's own base."""
    plan = Plan(smoke("model=llama2", "loss=sft"))
    base = made(plan, plan.base("student")).base
    own = load(["model=llama2", "loss=sft", "data=micro", "data.generator.train=21", "data.generator.valid=6",
                "data.generator.eval=4", f"model.student.path={base}", "train.sft.epochs=1",
                "eval.max_new_tokens=8", f"paths.store={tmp_path}/own"])  # fmt: skip
    trained = student(Plan(own))
    assert trained.base == base and trained.adapter is not None
    assert student(Plan(own)) == trained  # and so when it is found finished


def test_base_weights_depend_on_what_made_them():
    def key(*words):
        return Plan(load(list(words))).base("student").key

    assert key("model=micro") != key("model=micro", "data.template=alpaca")
    cut = ["model=smollm2", "data=micro"]
    assert len({key(*cut), key(*cut, "data.template=alpaca"), key(*cut, "train.max_length=300")}) == 3


def test_a_training_that_fails_early_leaves_no_folder(smoke):
    plan = Plan(smoke("model=gpt2", "loss=sft", "train.student.lr=1e30"))
    with pytest.raises(UserError, match=r"nan|inf"):
        student(plan)
    assert not list(plan.store.folder(plan.student).parent.iterdir())


def test_teacher_rows_name_the_teachers_seed(smoke):
    row = Row("Teacher", smoke("model=gpt2", "loss=sft", "train.shared_seed=5", "train.seed=6"), "teacher")
    measured(row)
    described = row.folder.description()
    assert (described["train_seed"], described["shared_seed"], described["label"]) == (5, 5, "teacher")


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


def test_what_is_to_come_is_estimated_before_the_first_stage(smoke):
    plan = Plan(smoke("model=gpt2", "loss=skd"))
    nodes = [node for node in upcoming(plan.store, [plan.student]) if node.maker.estimate() is not None]
    assert nodes == [plan.teacher, plan.signal, plan.start, plan.student]
    assert not any(plan.store.has(node) for node in nodes)
    of_signal, start, own = (node.maker.estimate() for node in nodes[1:])
    student(plan)
    network = build("skd", **plan.config.loss.parameters)
    network.prepare(plan.session.shape("student").classes, torch.device("cpu"))
    assert own.parts["loss's own"] == 20 * sum(p.numel() for p in network.parameters()) > 0
    assert "teacher" in own.parts and "teacher" not in start.parts
    assert of_signal.disk == plan.store.manifest(plan.signal)["bytes"]  # exactly
    assert upcoming(plan.store, [plan.student]) == []


def test_manifests_tell_what_was_done(smoke):
    plan = Plan(smoke("model=smollm2", "loss=fkl"))
    student(plan)
    manifest = json.loads((plan.store.folder(plan.student) / MANIFEST).read_text())
    assert manifest["rows"] == {"train": 21, "valid": 6} and manifest["steps"] == 3 and manifest["seconds"] > 0
    assert 0 < manifest["seconds_per_step"] * manifest["steps"] < manifest["seconds"]  # no validation in it
    assert manifest["samples"] == 21 and manifest["peak_bytes"] > 50e6
    assert "rouge_l" in manifest["best_metric"] and manifest["tokens"]["eos"] == 0
    base = plan.store.manifest(plan.base("student"))
    assert len(base["layers"]) == 2 and len(base["influence"]) == 3 and base["parameters"] > 0
    curve = pd.read_csv(plan.store.folder(plan.student) / "curve.csv")
    assert curve["loss"].notna().sum() == 3 and curve["eval_rouge_l"].notna().sum() == 1


def with_encoder(config, **encoder):
    own = config.eval.model_copy(update={"bertscore": BertScoreConfig(**encoder)})
    return config.model_copy(update={"eval": own})


def test_bertscore_and_exposure_bias_stand_beside_a_row(smoke):
    """The teacher's texts are there first, as in a table; a row measured without BERTScore gets it later."""
    plain = smoke("model=gpt2", "loss=fkl", "seed=[10,20]", "eval.sets=[dolly]")
    scored = with_encoder(plain, encoder=WHEEL)
    measured(Row("Teacher", plain, "teacher"))
    facts, _ = measured(Row("FKL", plain))
    assert set(facts["metric"]) >= {"exaccerr:whole"} and not facts["metric"].str.startswith("bertscore").any()
    assert facts[facts["metric"] == "exaccerr:whole"]["value"].abs().gt(0).all()
    row = Row("FKL", scored)
    assert Row("FKL", plain).run == row.run
    facts, made_now = measured(row)
    own = facts[facts["metric"] == f"bertscore:{WHEEL}"]
    assert made_now and sorted(own["seed"]) == ["10", "20"]
    scores = row.folder.scores()
    assert len(scores) == 4 and scores[f"bertscore:{WHEEL}"].notna().all() and set(scores["seeds"]) == {"10 20"}
    assert scores[f"bertscore:{WHEEL}"].mean() == pytest.approx(own["value"].mean(), abs=1e-3)
    assert not measured(Row("FKL", scored))[1]  # found finished
    measured(Row("FKL", with_encoder(plain, encoder=WHEEL, layers=2)))
    both = row.folder.scores()  # another encoder's stand beside the first's
    assert len(both) == 4 and both[f"bertscore:{WHEEL}"].equals(scores[f"bertscore:{WHEEL}"])
    assert (both[f"bertscore:{WHEEL}@2"] != both[f"bertscore:{WHEEL}"]).all()
    before = (row.folder.folder / "scores.csv").read_bytes()
    measured(Row("FKL", with_encoder(plain, encoder=WHEEL, layers=2)))
    assert (row.folder.folder / "scores.csv").read_bytes() == before
    (row.folder.folder / "scores.csv").unlink()  # lost
    measured(Row("FKL", scored))
    assert len(row.folder.scores()) == 4


def test_students_of_one_teacher_share_what_it_read(smoke, monkeypatch):
    """References and the teacher's own texts are read by it once; its values are those of a live teacher."""
    read = []
    original = write_store
    monkeypatch.setattr(
        "distill.pipeline.stages.training.write_store", lambda *a: read.append(len(a[1])) or original(*a)
    )
    measured(Row("Teacher", smoke("model=gpt2", "loss=fkl", "eval.sets=[dolly]"), "teacher"))
    for loss in ("fkl", "rkl"):
        row = Row(loss, smoke("model=gpt2", f"loss={loss}", "eval.sets=[dolly]"))
        measured(row)
    assert read == [27, 4, 4]  # training and validation rows, references, own texts
    plan = row.plan
    both = [load_model(w).eval() for w in (student(plan), teacher(plan))]
    tokenizer = load_tokenizer(student(plan))
    rows = training_encoder(plan.config, tokenizer).pairs(plan.sets["dolly"].examples, 512).rows
    live = agreement(*both, rows, pad_id(tokenizer))
    manifest = plan.store.manifest(plan.agreement(plan.sets["dolly"]))
    for name, value in live.items():
        assert manifest[name] == pytest.approx(value, rel=1e-5), name


def test_one_load_serves_texts_agreement_and_exposure(smoke, monkeypatch):
    """Whatever is measured of a student, its weights are loaded once, and so are the teacher's."""
    loads = []
    original = load_model
    monkeypatch.setattr("distill.pipeline.session.load_model", lambda w, *a: loads.append(w) or original(w, *a))
    config = smoke("model=gpt2", "loss=fkl", "eval.sets=[dolly,vicuna]")
    measured(Row("Teacher", config, "teacher"))
    assert len(loads) == 1
    row = Row("FKL", config)
    measured(row)
    assert loads[1:] == [student(row.plan), teacher(row.plan)]


def test_rows_are_tokenised_and_sets_are_read_once(smoke, monkeypatch):
    from distill.data import sets
    from distill.data.encode import Encoder
    from distill.pipeline import inputs

    monkeypatch.setattr(inputs, "_CACHE", {})
    encoded, read = [], []
    pairs, loaded = Encoder.pairs, sets.train_and_valid
    monkeypatch.setattr(Encoder, "pairs", lambda s, e, n: encoded.append(len(e)) or pairs(s, e, n))
    monkeypatch.setattr(sets, "train_and_valid", lambda c: read.append(1) or loaded(c))
    for loss in ("fkl", "rkl", "sft"):
        student(Plan(smoke("model=gpt2", f"loss={loss}")))
    assert sorted(encoded) == [6, 21] and read == [1]


def test_a_metric_that_came_later_writes_no_text_again(smoke, capsys):
    plain = smoke("model=gpt2", "loss=sft", "seed=[10]", "eval.sets=[dolly]")
    measured(Row("SFT", plain))
    shutil.rmtree(plain.paths.store)
    facts, made_now = measured(Row("SFT", with_encoder(plain, encoder=WHEEL)))
    assert not made_now and len(facts) and "so BERTScore is left out" in capsys.readouterr().out
    assert not (Path(plain.paths.store) / "evaluate").exists()


def test_metrics_of_kept_texts_are_added_and_name_the_commit_that_wrote_them(smoke):
    row = Row("SFT", smoke("model=gpt2", "loss=sft", "seed=[10]", "eval.sets=[dolly]"))
    before, _ = measured(row)
    manifest = row.plan.store.folder(row.plan.evaluation("student", row.plan.sets["dolly"], 10)) / MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"commit": "0123456789"}))
    path = row.folder.folder / "facts.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(x for x in lines if ",exact_match," not in x))  # of a version without exact match
    after, made_now = measured(row)
    assert not made_now
    (added,) = after[after["metric"] == "exact_match"].to_dict("records")
    assert added["commit"] == "0123456789" != before["commit"][0]
    assert added["value"] == before[before["metric"] == "exact_match"]["value"].item()
    assert len(after) == len(before)


def test_a_metric_is_added_in_one_place(smoke, monkeypatch):
    """A `Metric`, and nothing else: its facts, its column and its cell follow."""
    from distill.results import metrics
    from distill.results.statistics import Column, cell

    row = Row("SFT", smoke("model=gpt2", "loss=sft", "seed=[10,20]", "eval.sets=[dolly]"))
    measured(row)

    def values(finished):
        yield "characters", sum(len(r.text) for r in finished.responses) / len(finished.responses), 4

    monkeypatch.setattr(metrics, "METRICS", [*METRICS, metrics.Metric("characters", "letters", "evaluate", values)])
    facts, made_now = measured(row)
    own = facts[facts["metric"] == "characters"]
    assert not made_now and sorted(own["seed"]) == ["10", "20"]  # of texts that were there already
    found = cell(own.assign(train_seed="10"), Column("Length", (("dolly", "characters"),)))
    assert found.mean == pytest.approx(own["value"].mean()) and metrics.find("dolly", "characters").unit == "letters"


def test_one_run_serves_two_tables(smoke):
    """Another set in another table: the same run, its facts side by side, each set's texts written once."""
    small, large = (smoke("model=gpt2", "loss=sft", f"eval.sets=[{sets}]") for sets in ("dolly", "dolly,vicuna"))
    first, second = Row("SFT", small), Row("fine-tuned", large)
    facts, _ = measured(first)
    folder = first.plan.store.folder(first.plan.evaluation("student", first.plan.sets["dolly"], 10))
    written = (folder / "generations.jsonl").stat().st_mtime_ns
    both, made_now = measured(second)
    assert first.run == second.run and made_now and both.head(len(facts)).equals(facts)
    assert set(both["dataset"]) == {"training", "validation", "dolly", "vicuna"}
    assert (folder / "generations.jsonl").stat().st_mtime_ns == written
    described = second.folder.description()
    assert set(described["data"]) == {"train", "valid", "dolly", "vicuna"} and len(described["evaluations"]) == 2
    assert not measured(first)[1]


def test_a_peak_that_cannot_be_counted_is_not_told(smoke, monkeypatch):
    monkeypatch.setattr("distill.pipeline.store.reset_peak", lambda: False)
    plan = Plan(smoke("model=gpt2", "loss=sft"))
    student(plan)
    assert plan.store.manifest(plan.student)["peak_bytes"] is None
    assert [fact.metric for fact in facts_of(plan.store, plan.student)] == ["best_rouge_l"]


def test_the_best_checkpoint_is_kept(smoke, monkeypatch):
    """By the metric that the schedule names, also when it is not the last one."""
    scores = iter([3.0, 9.0, 5.0])
    monkeypatch.setattr("distill.training.job._scorer", lambda *_: lambda _: next(scores))
    saved = {}
    original = DistillTrainer._save

    def save(self, output_dir=None, state_dict=None):
        saved[self.state.global_step] = {n: p.detach().clone() for n, p in self.model.student.named_parameters()}
        original(self, output_dir, state_dict)

    monkeypatch.setattr(DistillTrainer, "_save", save)
    config = smoke("model=gpt2", "loss=sft")
    schedule = config.train.student.model_copy(update={"epochs": 3})
    plan = Plan(config.model_copy(update={"train": config.train.model_copy(update={"student": schedule})}))
    student(plan)
    assert plan.store.manifest(plan.student)["best_metric"] == {"rouge_l": 9.0, "step": 6}
    kept = weights_of(plan.store.folder(plan.student))
    assert sorted(saved) == [3, 6, 9] and all(torch.equal(kept[n], saved[6][n]) for n in kept)
    assert any(not torch.equal(kept[n], saved[9][n]) for n in kept)


def test_wandb_goes_offline_one_run_a_stage(smoke, tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    plan = Plan(smoke("model=gpt2", "loss=fkl", "tracker=wandb"))
    student(plan)
    runs = list((tmp_path / "store" / "wandb").glob("offline-run-*"))
    assert len(runs) == 3  # teacher, start, student


TOGETHER = [["loss=ab", "sampler=teacher"], ["method=minillm"], ["method=mgsr"], ["loss=selective", "loss.scope=queue"],
            ["loss=alphanet", "loss.per=batch", "sampler=adaptive", "sampler.threshold=0.9"]]  # fmt: skip


@pytest.mark.parametrize("row", TOGETHER)
def test_two_processes_train_as_one(tmp_path, row):
    """torchrun over gloo: the global batch, its gradient and the results files are those of one process.

    AlphaNet per batch settles on the alpha whose sum over both processes' tokens is larger, selective KD on a threshold
    over the tokens of both; what the student writes
    depends on the prompt and the step alone, and the processes share buffer and rollout.
    """
    words = ["-m", "distill.run", *row, "model=gpt2", "debug=smoke"]

    def run(name, *launcher):
        folders = [f"paths.store={tmp_path}/{name}", f"paths.results={tmp_path}/{name}-results"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*launcher, *words, *folders], capture_output=True, text=True, check=False, env=environment
        )
        assert done.returncode == 0, own_errors(done.stderr)
        (student,) = (tmp_path / name / "train").glob("*student*")
        return pd.read_csv(student / "curve.csv"), pd.read_csv(tmp_path / f"{name}-results/gpt2/runs/long.csv")

    one_curve, one_values = run("one", sys.executable)
    two_curve, two_values = run("two", *TORCHRUN)
    for column in ("loss", "grad_norm", "eval_loss"):
        # A rollout's loss is a difference of sums that nearly cancel, hence the absolute part
        np.testing.assert_allclose(two_curve[column], one_curve[column], rtol=1e-5, atol=1e-6)
    assert len(two_values) == len(one_values) and two_values["run"].tolist() == one_values["run"].tolist()
