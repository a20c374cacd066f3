"""What each row trains with under both presets, against the values of published scripts (data/scripts.csv)."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf

from distill import run
from distill.base import locations
from distill.base.errors import UserError
from distill.config import load
from distill.config.compose import checked
from distill.config.reference import ReferenceConfig
from distill.pipeline import fidelity
from distill.pipeline.fidelity import page, pairs_of, recipe_text
from distill.pipeline.plan import Plan
from distill.pipeline.request import requested
from distill.results import experiment
from distill.results.recipes import method_recipe, row_recipe

SCRIPTS = pd.read_csv(Path(__file__).parent / "data/scripts.csv", dtype=str, keep_default_na=False)
NO_CORPUS = "data.pretrain=off"
METHODS = [name for name in locations.options("method") if name != "none"]
PAIRS = ["gpt2", "openllama2", "opt", "opt_13b", "tinyllama"]
ROWS = 11_435  # of the papers' training set


def script(reference: ReferenceConfig) -> pd.Series:
    """The line of a source; a commit that was read for another line of the same path does not count."""
    same = SCRIPTS["repository"].str.lower() == reference.repository.lower()
    lines = SCRIPTS[same & (SCRIPTS["path"] == reference.path) & (SCRIPTS["commit"] == reference.commit)]
    assert len(lines) == 1, f"{reference.source} has {len(lines)} lines in scripts.csv"
    return lines.iloc[0]


# What a script's type trains: loss, and sampler where the type decides it
TYPES = {
    "kd": ("fkl", None), "fkl": ("fkl", None), "lm": ("sft", None), "ab": ("ab", "fixed"), "jsd": ("jsd", "fixed"),
    "alphanet": ("alphanet", "fixed"), "srkl": ("srkl", "fixed"), "minillm": ("minillm", "rollout"),
    "mixed-fkl": ("fkl", "on_policy"), "mixed-jsd": ("jsd", "mixed"), "jsd-mixed": ("jsd", "mixed"),
    "adaptive-sfkl": ("skl", "adaptive"), "adaptive-srkl": ("srkl", "adaptive"), "srkl-aesop": ("srkl", "adaptive"),
    "adaptive-ab": ("ab", "adaptive"),
}  # fmt: skip
# Rows with another loss or sampler than their script on purpose: AKL's README puts its losses in the place of a
# script's, and ABKD has one script for its table of samplers
OTHER = ("akl/", "abkd/samplers_gpt2")


def compare(config, line: pd.Series, own_family: bool, table: str = "") -> None:
    """Every value of a script that was read, against the config. An empty value was not read."""
    stage, loss = config.schedule, config.loss
    if own_family:  # a recipe for another family has the objective of the script and its own family's schedule
        schedule = stage.schedule or config.train.schedule
        expected = {
            "lr": (stage.lr, float), "schedule": (schedule, str),
            "rows_per_gpu": (config.train.rows_per_pass(stage), int),
        }  # fmt: skip
        for name, (value, kind) in expected.items():
            if line[name]:
                assert value == kind(line[name]), name
        if line["gpus"]:
            whole = math.prod(int(line[n]) for n in ("rows_per_gpu", "accumulation", "gpus"))
            assert stage.global_batch_size == whole
        if line["total_steps"]:
            assert -(-ROWS // stage.global_batch_size) * stage.epochs == pytest.approx(
                int(line["total_steps"]), rel=0.01
            )
        elif line["epochs"]:
            assert stage.epochs == int(line["epochs"])
        if line["decay"]:
            decay = config.train.weight_decay if stage.weight_decay is None else stage.weight_decay
            assert (decay, stage.betas or [0.9, 0.999]) == (
                float(line["decay"]),
                [float(b) for b in line["betas"].split()],
            )
    loss_name, sampler = TYPES.get(line["type"], (None, None))
    if not table.startswith(OTHER) and config.method.name != "akl":
        assert loss_name in (None, loss.name) and sampler in (None, config.sampler.name)
        for text in line["loss"].split():
            key, value = text.split("=")
            assert loss.parameters[key] == float(value), text
        parameters = config.sampler.parameters
        if config.sampler.name == "adaptive":
            assert (parameters["threshold"], parameters["eps"]) == (float(line["threshold"]), float(line["eps"]))
        if config.sampler.name == "mixed" and line["mixed_alpha"]:
            assert parameters["probability"] == float(line["mixed_alpha"])
        if "capacity" in parameters:
            assert parameters["capacity"] == 4000  # the default 1,000 of each of four processes
    assert (config.train.start.epochs == 0) == (line["start"] == "raw")
    assert (loss.w_lm or 0.0) == (1.0 if line["corpus"] == "on" else 0.0)
    if line["method"] == "minillm":  # its ratio is that of the corpus term
        assert loss.w_lm_kd == float(line["kd_ratio"])
    elif line["type"] == "lm":
        assert (loss.w_ce, loss.w_kd) == (1.0, 0.0)
    else:
        assert (loss.w_ce, loss.w_kd) == (1 - float(line["kd_ratio"]), float(line["kd_ratio"]))


def own_family(line: pd.Series, pair: str) -> bool:
    return line["family"] == pair.removesuffix("_13b")


@pytest.mark.parametrize(
    ("method", "pair"),
    [(m, p) for m in METHODS for p in PAIRS if (m, p) != ("minillm", "tinyllama")],  # whose batch of 60 fits no rollout
)
def test_a_method_takes_its_scripts_values(method, pair):
    clean = load([f"method={method}", f"model={pair}"])
    config = load([f"method={method}", f"model={pair}", "preset=reference", NO_CORPUS])
    recipes = method_recipe(method, pair)
    for reference in recipes:
        compare(config, script(reference), own_family(script(reference), pair))
    if not recipes:
        assert config.train.student == clean.train.student and config.loss.w_lm is None


@cache
def rows_of(name, pair):
    """The rows of a table under both presets; composing those of all tables takes half a minute."""
    return fidelity.rows_under_both(name, TABLES[name], pair)


TABLES = {name: experiment.load(name) for name in experiment.names()}


@pytest.mark.parametrize("name", [name for name, table in TABLES.items() if table.model is not None])
def test_a_row_takes_its_scripts_values(name):
    for pair in pairs_of(TABLES[name]):
        for label, (clean, reference) in rows_of(name, pair).items():
            assert clean.config.preset.name == "clean"
            for recipe in row_recipe(TABLES[name], label, reference.config.model.name):
                family = own_family(script(recipe), reference.config.model.name)
                compare(reference.config, script(recipe), family, name)


def stage(name: str, family: str, method: str, part: str) -> None:
    line = SCRIPTS[(SCRIPTS["family"] == family) & (SCRIPTS["method"] == method) & SCRIPTS["path"].str.contains(part)]
    line = line[line["repository"].str.contains("distillm")].iloc[0]
    config = load([f"model={family}"]).train
    settings = getattr(config, name) or config.student
    whole = math.prod(int(line[n]) for n in ("rows_per_gpu", "accumulation", "gpus"))
    values = (settings.lr, settings.epochs, settings.global_batch_size, settings.schedule or config.schedule)
    assert values == (float(line["lr"]), int(line["epochs"]), whole, line["schedule"])


@pytest.mark.parametrize(
    ("name", "family", "method", "part"),
    [
        ("sft", "gpt2", "sft", "sft_base"), ("start", "gpt2", "init", "init_base"),
        ("sft", "openllama2", "sft", "sft_3B"), ("teacher", "openllama2", "sft", "sft_7B"),
        ("start", "openllama2", "init", "sft_3B"),
        ("sft", "opt", "sft", "sft_1.3B"), ("teacher", "opt", "sft", "sft_2.7B"), ("start", "opt", "init", "init_1.3B"),
    ],
)  # fmt: skip
def test_a_family_trains_as_its_scripts(name, family, method, part):
    """In both presets: the fine-tunings are no part of what is compared."""
    stage(name, family, method, part)


@pytest.mark.parametrize(("pair", "schedule"), [("gpt2", "constant"), ("opt", "constant"), ("openllama2", "cosine")])
def test_minillm_has_its_own_schedule(pair, schedule):
    config = load(["method=minillm", f"model={pair}"])
    line = SCRIPTS[(SCRIPTS["family"] == pair) & (SCRIPTS["method"] == "minillm")].iloc[0]
    assert config.stage == "rollout" and config.schedule.lr == float(line["lr"])
    assert config.schedule.schedule == schedule == line["schedule"] and config.schedule.warmup_steps == 100
    with pytest.raises(UserError, match=r"trained as train\.rollout of model="):
        load(["method=minillm", f"model={pair}", "train.student.lr=1e-3"])
    load(["method=minillm", f"model={pair}", "train.student.lr=1e-3", "train.rollout.lr=1e-3"])
    with pytest.raises(UserError, match=r"train\.sft of model=openllama2"):
        load(["loss=sft", "model=openllama2", "train.student.epochs=1"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["loss=fkl", "model=openllama2", "train.sft.lr=1e-3"], "trained as train.student of model=openllama2 says"),
        (["loss=fkl", "model=gpt2", "train.rollout.lr=1e-3"], "trained as train.student of model=gpt2 says"),
        (["loss=sft", "model=micro", "train.sft.lr=1e-3"], "this pair has no train.sft; or leave train.sft out"),
        (
            ["method=kd", "model=micro", "data.pretrain.hub=a/b"],
            "data.pretrain: needs either file, or hub and hub_file",
        ),
    ],
)
def test_one_run_refuses_what_it_would_not_read(words, message):
    with pytest.raises(UserError) as error:
        run.check(words, sweep=False)
    assert any(message in problem for problem in error.value.problems) and "literal" not in str(error.value)


def test_a_recipe_is_not_refused_for_words_that_nobody_typed():
    load(["method=kd", "loss=minillm", "sampler=rollout", "model=gpt2", "preset=reference", NO_CORPUS])
    load(["method=kd", "loss.w_kd=0", "loss.w_ce=1", "preset=reference", "model=openllama2"])


def test_clean_rows_of_a_table_train_alike():
    """Under clean the distilled rows of a table learn as long and as fast, but for MiniLLM where its family has a
    schedule of its own for it, which counts rollouts."""
    for name, table in TABLES.items():
        if table.model is None:
            continue
        rows = [clean.config for clean, _ in rows_of(name, table.model).values()]
        assert all((c.train.student, c.train.start) == (rows[0].train.student, rows[0].train.start) for c in rows)
        assert {c.stage for c in rows if c.sampler.name != "rollout" and c.loss.w_kd} <= {"student"}
        assert {c.loss.w_lm for c in rows} == {None}
        # MGSR's objective has both terms (equation 11), whatever the divergence
        weights = {(c.loss.w_ce, c.loss.w_kd) for c in rows if c.method.name != "mgsr"}
        assert name in (
            "mgsr/dac_sensitivity",
            "mgsr/span_sensitivity",
            "mgsr/fig_limits",
            "mgsr/fig_density",
        ) or weights <= {
            (0.0, 1.0),
            (1.0, 0.0),
        }


def test_the_command_line_beats_a_recipe_and_a_row_beats_its_method():
    words = ["method=kd", "model=openllama2", "preset=reference", NO_CORPUS]
    assert load(words).train.student.lr == 1e-5
    assert load([*words, "train.student.lr=0.1"]).train.student.lr == 0.1
    assert load([*words, "loss=rkl"]).loss.name == "rkl"
    assert load(words, of_method=False).train.student.lr == 5e-4
    assert load(words, of_method=False).train.teacher.micro_batch_size == 4  # the pair's own
    composed, _ = checked(words)  # what --cfg job prints
    assert composed.train.student.lr == 1e-5 and composed.loss.w_ce == 0.5
    table, _ = requested(["abkd/methods_openllama2", "preset=reference", NO_CORPUS])
    assert table.rows["KD"][0].config.train.student.lr == 2.5e-4  # its own recipe, and nothing of its method's
    assert table.rows["KD"][0].config.loss.w_ce == 0.0
    assert table.rows["MiniLLM"][0].config.train.rollout.betas == [0.9, 0.95]  # its method's
    assert table.rows["DistiLLM"][0].config.loss.name == "skl"  # over the row's own loss=srkl
    assert all(row.config.train.teacher == table.rows["KD"][0].config.train.teacher
               for rows in table.rows.values() for row in rows)  # fmt: skip
    for word in ("train.start.epochs=1", "train.rollout.weight_decay=0.1"):  # a row's own, and its method's
        with pytest.raises(UserError, match="each row of a table has its own value"):
            requested(["abkd/methods_openllama2", "preset=reference", NO_CORPUS, word])
        requested(["abkd/methods_openllama2", word])


def test_rows_without_a_recipe_do_not_take_the_corpus_of_others(tmp_path):
    """A corpus is given for the rows whose scripts have its term."""
    (tmp_path / "c.txt").write_text("one\n\ntwo\n")
    words = ["abkd/losses_gpt2", "preset=reference", f"data.pretrain.file={tmp_path}/c.txt"]
    added = ["row.Mine=loss=skl", "row.With corpus=loss=skl loss.w_lm=1"]
    weights = {label: rows[0].config.loss.corpus_weight for label, rows in requested([*words, *added])[0].rows.items()}
    assert weights["RKLD"] == weights["WSD"] == weights["FKLD"] == 0.0 and weights["ABKD"] == weights["AKL"] == 1.0
    assert weights["ToDi"] == weights["Mine"] == 0.0 and weights["With corpus"] == 1.0
    alike = requested([*words, "model=micro"])[0].rows.values()  # no recipe for any row: all of them, as under clean
    assert {row.config.loss.corpus_weight for rows in alike for row in rows if row.config.loss.w_kd} == {1.0}


def test_a_page_names_the_overrides_that_apply():
    """A row's own loss or sampler leaves out those of its method's recipe."""
    table, _ = requested(["abkd/samplers_gpt2", "model=openllama2", "other_pair=true", "preset=reference", NO_CORPUS])
    for label, rows in table.rows.items():
        if label in table.experiment.rows:
            page_overrides = [o for r in row_recipe(table.experiment, label, "openllama2") for o in r.overrides]
            config = rows[0].config.model_dump()
            for key, value in (o.split("=", 1) for o in page_overrides):
                in_config = config
                for part in key.split("."):
                    in_config = in_config[part]
                value = OmegaConf.from_dotlist([f"value={value}"]).value  # 1e-5 is a number, as Hydra reads it
                assert str(in_config["name"] if isinstance(in_config, dict) else in_config) == str(value), key


def test_pairs_without_a_recipe_have_the_presets_quirks_alone():
    clean, reference = (load(["method=kd", "model=micro", f"preset={p}"]) for p in ("clean", "reference"))
    assert clean.train.student == reference.train.student and reference.loss.parameters["entropy"] is False


def test_a_recipe_with_a_corpus_needs_one(tmp_path, capsys):
    """A run and a table stop before their first stage; a config can be shown."""
    words = ["method=abkd", "model=gpt2", "preset=reference"]
    (problem,) = load(words).missing_corpus
    assert problem.startswith("loss.w_lm=1.0 adds") and "data.pretrain.file=FILE" in problem
    assert problem.endswith("or data.pretrain=off to train without this term")
    with pytest.raises(UserError, match=r"data\.pretrain names none"):
        run.check(words, sweep=False)
    assert "w_lm: 1.0" in run.merged_config(words)
    table, chosen = requested(["abkd/losses_gpt2", "preset=reference", f"paths.store={tmp_path}/store"])
    with pytest.raises(UserError, match=r"AlphaNet, BDKD, AKL, ABKD: loss\.w_lm=1\.0 adds"):
        table.measure(chosen)
    assert not (tmp_path / "store").exists()
    (tmp_path / "c.txt").write_text("one\n\ntwo\n")
    assert load([*words, NO_CORPUS]).missing_corpus == []
    given = load([*words, f"data.pretrain.file={tmp_path}/c.txt"])
    assert given.missing_corpus == [] and given.data.corpus is not None
    assert load([*words, "debug=smoke"]).missing_corpus == []  # smoke runs have no corpus of their own


def test_teachers_of_a_table_are_one():
    """A recipe changes a student; what all rows share has one key."""
    for name, pair in (
        ("abkd/methods_openllama2", "openllama2"),
        ("abkd/training_time", "gpt2"),
        ("akl/main", "tinyllama"),
    ):
        rows = [reference.config.train for _, reference in rows_of(name, pair).values()]
        for settings in ("teacher", "shared_seed", "weight_decay", "micro_batch_size"):
            assert len({repr(getattr(train, settings)) for train in rows}) == 1


def test_teachers_and_starts_of_rows_with_and_without_a_corpus_have_one_key(tmp_path):
    (tmp_path / "c.txt").write_text("one\n\ntwo\n")
    words = ["model=gpt2", "debug=smoke", "preset=reference", f"data.pretrain.file={tmp_path}/c.txt"]
    plans = [Plan(load([*words, f"method={method}"])) for method in ("abkd", "gkd", "minillm")]
    assert len({plan.teacher.key for plan in plans}) == len({plan.start.key for plan in plans}) == 1
    without = Plan(load([*words, "method=abkd", "loss.w_lm=0.0"]))
    assert without.teacher.key == plans[0].teacher.key and without.student.key != plans[0].student.key


@pytest.mark.parametrize("choice", ["loss=ab", "sampler=fixed", "loss=rkl sampler=mixed", "loss=fkl", "loss=sft"])
def test_a_method_comes_apart_under_reference_too(choice):
    """Another loss or sampler takes the recipe's own parameters of both with it, and no corpus."""
    for method in METHODS:
        for pair in ("gpt2", "openllama2"):
            words = [f"method={method}", f"model={pair}", *choice.split()]
            try:
                load(words)
            except UserError:
                continue  # no pair of loss and sampler, whatever the preset
            config = load([*words, "preset=reference"])
            assert all(f"{key}={getattr(config, key).name}" in choice for key in ("loss", "sampler") if key in choice)


@pytest.mark.parametrize("pair", PAIRS)
def test_every_table_composes_for_every_pair(pair):
    for name, table in TABLES.items():
        if table.model is not None and not (pair == "tinyllama" and "MiniLLM" in table.rows):
            requested([name, f"model={pair}", "other_pair=true", "preset=reference"])


def test_akl_evaluates_without_bos_on_tinyllama():
    table, _ = requested(["akl/main", "model=tinyllama", "preset=reference"])
    assert {row.config.eval.bos for rows in table.rows.values() for row in rows} == {"none"}
    assert load(["model=tinyllama"]).eval.bos == "added" == load(["model=openllama2", "preset=reference"]).eval.bos


def test_wrong_recipes_are_refused(tmp_path):
    for entry, message in (
        ("{source: somewhere, overrides: []}", "source"),
        ("{source: 'a/b@1234567:c.sh', overrides: [lr]}", "not an override"),
        ("{source: 'a/b@1234567:c.sh', overrides: [], pairs: [gpt3]}", "pairs names gpt3"),
    ):
        path = tmp_path / "t.yaml"
        path.write_text(
            "title: T\npaper: p\nmodel: gpt2\nagainst: A\ncolumns: {D: {dataset: dolly}}\n"
            f"rows:\n  A: {{overrides: [loss=fkl], reference: [{entry}]}}\n"
        )
        with pytest.raises(UserError, match=message):
            experiment.parse(path, "t.yaml")


def test_the_page_is_of_this_code():
    assert Path(__file__).parents[1].joinpath("docs/fidelity.md").read_text() == page(), "run make docs"
    config = load(["method=kd", "model=openllama2", "preset=reference"])
    assert recipe_text(config, "student") == ("0.5 CE + 0.5 fkl(entropy=False); lr 1e-05, 16 rows by 4, 10 epochs; raw")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["loss=sft", "loss.w_lm=0.5"], "goes with distillation, and loss=sft has no teacher; leave it out"),
        (
            ["loss=fkl", "loss.w_lm_kd=0.5", "data.pretrain.file=c.txt"],
            "set train.teacher_signal=live, or loss.w_lm_kd=0",
        ),
        (["loss=minillm", "sampler=rollout", "loss.discount=2"], "discount=2 must be larger than 0 and at most 1"),
        (["data.pretrain=abc"], "abc is no corpus; set data.pretrain.file=FILE, or off"),
        (["model=smollm2", "data.eval.sni.min_words=11"], "min_words does not exist any more"),
    ],
)
def test_settings_that_do_not_go_together(words, message):
    with pytest.raises(UserError) as error:
        load(words)
    assert any(message in problem for problem in error.value.problems), error.value.problems


def test_forward_kl_on_the_corpus_goes_with_a_teacher_that_runs():
    for words in (["loss=fkl", "train.teacher_signal=live"], ["method=minillm"]):
        assert load([*words, "model=micro", "loss.w_lm_kd=0.5", "data.pretrain.file=c.txt"]).loss.w_lm_kd == 0.5
