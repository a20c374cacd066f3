"""A user's own files: pairs, losses, samplers, templates and tables in a folder, modules by `plugins`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pandas as pd
import pytest
import torch

from distill import run
from distill.base import locations
from distill.base.errors import UserError
from distill.base.registry import LOSSES, SAMPLERS
from distill.config import composer, load
from distill.config.model import WeightsConfig
from distill.losses import build
from distill.models import create
from distill.pipeline.plan import Plan
from distill.pipeline.request import requested
from distill.pipeline.rows import run_label
from distill.results import experiment

ROOT = Path(__file__).resolve().parents[1]

PAIR = """
# @package _global_
# {name}, a pair of one's own.
defaults:
  - override /data: dolly

model:
  name: {name}
  architecture: {architecture}
  tokenizer: gpt2
  source: hub
  lora: {lora}
  teacher: {{id: nobody/teacher}}
  student: {{id: nobody/student}}
"""
FILES = {
    "model/qwen.yaml": PAIR.format(name="qwen", architecture="qwen2", lora="null"),
    "model/pythia.yaml": PAIR.format(
        name="pythia", architecture="gpt_neox", lora="{r: 4, alpha: 8, dropout: 0.0, targets: [query_key_value]}"
    ),
    "loss/mine.yaml": "# Twice the reverse KL.\nname: mine\nw_ce: 0.0\nw_kd: 1.0\ntemperature: 1.0\n",
    "sampler/mine.yaml": "name: mine\nmax_new_tokens: ${eval.max_new_tokens}\n",
    "template/mine.yaml": 'with_input: "{input}\\n{instruction} {x}:"\nwithout_input: "{instruction}:"\n',
    "experiments/own/table.yaml": """
        title: A table of one's own
        paper: own
        model: qwen
        sources: []
        against: Mine
        overrides: ["plugins=[my_parts]"]
        columns: {Dolly: {dataset: dolly}}
        rows:
          RKL: {overrides: [loss=rkl]}
          Mine: {overrides: [loss=mine]}
        """,
    "my_parts.py": """
        from dataclasses import dataclass, field

        from distill.losses.base import Divergence, register
        from distill.samplers.base import StudentText
        from distill.samplers.base import register as register_sampler


        @register("mine")
        @dataclass(frozen=True)
        class Mine(Divergence):
            '''Twice the reverse KL.'''

            factor: float = 2.0

            def from_log_probs(self, student, teacher, targets):
                return self.factor * (student.exp() * (student - teacher)).sum(-1)


        @dataclass(frozen=True)
        class When:
            start: float = 0.5
            stop: float = 1.0


        @dataclass(frozen=True)
        class Corrected:
            '''Corrections of the student's text.'''

            corrections: int = 0
            words: tuple = (1.0, 2.0)
            when: When = When()

            def __post_init__(self):
                if self.corrections < 0:
                    raise ValueError(f"corrections={self.corrections} must be 0 or more")


        @register_sampler("mine")
        @dataclass
        class Writes(StudentText):
            '''The student's text.'''

            edits: Corrected = field(default=Corrected())
            reads_data = False

            def next(self, rows, step, writer):
                return self.fresh(rows, step, writer)
        """,
}
PLUGIN = "plugins=[my_parts]"


def written(folder):
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text).lstrip())
    return folder


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The folder, known to this process; what its modules register is forgotten afterwards."""
    before = LOSSES.snapshot(), SAMPLERS.snapshot()
    monkeypatch.setattr(locations, "_user_folders", [])
    monkeypatch.setattr(sys, "path", [*sys.path])
    locations.add_config_dir(written(tmp_path / "own"))
    yield tmp_path / "own"
    LOSSES.restore(before[0])
    SAMPLERS.restore(before[1])
    for name in ("my_parts", "other", "half", "taken"):
        sys.modules.pop(name, None)


def problems(*overrides):
    with pytest.raises(UserError) as caught:
        load(list(overrides))
    return "\n".join(caught.value.problems)


def command(module, *words, cwd):
    return subprocess.run(
        [sys.executable, "-m", f"distill.{module}", *words],
        cwd=cwd, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_a_qwen_pair_with_a_loss_and_a_template_of_ones_own(tmp_path):
    """From another folder, as a sweep: every job needs the folder and the plugin anew."""
    written(tmp_path / "own")
    words = ["model=qwen", "loss=mine", PLUGIN, "data.template=mine", "debug=smoke", "-m", "loss.factor=1,3"]
    done = command("run", "--config-dir", "own", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    values = pd.read_csv(tmp_path / ".smoke/results/qwen/runs/long.csv")
    assert set(values["row"]) == {"mine(factor=1)", "mine(factor=3)"}
    types = {json.loads(file.read_text())["model_type"] for file in (tmp_path / ".smoke/store").rglob("config.json")}
    assert types == {"qwen2"}


def test_a_pythia_pair_with_adapters_and_a_sampler_of_ones_own(tmp_path):
    written(tmp_path / "own")
    words = ["model=pythia", "sampler=mine", "sampler.edits.corrections=2", PLUGIN, "debug=smoke"]
    done = command("run", *words, "--config-dir=own", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    values = pd.read_csv(tmp_path / ".smoke/results/pythia/runs/long.csv")
    assert set(values["row"]) == {"fkl mine(edits.corrections=2)"}


def test_list_shows_what_plugins_register(tmp_path):
    written(tmp_path / "own")
    done = command("list", "losses", "--config-dir", "own", PLUGIN, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.strip().startswith("mine ")]
    assert "mine.yaml" not in line


def test_cfg_and_errors_of_the_commands(tmp_path):
    written(tmp_path / "own")
    done = command("run", "--cfg", "job", "--config-dir", "own", "loss=mine", PLUGIN, cwd=tmp_path)
    assert done.returncode == 0 and "  name: mine\n" in done.stdout, done.stderr
    for words, message in [
        (["--config-dir", "nowhere"], "--config-dir nowhere: no such folder"),
        (["plugins=[no_such]"], "plugins=no_such does not import (ModuleNotFoundError: No module named 'no_such'); a"),
    ]:
        done = command("run", "loss=fkl", *words, cwd=tmp_path)
        error_lines = [
            line for line in done.stderr.splitlines() if "still running" not in line
        ]  # said on a slow machine
        assert done.returncode == 2 and "Traceback" not in done.stderr and len(error_lines) == 1
        assert message in done.stderr
    listed = command("list", "losses", "models", "tables", "--config-dir", "own", cwd=tmp_path)
    assert "Twice the reverse KL." in listed.stdout and "pythia, a pair of one's own." in listed.stdout
    assert "own/table" in listed.stdout and "A table of one's own" in listed.stdout


def test_the_options_of_the_folder_compose(own):
    config = load(["model=qwen", "loss=mine", PLUGIN, "data.template=mine", "debug=smoke"])
    assert config.model.architecture == "qwen2" and config.data.template.name == "mine"
    assert config.loss.determining["name"] == "mine"
    p, q = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 0.5]])
    torch.testing.assert_close(build("mine", factor=1.0)(q, p), build("rkl")(q, p))
    assert "(loss: ab, " in problems("loss=min") and "mine" in problems("loss=min")
    assert "no template is named mien; did you mean mine?" in problems("data.template=mien")


def test_a_table_of_the_folder(own):
    made, labels = requested(["--config-dir", str(own), "own/table", "debug=smoke", "train_seeds=[1,2]"])
    assert labels == ["Teacher", "SFT", "RKL", "Mine"] and len({row.run for row in made.rows["Mine"]}) == 2
    with pytest.raises(UserError, match="which table"):
        requested(["--config-dir", str(own)])
    assert "own/table" in experiment.names() and "akl/main" in experiment.names()
    found = experiment.load("own/table")
    assert load([*found.overrides, *found.rows["Mine"].overrides, "model=qwen", "debug=smoke"]).loss.name == "mine"


def test_the_page_on_ones_own_files(tmp_path, own):
    """Its pair, loss, sampler, template and table work as printed."""
    text = (ROOT / "docs" / "own_configs.md").read_text()
    pair, renyi, careful, template, table, recipe = (block.split("```")[0] for block in text.split("```yaml\n")[1:])
    loss, sampler = (block.split("```")[0] for block in text.split("```python\n")[1:])
    for name, content in {
        "model/qwen.yaml": pair, "template/chat.yaml": template, "other.py": loss + sampler,
        "loss/renyi.yaml": renyi, "sampler/careful.yaml": careful,
        "experiments/own/page.yaml": table.replace("my_losses", "other"),
    }.items():  # fmt: skip
        (own / name).write_text(content)
    composer._files.cache_clear()
    composer._merged.cache_clear()
    words = ["model=qwen", "loss=renyi", "sampler=careful", "data.template=chat", "plugins=[other]", "loss.order=0.7"]
    config = load([*words, "sampler.edits.corrections=2"])
    assert config.data.template.without_input.endswith("Answer:") and config.model.teacher.id == "Qwen/Qwen2.5-1.5B"
    assert run_label(config) == "renyi(order=0.7) careful(edits.corrections=2)"
    _, labels = requested(["--config-dir", str(own), "own/page", "debug=smoke"])
    assert labels == ["Teacher", "SFT", "FKLD", "Renyi 0.3", "Renyi 0.5", "Renyi 0.7"]
    page = table.replace("my_losses", "other").replace("  FKLD: {overrides: [loss=fkl]}\n", recipe)
    (own / "experiments/own/page.yaml").write_text(page)
    made, _ = requested(["--config-dir", str(own), "own/page", "debug=smoke", "model=gpt2", "preset=reference"])
    assert (made.rows["FKLD"][0].config.loss.w_ce, made.rows["FKLD"][0].config.train.start.epochs) == (0.5, 0)


def test_names_of_the_projects_own_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(locations, "_user_folders", [])
    for name in ("loss/ab.yaml", "experiments/akl/main.yaml", "plugins/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("name: ab\n")
    with pytest.raises(UserError) as caught:
        locations.add_config_dir(tmp_path)
    text = "\n".join(caught.value.problems)
    assert "loss/ab.yaml has the name of one of the project's own files" in text and "akl/main.yaml has" in text
    assert "plugins is a key of the config" in text and not locations.config_dirs()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1 / 0", "plugins=other does not import (ZeroDivisionError: division by zero); a plugin is a module in"),
        ("import sys; sys.exit(3)", "plugins=other does not import (SystemExit: 3)"),
        ("def f(:", "plugins=other does not import (SyntaxError"),
        ("from distill.losses.base import register\n@register('fkl')\nclass A: pass",
         "the loss name fkl is taken by distill.losses.kl; register another"),
        ("from distill.losses.base import register\n@register('sft')\nclass A: pass", "the loss name sft is taken"),
        ("from distill.samplers import base\n@base.register('fixed')\nclass A: pass",
         "the sampler name fixed is taken by distill.samplers.fixed"),
        ("from distill.losses.base import register\n@register('mine')\nclass A: pass",
         "the loss name mine is taken by my_parts"),
    ],
)  # fmt: skip
def test_a_plugin_that_does_not_import(own, text, message):
    (own / "other.py").write_text(text)
    found = problems("plugins=[my_parts,other]", "model=micro")
    assert message in found and len(found.splitlines()) == 1


def test_a_plugin_that_comes_before_the_package_takes_no_name_of_it(tmp_path):
    """In a process that has not asked for a loss yet."""
    text = "from distill.base.registry import LOSSES\n@LOSSES.register('tvd')\nclass A: pass\n"
    (tmp_path / "early.py").write_text(text)
    done = command("run", "plugins=[early]", "loss=tvd", "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 2 and "the loss name tvd is taken by distill.losses.tvd" in done.stderr


def test_a_plugin_that_fails_half_way_can_be_mended(own):
    half = "from distill.losses.base import Divergence, register\n@register('half')\nclass A(Divergence): pass\n"
    (own / "half.py").write_text(half + "oops\n")
    for _ in range(2):
        assert "NameError" in problems("plugins=[half]")
    assert "half" not in LOSSES.names()


def test_nested_parameters(own):
    base = ["model=micro", PLUGIN, "sampler=mine"]
    plain, two = load(base), load([*base, "sampler.edits.corrections=2"])
    assert two.sampler.chosen["edits"] == {"corrections": 2} and "edits" not in plain.sampler.chosen
    same = load([*base, "sampler.edits.corrections=0", "sampler.edits.words=[1,2]", "sampler.edits.when.stop=1.0"])
    assert same.sampler.determining == plain.sampler.determining
    assert two.sampler.determining["edits"] == {"corrections": 2}
    deep = load([*base, "sampler.edits.when.start=0.25"])
    assert run_label(deep) == "fkl mine(edits.when.start=0.25)" and run_label(plain) == "fkl mine"
    assert Plan(same).student.key == Plan(plain).student.key != Plan(two).student.key != Plan(deep).student.key
    made = SAMPLERS.build("mine", **deep.sampler.parameters)
    assert made.edits.when.start == 0.25 and made.edits.when.stop == 1.0 and made.edits.corrections == 0
    assert SAMPLERS.defaults("mine")["edits"] == {
        "corrections": 0, "words": (1.0, 2.0), "when": {"start": 0.5, "stop": 1.0},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "sampler.edits.corections=2",
            "sampler.edits.corections=2: no such key; did you mean sampler.edits.corrections",
        ),
        ("sampler.eidts.corrections=2", "or sampler.edits.corrections?"),
        ("sampler.edits.when.strat=2", "no such key; did you mean sampler.edits.when.start"),
        ("+sampler.edits.corections=2", "mine.edits has no parameter corections; did you mean corrections? (it has"),
        ("sampler.edits.corrections=a", "edits.corrections='a' is not a whole number"),
        ("sampler.edits.corrections=-1", "corrections=-1 must be 0 or more"),
        ("sampler.edits.when.start=[1]", "edits.when.start=[1] is not a number"),
        ("sampler.edits=2", "edits=2 is a group of parameters; set edits.corrections, edits.words, edits.when"),
        ("loss.factr=2", "loss.factr=2: no such key"),
    ],
)
def test_wrong_nested_parameters(own, override, message):
    found = problems("model=micro", PLUGIN, "sampler=mine", override)
    assert message in found and len(found.splitlines()) == 1


def test_a_parameter_that_the_yaml_leaves_out_is_a_key(own):
    assert load(["model=micro", PLUGIN, "loss=mine", "loss.factor=3"]).loss.parameters == {"factor": 3}
    words = run.for_hydra([PLUGIN, "loss=mine", "loss.factor=3"])
    assert words[:3] == [PLUGIN, "loss=mine", "++loss.factor=3"] and words[3].startswith("hydra.searchpath=[")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("with_input: '{instruction}'\nwithout_input: '{instruction}'\n", "with_input has {input} 0 times"),
        ("with_input: '{instruction} {input}'\nwithout_input: '{instruction} {input}'\n", "{input} 1 times, and"),
        ("with_input: '{instruction} {input}'\n", "has two texts, with_input and without_input; found with_input"),
        ("a: [", "while parsing"),
    ],
)
def test_a_template_that_is_none(own, text, message):
    (own / "template" / "bad.yaml").write_text(text)
    found = problems("model=micro", "data.template=bad")
    assert message in found and len(found.splitlines()) == 1


def test_a_config_file_that_is_none(own):
    broken = {"a: [": "while parsing", "- 1\n": "a config is a mapping", "a: 1\na: 2\n": "duplicate key a"}
    for text, message in broken.items():
        (own / "loss" / "bad.yaml").write_text(text)
        composer._files.cache_clear()
        composer._merged.cache_clear()
        assert message in problems("loss=bad") and "loss/bad.yaml" in problems("loss=bad")


@pytest.mark.parametrize(("architecture", "near"), [("qwen22", "qwen2"), ("gpt-neox", "gpt_neox"), ("bert-like", "")])
def test_an_architecture_that_there_is_not(architecture, near):
    found = problems("model=micro", f"model.architecture={architecture}")
    assert f"no causal language model of transformers has the type {architecture}" in found and near in found


class Vocabulary:
    bos_token_id = eos_token_id = pad_token_id = 0

    def __len__(self):
        return 100


@pytest.mark.parametrize("architecture", ["qwen2", "gpt_neox", "mistral", "falcon", "gptj"])
def test_random_models_of_other_architectures(architecture):
    weights = WeightsConfig(hidden=32, layers=2, heads=2)
    model = create.random_model(architecture, weights, Vocabulary(), 1)
    assert model.config.model_type == architecture and model.config.num_hidden_layers == 2
    assert model(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 100)


def test_an_architecture_without_such_sizes_is_refused():
    with pytest.raises(UserError, match=r"model\.architecture=mamba: no random model .* no num_attention_heads"):
        create.random_model("mamba", WeightsConfig(hidden=32, layers=2, heads=2), Vocabulary(), 1)
