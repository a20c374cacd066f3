"""The cached composition gives what Hydra gives, for every option and every kind of override, and is fast."""

from __future__ import annotations

import time

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from distill import run
from distill.base import locations
from distill.base.errors import UserError
from distill.base.locations import CONF
from distill.config import composer, load
from distill.results import experiment

OPTIONS = sorted((f.parent.name, f.stem) for f in CONF.glob("*/*.yaml") if f.parent.name != "template")
KINDS = [
    [],
    ["method=gkd", "loss=ab", "sampler.probability=0.25"],
    ["loss=ab", "method=gkd", "preset=reference", "debug=smoke"],
    ["model=gpt2", "data=micro"],
    ["data=micro", "model=gpt2", "++data.train={skip: 3}"],
    ["+train.oops=1", "++loss.w_kd=0.5", "~eval.judge", "seed=[1,2]"],
    ["++data.eval.mine.file=m.jsonl", "+data.eval.mine.title=Mine", "model.lora=null"],
    ["+model.lora={r: 4, alpha: 8.0, dropout: 0.0, targets: [q]}"],
    ["~tracker"],
    ["~train.student.lr"],
    ["loss.w_kd=${loss.w_ce}", "paths.store=${paths.results}/x", "eval.bertscore=null"],
    ["+data@other=micro", "model=smollm2"],
    ["train.student.lr=0.1", "train.student.lr=0.2"],
    ["plugins=[a.b,c]", "paths.store='a b'", "eval.judge.price=[1.0,2.0]"],
]


def by_hydra(words):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra_compose("config", overrides=words)


@pytest.mark.parametrize("words", [*KINDS, *([f"{group}={option}"] for group, option in OPTIONS)], ids=str)
def test_the_same_config_as_hydras(words):
    ours, theirs = composer.compose(words), by_hydra(words)
    assert OmegaConf.to_yaml(ours) == OmegaConf.to_yaml(theirs)
    assert OmegaConf.to_container(ours, resolve=True) == OmegaConf.to_container(theirs, resolve=True)
    assert OmegaConf.to_yaml(composer.compose(words)) == OmegaConf.to_yaml(theirs)  # what is cached stays as it is


@pytest.mark.parametrize(
    "words", [["loss=ab", "model=openllama2"], ["model=smollm2", "data.train.skip=5", "model.teacher.path=x/y@abc"]]
)
def test_cfg_job_prints_what_hydra_prints(words):
    assert run.merged_config(words) == OmegaConf.to_yaml(by_hydra(run.for_hydra(words)))


@pytest.mark.parametrize(
    "words", [["train.oops=1"], ["+seed=1"], ["~nothing"], ["seed=1,2"], ["nogroup@x=1"], ["data@x=micro"]]
)
def test_the_same_errors_as_hydras(words):
    messages = []
    for make in (composer.compose, by_hydra):
        with pytest.raises(HydraException) as caught:
            make(words)
        messages.append(str(caught.value).split("\nConfig search path")[0])
    assert messages[0] == messages[1]


def test_merges_that_omegaconf_has_rules_for(tmp_path, monkeypatch):
    """A mapping over an interpolation, and `???`, are left to OmegaConf."""
    for name, text in {
        "config": 'defaults: [_self_, a: x]\na: {inner: "${b}", kept: 1}\nb: {c: 1}\n',
        "a/x": "inner: {d: 2}\nkept: ???\n",
        "a/y": "inner: null\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(composer, "CONF", tmp_path)
    composer._files.cache_clear()
    composer._merged.cache_clear()
    try:
        for words in ([], ["a=y"]):
            with initialize_config_dir(str(tmp_path), version_base="1.3"):
                theirs = hydra_compose("config", overrides=words)
            assert OmegaConf.to_yaml(composer.compose(words)) == OmegaConf.to_yaml(theirs)
    finally:
        composer._files.cache_clear()
        composer._merged.cache_clear()


def test_a_table_of_thirty_rows_composes_in_two_seconds():
    rows = list(experiment.load("abkd/losses_gpt2").rows.values())
    words = [[*rows[i % len(rows)].overrides, "model=gpt2", f"loss.temperature={1 + i / 100}"] for i in range(30)]
    load(words[0])  # imports
    composer._merged.cache_clear()
    started = time.process_time()
    for one in words:
        load(one)
    assert time.process_time() - started < 2


def test_options_and_tables_are_those_of_the_folders():
    assert set(locations.options("loss")) >= {"ab", "sft"} and "akl/main" in locations.tables()


def test_hydras_own_settings_are_checked_by_hydra():
    assert load(["loss=ab", "hydra.job.chdir=true", "loss.alpha=0.3"]).loss.parameters["alpha"] == 0.3
    with pytest.raises(UserError, match=r"hydra\.oops"):
        load(["loss=ab", "hydra.oops=1"])
