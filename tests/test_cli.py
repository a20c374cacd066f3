"""The commands as a stranger types them, as subprocesses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from distill.base import errors
from distill.config import load
from distill.pipeline.request import option
from distill.pipeline.rows import run_label
from tests.making import TORCHRUN, own_errors

ROOT = Path(__file__).resolve().parents[1]


def run(module, *words, cwd=ROOT, **environment):
    return subprocess.run(
        [sys.executable, "-m", f"distill.{module}", *words],
        cwd=cwd, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )  # fmt: skip


def scratch(tmp_path):
    return [f"paths.store={tmp_path}/store", f"paths.results={tmp_path}/results"]


@pytest.mark.parametrize(
    "line",
    [
        "loss=akl model=gpt2 -m seed=10,20,30,40,50 debug=smoke",
        "--multirun seed=10,20,30,40,50 debug=smoke loss=akl model=gpt2",
    ],
)
def test_the_users_line(line, tmp_path):
    done = run("run", *line.split(), *scratch(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    values = pd.read_csv(tmp_path / "results/gpt2/runs/long.csv")
    rouge = values[values["metric"] == "rouge_l"]
    assert sorted(rouge["seed"].unique()) == [10, 20, 30, 40, 50] and len(rouge) == 25 and values["run"].nunique() == 1
    for stage in ("gpt2-teacher", "gpt2-start", "gpt2-student-akl"):
        assert done.stdout.count(f"train {stage}: making it") == 1
    (table,) = (tmp_path / "results/gpt2/runs").glob("sweep-*.csv")
    shaped = pd.read_csv(table)
    assert list(shaped["row"]) == ["akl(mu=0.5)"] and shaped.shape[1] == 6 and "(" in shaped.iloc[0, 1]
    assert str(table) in done.stdout and "Traceback" not in done.stderr
    again = run("run", *line.split(), *scratch(tmp_path))
    assert again.returncode == 0 and "making it" not in again.stdout


def test_cfg_prints_the_merged_config_without_weights_or_network():
    done = run("run", "--cfg", "job", "loss=ab", "model=llama2", "-m")
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    loss = {"name": "ab", "w_ce": 0.0, "w_kd": 1.0, "temperature": 1.0, "alpha": 0.2, "beta": 0.7}
    assert config["loss"] == {**loss, "lines": "${preset.ab_lines}"} and config["preset"]["ab_lines"] == "exact"
    assert config["model"]["teacher"]["id"] == "meta-llama/Llama-2-13b-hf" and config["data"]["name"] == "dolly"
    probe = (
        "import sys; sys.argv = ['run', '--cfg', 'job', 'loss=ab', 'model=llama2']\n"
        "from distill import run\nfrom distill.base.errors import command\ncommand(run.main)\n"
        "heavy = [m for m in ('transformers', 'pandas', 'scipy', 'peft') if m in sys.modules]\nassert not heavy, heavy"
    )
    assert subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (
            ["loss=akll", "train.student.lrr=3"],
            ["did you mean akl or akl_r or dac_kl?", "did you mean train.student.lr"],
        ),
        (["model=micro", "loss=akl", "loss.mu=7"], ["mu=7 must be in (0, 1]"]),
        (["data=jsonl", "data.root=nowhere"], ["data.root=nowhere: no such folder"]),
        (["model=gpt2"], ["hf download MiniLLM/dolly raw.jsonl --repo-type dataset", "model=smollm2", "debug=smoke"]),
        (["oops"], ["oops: not an override"]),
        (["model=micro", "-m", "loss=fkl,rrkl"], ["did you mean rkl"]),
    ],
)
def test_bad_input_is_lines_and_exit_code_2(words, messages, tmp_path):
    done = run("run", *words, *scratch(tmp_path), HF_HUB_CACHE=str(tmp_path / "hub"))
    assert done.returncode == 2
    error_lines = [line for line in done.stderr.splitlines() if "still running" not in line]  # said on a slow machine
    assert "Traceback" not in done.stderr and all(x.startswith("error: ") for x in error_lines)
    for message in messages:
        assert message in done.stderr
    left = [p for p in (tmp_path / "store").rglob("*") if p.is_file() and "logs" not in p.parts and p.suffix != ".lock"]
    assert not left and not (tmp_path / "results").exists()


def test_bad_lines_of_a_data_file_are_named(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"instruction": "a", "output": "b"}\n{oops\n{"instruction": "a"}\n')
    done = run("run", "model=micro", "data=jsonl", f"data.root={tmp_path}", *scratch(tmp_path))
    assert (
        done.returncode == 2
        and "train.jsonl:2: not JSON" in done.stderr
        and "train.jsonl:3: lacks output" in done.stderr
    )


def test_one_failing_job_does_not_take_the_others_down(tmp_path):
    """The middle job diverges; the other two are measured and in the table, and the exit code tells."""
    done = run(
        "run", "debug=smoke", "model=gpt2", "loss=sft", "-m", "train.student.lr=1e-4,1e30,1e-3", *scratch(tmp_path)
    )
    values = pd.read_csv(tmp_path / "results/gpt2/runs/long.csv")
    assert done.returncode == 2 and "Traceback" not in done.stderr and "lower the learning rate" in done.stderr.lower()
    assert values["run"].nunique() == 2
    (table,) = (tmp_path / "results/gpt2/runs").glob("sweep-*.csv")
    rows = pd.read_csv(table, keep_default_na=False)
    assert list(rows["reason"].str.contains("is nan")) == [False, False, True] and rows.iloc[2, 1] == "failed"


def test_a_sweep_over_models_has_a_table_for_each(tmp_path):
    done = run("run", "debug=smoke", "loss=sft", "-m", "model=micro,opt", *scratch(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    for model in ("micro", "opt"):
        assert len(list((tmp_path / "results" / model / "runs").glob("sweep-*.csv"))) == 1
        assert len(list((tmp_path / "results" / model / "runs").glob("*/run.json"))) == 1


def test_sets_of_any_name_run_as_smoke(tmp_path):
    assert run("run", "debug=smoke", "loss=sft", "model=gpt2", "data=jsonl", *scratch(tmp_path)).returncode == 0


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    done = run("run", "debug=smoke", f"paths.store={tmp_path}/file/store", f"paths.results={tmp_path}/results")
    assert (
        done.returncode == 2
        and "is not a folder that can be written to" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_a_table_of_smoke_runs(tmp_path):
    words = ["abkd/losses_gpt2", "model=gpt2", "debug=smoke", "seed=[10,20]", "rows=[FKLD]", *scratch(tmp_path)]
    done = run("table", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = tmp_path / "results/gpt2/abkd"
    shaped = pd.read_csv(folder / "losses_gpt2.csv").set_index("row")
    assert list(shaped.index[:3]) == ["Teacher", "SFT", "FKLD"] and len(shaped) == 13
    assert list(shaped["group"][:3]) == ["context", "context", "paper"]
    assert list(shaped.columns[1:]) == ["Dolly Eval", "Self-Instruct", "Vicuna Eval", "Super-Natural", "Unnatural"]
    assert "(" in shaped.loc["FKLD", "Dolly Eval"] and set(shaped.loc["ABKD"][1:]) == {"missing"}
    manifest = json.loads((folder / "losses_gpt2.manifest.json").read_text())
    assert [row["label"] for row in manifest["rows"]] == list(shaped.index)
    assert "numbers mean nothing" in (folder / "losses_gpt2.md").read_text()
    (own,) = next(row for row in manifest["rows"] if row["label"] == "FKLD")["runs"]
    assert {path.parent.name for path in (tmp_path / "results/gpt2/runs").glob("*/run.json")} >= {own}
    stages = set(pd.read_csv(tmp_path / f"results/gpt2/runs/{own}/curve.csv")["stage"])
    assert stages == {"gpt2-teacher", "gpt2-start", "gpt2-student-fkl"}
    assert len(pd.read_csv(tmp_path / f"results/gpt2/runs/{own}/scores.csv")) == 5 * 4
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    assert run("table", *words).returncode == 0
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before
    more = run("table", *words, "train_seeds=[10,2]")
    assert more.returncode == 0 and "student training seeds 2, 10" in (folder / "losses_gpt2.md").read_text()
    listed = run("store", "list", "--store", str(tmp_path / "store"), "--results", str(tmp_path / "results"))
    assert listed.returncode == 0 and "in a run" in listed.stdout


def test_four_runs_and_a_prune_side_by_side(tmp_path):
    """On one store and one results folder: every run is there with all it measured, nothing that it needed is gone."""
    losses = ["fkl", "rkl", "akl", "fkl"]  # two of them are one run
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "distill.run", f"loss={loss}", "model=gpt2", "debug=smoke", f"seed={seed}",
             *scratch(tmp_path)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for loss, seed in zip(losses, (10, 10, 10, 20), strict=True)
    ]  # fmt: skip
    (tmp_path / "results").mkdir(exist_ok=True)
    store = ["--store", str(tmp_path / "store"), "--results", str(tmp_path / "results")]
    while any(process.poll() is None for process in processes):
        if (tmp_path / "store/train").is_dir():
            done = run("store", "prune", "--yes", *store)
            assert done.returncode == 0, done.stderr[-2000:]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, [err[-2000:] for _, err in outputs]
    assert "".join(out for out, _ in outputs).count("train gpt2-teacher: making it") == 1
    folders = {path.parent for path in (tmp_path / "results/gpt2/runs").glob("*/run.json")}
    assert len(folders) == 3
    for folder in folders:
        facts = pd.read_csv(folder / "facts.csv")
        seeds = {10, 20} if json.loads((folder / "run.json").read_text())["label"] == "fkl" else {10}
        assert set(facts[facts["metric"] == "rouge_l"]["seed"]) == seeds
        assert len(facts[facts["metric"] == "rouge_l"]) == 5 * len(seeds) and not facts.duplicated().any()
        for name in json.loads((folder / "run.json").read_text())["artifacts"]:
            if name.startswith(("train/", "evaluate/")) and "teacher" not in name:
                assert (tmp_path / "store" / name / "artifact.json").is_file(), name
    assert len(pd.read_csv(tmp_path / "results/gpt2/runs/long.csv")["run"].unique()) == 3
    assert run("store", "prune", "--yes", *store).returncode == 0
    again = run("run", "loss=akl", "model=gpt2", "debug=smoke", "seed=10", *scratch(tmp_path))
    assert again.returncode == 0 and "making it" not in again.stdout


BROKEN = """
import os
from dataclasses import dataclass
from distill.losses.base import Divergence, register

@register("broken")
@dataclass(frozen=True)
class Broken(Divergence):
    \"\"\"Not a number in the last process alone.\"\"\"
    def from_log_probs(self, student, teacher, targets):
        value = (teacher.exp() * (teacher - student)).sum(-1)
        return value * float("nan") if os.environ.get("RANK") == "1" else value
"""


def test_a_loss_that_is_not_finite_in_one_process_ends_the_job_in_all(tmp_path):
    """And the sweep's other job is measured, by both."""
    (tmp_path / "own/loss").mkdir(parents=True)
    (tmp_path / "own/broken_loss.py").write_text(BROKEN)
    (tmp_path / "own/loss/broken.yaml").write_text("name: broken\nw_ce: 0.0\nw_kd: 1.0\ntemperature: 1.0\n")
    command = [*TORCHRUN, "-m", "distill.run", "--config-dir", str(tmp_path / "own"), "plugins=[broken_loss]",
               "model=gpt2", "debug=smoke", "-m", "loss=broken,rkl", *scratch(tmp_path)]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode != 0 and done.stderr.count("error: the loss is nan at step 1") == 2, own_errors(done.stderr)
    values = pd.read_csv(tmp_path / "results/gpt2/runs/long.csv")
    assert set(values["row"]) == {"rkl"}


def test_a_process_that_fails_alone_takes_the_others_with_it(tmp_path):
    """Outside a step that all share: the launcher ends the others, and nobody waits for two days."""
    code = (
        "import os, sys\nfrom distill.base import errors, processes\n"
        "if processes.rank() == 1:\n    errors.report_and_go_on(errors.UserError('no disk'))\n"
        "processes.wait_for_everyone()\n"
    )
    (tmp_path / "job.py").write_text(code)
    done = subprocess.run(
        [*TORCHRUN, str(tmp_path / "job.py")], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode != 0 and "error: no disk" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["abkd/nothing"], "no table is named abkd/nothing"),
        (["abkd/losses_gpt2", "model=micro", "rows=[FKL]"], "no row is named FKL; did you mean FKLD"),
        (["abkd/losses_gpt2", "model=mikro"], "did you mean micro"),
    ],
)
def test_bad_table_requests(words, message):
    done = run("table", *words)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("rows=[Jensen's KL]", ["Jensen's KL"]),
        ("rows=[FKL+RKL, Jensen's KL]", ["FKL+RKL", "Jensen's KL"]),
        ("rows=['FKL+RKL',\"a,b\"]", ["FKL+RKL", "a,b"]),
        ("rows=AKL", ["AKL"]),
        ("rows=[1,2]", [1, 2]),
    ],
)
def test_rows_are_named_as_in_the_table(word, values):
    assert option(["seed=[10]", word], "rows") == (values, ["seed=[10]"])


@pytest.mark.parametrize("word", ["rows=[a", 'rows=[a"]', "rows={a:1"])
def test_what_is_no_list_is_told(word):
    with pytest.raises(errors.UserError, match="not a list; write rows="):
        option([word], "rows")


def test_lists():
    done = run("list")
    assert done.returncode == 0
    for name in (
        "sft",
        "ab",
        "fixed",
        "abkd",
        "smollm2",
        "dolly_dev",
        "abkd/losses_gpt2",
        "make abkd-losses-gpt2",
        "sum [p^alpha q^beta",
    ):
        assert name in done.stdout
    assert "MODEL=None" not in done.stdout and "make akl-fig-toy-gaussian" in done.stdout  # a figure without a model
    wrong = run("list", "loses")
    assert wrong.returncode == 2 and "did you mean losses" in wrong.stderr


def test_make_lists_its_commands_and_tables():
    help_ = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("demo", "test", "check", "setup", "smollm2", "tables", "make abkd-losses-gpt2 MODEL=micro"):
        assert target in help_
    shown = subprocess.run(["make", "-n", "-o", "setup", "abkd-losses-gpt2", "MODEL=micro"], cwd=ROOT,
                           capture_output=True, text=True, check=True).stdout  # fmt: skip
    assert "distill.table abkd/losses_gpt2 model=micro" in shown


def test_only_a_command_that_went_well_waits_for_the_other_processes(monkeypatch):
    left = []
    monkeypatch.setattr(errors, "leave_processes", lambda: left.append(True))
    monkeypatch.setattr(errors, "keep_alive", lambda: None)  # its thread would outlive the test

    def fails(words):
        raise errors.UserError("something to mend")

    assert errors.command(lambda words: 2) == 2 and errors.command(fails) == 2 and not left
    assert errors.command(lambda words: 0) == 0 and left


@pytest.mark.parametrize(
    ("words", "label"),
    [
        (["loss=akl"], "akl(mu=0.5)"),
        (["method=gkd", "loss=ab"], "ab(alpha=0.2, beta=0.7) mixed"),
        (["method=gkd", "loss=rkl", "sampler.probability=0.25"], "rkl mixed(probability=0.25)"),
        (["method=imitkd", "preset.student_draw=buffer"], "fkl on_policy(draw=buffer)"),
        (["method=seqkd", "sampler.temperature=0.5"], "sft teacher(temperature=0.5)"),
    ],
)
def test_a_runs_label_tells_loss_and_sampler(words, label):
    assert run_label(load(["model=micro", *words])) == label


def test_a_sign_of_life_whenever_nothing_was_printed_for_a_while():
    code = (
        "import sys, time; from distill.base import console; console.SILENCE = 1.0; console.keep_alive();"
        " [console.say('here') or time.sleep(0.1) for _ in range(20)]; print('quiet', file=sys.stderr); time.sleep(3.5)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    busy, _, quiet = done.stderr.partition("quiet")
    assert done.returncode == 0 and busy.count("still running") <= 1  # tqdm's import may take longer
    assert quiet.count("still running") >= 2


def test_the_demo_says_what_it_does_within_a_second():
    """Before anything heavy is imported."""
    code = (
        "import sys, time; start = time.monotonic(); from distill import table; from distill.base import console;"
        " console.say = lambda text: sys.exit(f'{text} {time.monotonic() - start:.2f} {\"torch\" in sys.modules}');"
        " table.main(['abkd/losses_gpt2'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    found = re.fullmatch(r"abkd/losses_gpt2: loading the libraries (\S+) False\n", done.stderr)
    assert found and float(found[1]) < 5  # 0.2 on an idle machine


def test_a_process_that_was_started_by_hand_says_that_it_waits(monkeypatch):
    from distill.base.processes import OF_LAUNCHER, settle_environment

    values = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    (line,) = settle_environment()
    assert "process 1 of 2" in line and f"unset {' '.join(OF_LAUNCHER)}" in line
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert settle_environment() == []
