"""What a table's columns ask of a row beside ROUGE-L, whatever was measured before; a transposed table, run whole."""

from __future__ import annotations

import pandas as pd
import pytest

from distill.base.errors import UserError
from distill.pipeline import keys
from distill.pipeline.measure import Measurements, measure
from distill.pipeline.rows import Row
from distill.pipeline.tables import Table
from distill.results.experiment import Experiment

COLUMNS = {
    "excess": {"dataset": "dolly", "metric": "exaccerr:whole"},
    "agreement": {"dataset": "dolly", "metric": "agreement_top1"},
}
ROWS = {"FKL": {"overrides": ["loss=fkl"]}, "SFT": {"overrides": ["loss=sft"]}}


def experiment(**more):
    common = {"title": "T", "paper": "own", "model": "micro", "context": False, "transposed": True, "against": "FKL"}
    return Experiment.model_validate({**common, "columns": COLUMNS, "rows": ROWS, **more})


def words(folder, *more):
    scratch = [f"paths.store={folder}/store", f"paths.results={folder}/results"]
    return ["debug=smoke", "model=micro", "eval.sets=[dolly]", "seed=[10,20]", *scratch, *more]


def test_columns_of_comparisons_are_measured_whatever_ran_before(tmp_path, smoke):
    """A run that was measured before its teacher had texts, and one without a teacher, have their cells too."""
    measure(Row("FKL", smoke("model=micro", "loss=fkl", "eval.sets=[dolly]", "seed=[10,20]")), Measurements())
    table = Table("own/t", experiment(), words(tmp_path))
    assert table.measure(table.labels) == []
    frame = table.write().frame.set_index("row")
    assert list(frame.index) == ["excess", "agreement"] and list(frame.columns) == ["FKL", "SFT"]
    values = frame.map(float)
    assert values.loc["agreement"].between(0, 100).all()
    long = pd.read_csv(tmp_path / "results/micro/own/t_long.csv", dtype=str, keep_default_na=False)
    excess = long[long["metric"] == "exaccerr:whole"]
    assert set(excess["seed"]) == {"10"} and set(excess["row"]) == {"FKL", "SFT"}  # the seed that it was read from


def test_exposure_bias_of_another_first_seed_is_another_fact(tmp_path):
    """The order of seeds decides whose texts are read, and each value says it."""
    for seeds in ("[10,20]", "[20,10]"):
        more = ["train.teacher.lr=0.05", f"seed={seeds}"]  # a teacher that writes other texts than the student
        table = Table("own/t", experiment(rows={"FKL": ROWS["FKL"]}), words(tmp_path, *more))
        assert table.measure(["FKL"]) == []
    facts = table.rows["FKL"][0].folder.facts()
    excess = facts[facts["metric"] == "exaccerr:whole"].set_index("seed")["value"].astype(float)
    assert sorted(excess.index) == ["10", "20"] and excess["10"] != excess["20"]


def test_a_student_without_a_teacher_is_compared_with_each_table_s_own(tmp_path):
    """Its run does not depend on a teacher; the names of these facts do, and a table shows those of its teacher."""
    agreements = []
    for lr in (1e-4, 0.05):
        table = Table("own/t", experiment(), words(tmp_path, f"train.teacher.lr={lr}"))
        assert table.measure(table.labels) == []
        agreements.append(table.write().frame.set_index("row").loc["agreement"])
        row = table.rows["SFT"][0]
    assert row.plan.other_teacher and not table.rows["FKL"][0].plan.other_teacher
    names = row.folder.facts()["metric"]
    assert sum(name.startswith("agreement_top1:teacher=") for name in names) == 2
    first = Table("own/t", experiment(), words(tmp_path, "train.teacher.lr=0.0001")).write().frame.set_index("row")
    pd.testing.assert_series_equal(first.loc["agreement"], agreements[0])


def test_exposure_bias_needs_texts_of_the_models_own_distribution(tmp_path):
    table = Table("own/t", experiment(), words(tmp_path, "eval.temperature=0.7"))
    with pytest.raises(UserError, match="FKL: exposure bias is a mean over texts"):
        table.measure(["FKL"])
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"A": {"dataset": "dolly", "metric": "rougel"}},
            "dolly has no metric rougel; did you mean rouge_l",
        ),
        ({"A": {"dataset": "dollly"}}, r"column A: no data set is named dollly; did you mean dolly"),
        ({"A": {"dataset": "training", "metric": "rouge_l"}}, r"training has no metric rouge_l \(there are peak_gb"),
        ({"A": {"dataset": "dolly", "metric": "minutes"}}, r"dolly has no metric minutes"),
    ],
)
def test_a_column_that_nothing_measures_is_refused_before_the_first_stage(tmp_path, columns, message):
    with pytest.raises(UserError, match=message):
        Table("own/t", experiment(columns=columns), words(tmp_path))
    assert not (tmp_path / "store").exists()


def test_averages_of_averages_and_rows_named_as_context_rows_are_refused():
    nested = {"X": {"dataset": "dolly"}, "B": {"average": ["X"]}, "A": {"average": ["B", "X"]}}
    with pytest.raises(ValueError, match="column A averages B, which is an average itself"):
        experiment(columns=nested)
    with pytest.raises(ValueError, match="a row is labelled SFT, which every table has above its own rows"):
        experiment(context=True)


def test_training_seeds_of_a_measured_table_are_its_default(tmp_path):
    """The plain command writes the same table again; a smaller one has to be asked for."""
    name, rows = "abkd/losses_gpt2", ["FKL"]
    wide = Table(name, experiment(), words(tmp_path), train_seeds=[1, 2])
    assert wide.measure(rows) == []
    wide.write()
    path = wide.manifest().path(f"{tmp_path}/results")
    before = path.read_bytes()
    again = Table(name, experiment(), words(tmp_path))
    again.write()
    assert path.read_bytes() == before and "training seeds 1, 2, as in" in again.remembered
    assert Table(name, experiment(), words(tmp_path), train_seeds=[2]).manifest().train_seeds == [2]
    assert Table(name, experiment(), words(tmp_path, "train.seed=3")).manifest().train_seeds == [3]


def test_a_comparison_of_an_earlier_version_is_made_again(tmp_path, monkeypatch):
    """Its facts are replaced: the key of a run does not depend on how its comparisons are made."""
    columns = {"agreed": {"dataset": "dolly", "metric": "scrg:agreed"}}
    table = Table("own/t", experiment(columns=columns, rows={"FKL": ROWS["FKL"]}), words(tmp_path))
    folder = table.rows["FKL"][0].folder
    assert table.measure(["FKL"]) == []
    first = folder.facts()
    facts = folder.folder / "facts.csv"
    stale = first.assign(value=first["value"].where(first["metric"] != "scrg:agreed", "-1"))
    stale.to_csv(facts, index=False)
    before = facts.read_bytes()
    assert (
        Table("own/t", experiment(columns=columns, rows={"FKL": ROWS["FKL"]}), words(tmp_path)).measure(["FKL"]) == []
    )
    assert facts.read_bytes() == before  # of this version: nothing is made
    monkeypatch.setitem(keys.VERSIONS, "corrections", keys.VERSIONS["corrections"] + 1)
    again = Table("own/t", experiment(columns=columns, rows={"FKL": ROWS["FKL"]}), words(tmp_path))
    assert again.measure(["FKL"]) == []
    pd.testing.assert_frame_equal(folder.facts(), first)
    assert sum(name.startswith("corrections/") for name in folder.description()["artifacts"]) == 2
