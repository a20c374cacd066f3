"""Rows and tables of one's own, what a run would make, LaTeX, and cells made again (`distill.verify`)."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from dataclasses import replace

import pandas as pd
import pytest
from scipy import stats

from distill import table as table_command
from distill import verify
from distill.base import locations
from distill.base.errors import UserError
from distill.pipeline import verification
from distill.pipeline.preview import Before, overview, preview, sets_line
from distill.pipeline.request import requested
from distill.pipeline.store import Store
from distill.pipeline.tables import Table
from distill.pipeline.verification import Cell, _again, verified
from distill.results import experiment
from distill.results.experiment import Experiment
from distill.results.latex import latex_table
from distill.results.manifest import Manifest, RowRuns
from distill.results.rendering import write_table
from distill.results.runs import Fact, Measured, RunFolder
from distill.results.statistics import Column
from distill.results.table import RowData, cells_table

TABLE = "abkd/losses_gpt2"


@pytest.fixture
def words(tmp_path):
    return ["debug=smoke", "seed=[10,20]", "eval.sets=[dolly]", f"paths.store={tmp_path}/store",
            f"paths.results={tmp_path}/results"]  # fmt: skip


def test_a_row_of_ones_own_stands_apart_and_is_never_dropped(words):
    table, chosen = requested([TABLE, *words, "row.My loss=loss=skl loss.mix=0.3", "rows=[FKLD]"])
    assert chosen == ["Teacher", "SFT", "FKLD", "My loss"]
    (row,) = table.rows["My loss"]
    assert row.config.loss.parameters["mix"] == 0.3
    assert table.measure(chosen) == []
    page = table.write().path.with_suffix(".md").read_text()
    assert "| *added* |" in page and re.search(r"\| My loss \| [\d.]+ .*\[[+-][\d.]+, [+-][\d.]+\]", page)
    assert page.index("| *published later* |") < page.index("| *added* |")
    assert table.manifest().rows[-1].group == "added"
    again, chosen = requested([TABLE, *words])  # without the word the table is as before
    assert "My loss" not in again.rows and chosen[-1] == "AdaKD"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("row.Mine", "it has no settings; write row.LABEL="),
        ("row.Mine=", "it has no settings; write row.LABEL="),
        ("row.Mine=skl", "skl is not KEY=VALUE"),
        ("row.Mine=loss='skl", "No closing quotation"),
        ("row.=loss=skl", "the row has no label"),
        ("row.FKLD=loss=skl", "the label 'FKLD' is taken"),
        ("row.SFT=loss=skl", "the label 'SFT' is taken"),
        ("row.Mine=loss=skll", "skll"),
        ("row.Mine=loss=skl loss.mixx=0.3", "mixx"),
        (
            "row.Mine=model=smollm2 loss=skl",
            "row.Mine=model=smollm2 loss=skl: model=smollm2 is for all rows of a table",
        ),
        ("row.Mine=loss=skl seed=[1,2]", "seed=[1,2] is for all rows"),
        ("row.Mine=loss=skl train.seed=7", "train.seed=7 is for all rows"),
        ("row.Mine=loss=skl preset=reference", "preset=reference is for all rows"),
        ("row.Mine=loss=skl data.train.skip=5", "data.train.skip=5 is for all rows"),
        ("row.Mine=loss=skl paths.store=x", "paths.store=x is for all rows"),
        ("row.Mine=loss=skl debug=smoke", "debug=smoke is for all rows"),
        ("row.Mine=loss=skl eval.rouge_tokenizer=characters", "eval.rouge_tokenizer=characters is for all rows"),
        ("row.Mine=loss=skl train.teacher.epochs=2", "train.teacher.epochs=2 is for all rows"),
        ("row.fkld =loss=skl", "row.fkld: 'fkld ' reads like 'FKLD'; write row.LABEL="),
        ("row.Mine=loss=skll", "row.Mine: "),
        ("rows=[Nobody, here]", "no row is named Nobody"),
        ("train_seeds=[1,1]", "train_seeds=[1, 1] names a seed twice"),
        ("train_seeds=[]", "train_seeds=[] names no seed"),
        ("teachers=[a]", "teachers: a is not a seed; write whole numbers, such as teachers=[1,2,3]"),
    ],
)
def test_a_row_that_cannot_be_added_is_refused(words, word, message):
    with pytest.raises(UserError, match=re.escape(message)):
        requested([TABLE, *words, word])


def test_a_row_of_ones_own_may_prune_data_and_train_otherwise(words):
    table, _ = requested([TABLE, *words, "row.Mine=loss=skl data.prune.share=0.2 train.student.lr=1e-4"])
    config = table.rows["Mine"][0].config
    assert (config.data.prune.share, config.train.student.lr) == (0.2, 1e-4)


@pytest.mark.parametrize(
    ("name", "pair", "there"),
    [("mgsr/main", "tinyllama", "openllama2, llama2, opt, gpt2"), ("abkd/losses_gpt2", "opt", "gpt2"),
     ("akl/main", "opt", "gpt2, tinyllama")],
)  # fmt: skip
def test_a_pair_without_printed_numbers_is_refused(words, name, pair, there):
    with pytest.raises(UserError, match=f"{name}: its paper has no numbers for {pair}, only for {there} "):
        requested([name, f"model={pair}", *words])
    assert requested([name, f"model={pair}", "other_pair=true", *words])[0].model == pair
    for other in (*there.split(", "), "micro", "smollm2", "demo"):
        requested([name, f"model={other}", *words])


def test_all_tables_of_a_paper_in_one_command(tmp_path, words, capsys, monkeypatch):
    """Those without numbers for the pair are left out with a line, and one that fails does not stop the others."""
    names = {"akl/cost", "akl/main", "akl/fig_toy_gaussian", "akl/weights"}
    there = {name: path for name, path in locations.tables().items() if name in names}
    monkeypatch.setattr(locations, "tables", lambda *_: there)
    words = [*words, "model=gpt2", "rows=[FKL]"]  # akl/weights has no such row
    assert table_command.main(["akl", *words]) == 2
    output = capsys.readouterr()
    assert "left out: akl/cost: its paper has no numbers for gpt2" in output.out
    assert output.err.count("no row is named FKL") == 2 and "table: " in output.out  # the figure has no rows
    written = {path.name for path in (tmp_path / "results").glob("*/akl/*.csv")}
    assert written == {"main.csv", "main_long.csv"}
    with pytest.raises(UserError, match="no row is named FKL"):
        table_command.main(["akl", "--dry-run", *words])
    shown = capsys.readouterr().out
    assert "akl/main" in shown and "no numbers for this pair" in shown and "akl/weights" not in shown
    with pytest.raises(UserError, match="modle=micro: no such key"):
        table_command.main(["--dry-run", "modle=micro"])


def test_a_figure_has_no_rows_to_add_to(words):
    with pytest.raises(UserError, match="this is a figure"):
        requested(["akl/fig_toy_gaussian", "row.Mine=loss=skl"])
    lines, _, problems = overview(["akl/fig_toy_gaussian", "akl/main"], ["model=micro", *words, "row.Mine=loss=skl"])
    assert problems == [] and list(lines["table"]) == ["akl/fig_toy_gaussian", "akl/main"]
    assert lines["time"][0] == "a figure, which takes no rows"


def test_a_label_with_a_comma_is_quoted(words):
    name, label = "mgsr/logit_selective", "Wang et al. 2021, queue"
    with pytest.raises(UserError, match=re.escape(f'write a label with a comma as rows=["{label}"]')):
        requested([name, *words, f"rows=[{label}]"])
    assert label in requested([name, *words, f'rows=["{label}"]'])[1]


def test_a_table_in_a_file_anywhere(tmp_path, words):
    text = (experiment.EXPERIMENTS / f"{TABLE}.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text)
    table, _ = requested([str(tmp_path / "mine.yaml"), *words])
    assert table.name == "abkd/mine" and "FKLD" in table.rows
    (tmp_path / "losses_gpt2.yaml").write_text(text)
    with pytest.raises(UserError, match="would replace those of the table abkd/losses_gpt2"):
        requested([str(tmp_path / "losses_gpt2.yaml"), *words])
    with pytest.raises(UserError, match="there is no such file"):
        requested([str(tmp_path / "nothing.yaml"), *words])
    (tmp_path / "mine.yaml").write_text(text.replace("paper: abkd", "paper: abkd/losses_gpt2"))
    with pytest.raises(UserError, match="the paper 'abkd/losses_gpt2' is part of the names of the table's files"):
        requested([str(tmp_path / "mine.yaml"), *words])
    (tmp_path / "my.mu.yaml").write_text(text)
    with pytest.raises(UserError, match=r"the file name 'my\.mu' is part of the names"):
        requested([str(tmp_path / "my.mu.yaml"), *words])
    (tmp_path / "mine.yaml").write_text(re.sub(r"sources: \[.*\]", "sources: [abkd0_tabel3]", text))
    with pytest.raises(UserError, match=r"sources: results/paper has no abkd0_tabel3\.csv; did you mean"):
        requested([str(tmp_path / "mine.yaml"), *words])


def test_a_dry_run_makes_nothing_and_knows_what_is_there(tmp_path, words):
    table, chosen = requested([TABLE, *words, "rows=[FKLD]"])
    before = preview(table, chosen)
    assert not (tmp_path / "store").exists() or not list(Store(tmp_path / "store").entries(["train", "base"]))
    assert list(before["row"]) == ["Teacher", "SFT", "FKLD"] and set(before["there"]) == {""}
    by_row = before.set_index("row")
    assert by_row["would run"]["Teacher"] == "2 base, train, 2 evaluate" or "train" in by_row["would run"]["Teacher"]
    assert by_row["time"]["FKLD"] == "not measured"
    assert "Dolly Eval" in sets_line(table)
    assert table.measure(chosen) == []
    after = preview(*requested([TABLE, *words, "rows=[FKLD]"])).set_index("row")
    assert set(after["would run"]) == {""} and after["there"]["FKLD"] == "2 evaluate"
    # another loss of the pair on the same set takes what FKLD took
    later = preview(*requested([TABLE, *words, "rows=[RKLD]"])).set_index("row")
    assert later["would run"]["RKLD"] == "train, 2 evaluate" and later["time"]["RKLD"].endswith(" s")
    known = Before.read(Store(tmp_path / "store"), tmp_path / "results")
    assert ("train", "gpt2-student-fkl") in known.seconds and ("evaluate", "gpt2-student-fkl-dolly") in known.seconds


@pytest.mark.parametrize("name", ["akl/fig_toy_convergence", "akl/fig_flipped", "akl/preference", "mgsr/teacher_size"])
def test_a_dry_run_of_every_kind_of_table(words, name, capsys):
    assert table_command.main([name, "--dry-run", "model=micro", *words]) == 0
    assert "Sets: " in capsys.readouterr().out


def test_a_dry_run_without_the_data(tmp_path, capsys):
    """The hub is out of reach: the rows and their stages are shown all the same, and what to fetch."""
    words = [f"paths.store={tmp_path}/store", f"paths.results={tmp_path}/results"]
    assert table_command.main([TABLE, "--dry-run", "model=gpt2", "data=dolly", "rows=[FKLD]", *words]) == 0
    shown = capsys.readouterr().out
    assert "run first: hf download MiniLLM/dolly raw.jsonl" in shown and "Sets: training not here" in shown
    assert "signal, 2 train, 25 evaluate" in shown


def test_a_row_whose_run_is_another_rows_is_there_only_if_that_is(tmp_path, words):
    rows = {"A": {"overrides": ["loss=fkl"]}, "B": {"overrides": ["loss=fkl"]}}
    parsed = Experiment.model_validate({"title": "T", "paper": "own", "model": "gpt2", "rows": rows, "against": "A",
                                        "context": False, "columns": {"Dolly Eval": {"dataset": "dolly"}}})  # fmt: skip
    shown = preview(Table("own/t", parsed, words), ["A", "B"]).set_index("row")
    assert shown["would run"]["B"] == "what a row above makes" and set(shown["teacher"]) == {"10"}


def test_all_tables_in_one_overview(words):
    lines, unread, problems = overview(experiment.names(), ["model=micro", *words])
    tables = lines.set_index("table")
    assert unread == problems == []
    assert set(tables.index) == set(experiment.names())
    assert tables["training seeds"][TABLE] == "1" and tables["training seeds"]["akl/preference"] == ""
    assert int(tables["rows"][TABLE]) > 10 and tables["there"][TABLE] == "0" and tables["rows"]["akl/preference"] == "0"


def test_a_table_that_needs_a_judge_trains_nothing(tmp_path, words):
    table, chosen = requested(["akl/preference", *words])
    assert table.measure(chosen) == [] and table.any_measured()
    written = table.write()
    assert set(written.frame["Diversity Win"]) == {"needs a judge"}
    assert not list(Store(tmp_path / "store").entries(["train"]))
    page = written.path.with_suffix(".md").read_text()
    assert "## Quality Loss" in page and "| AKL vs FKL | needs a judge | 13.1 |" in page


def made_row(label, mean, group="paper", role="student"):
    lines = [{"dataset": "dolly", "metric": "rouge_l", "train_seed": 1, "seed": "10", "value": mean},
             {"dataset": "training", "metric": "minutes", "train_seed": 1, "seed": "", "value": mean}]  # fmt: skip
    return RowData(RowRuns(label, group, role, "gpt2", []), pd.DataFrame(lines), [], [])


LATEX = r"""% T & more
% a line
% needs \usepackage{booktabs}
\begin{tabular}{lrr}
\toprule
 & Dolly \& co & Minutes \\
\midrule
Teacher & 30.00 & 30 \\
\midrule
A\_1 & \underline{20.00} & 20 \\
B & \textbf{25.00} & 25 \\
C & \underline{20.00} & 20 \\
\midrule
\multicolumn{3}{l}{\emph{added}} \\
D & 10.00 & 10 \\
\bottomrule
\end{tabular}
"""


def test_latex_marks_the_best_and_the_second_best_student(tmp_path):
    columns = [Column("Dolly & co", (("dolly", "rouge_l"),)), Column("Minutes", (("training", "minutes"),), True)]
    rows = [made_row("Teacher", 30.0, "context", "teacher"), made_row("A_1", 20.0), made_row("B", 25.0),
            made_row("C", 20.0), made_row("D", 10.0, "added")]  # fmt: skip
    found = Experiment.model_validate(
        {"title": "T & more", "paper": "abkd", "model": "gpt2", "against": "B", "rows": {"B": {}},
         "columns": {"Dolly & co": {"dataset": "dolly"}}}
    )  # fmt: skip
    text = latex_table(cells_table(rows, columns), rows, columns, found, ["a line"])
    assert text == LATEX
    if shutil.which("pdflatex"):
        document = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n" + text + "\\end{document}\n"
        (tmp_path / "t.tex").write_text(document)
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
        assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0


@pytest.fixture
def measured(tmp_path, words):
    table, chosen = requested([TABLE, *words, "rows=[FKLD]"])
    assert table.measure(chosen) == []
    return table.write().path


def test_a_cell_made_again_is_equal_to_the_byte(measured, tmp_path, capsys, monkeypatch):
    assert verify.main([str(measured), "row=FKLD", "column=Dolly Eval", f"store={tmp_path}/again"]) == 0
    assert "equal to the byte" in capsys.readouterr().out
    cell = Cell.of(str(measured.with_suffix(".md")), None, None)
    assert cell.column.title == "Dolly Eval" and cell.row.label in ("Teacher", "SFT", "FKLD")
    facts = next(measured.parents[1].glob(f"runs/{cell.row.runs[0]}/facts.csv"))
    frame = pd.read_csv(facts, dtype=str, keep_default_na=False)
    frame.loc[frame["metric"] == "rouge_l", "value"] = "77.0"
    frame.to_csv(facts, index=False, lineterminator="\n")
    verdict = verified(cell, tmp_path / "again")
    assert not verdict.holds and "different by -" in verdict.text and "should be equal to the byte" in verdict.text
    assert cell.misprint().endswith("and its runs have 77.00 (0.00)")  # the table was not written again
    words = [str(measured), f"row={cell.row.label}", "column=Dolly Eval", f"store={tmp_path}/again"]
    assert verify.main(words) == 1 and "and its runs have 77.00" in capsys.readouterr().out
    write_table(Manifest.read(measured.with_suffix(".manifest.json")), experiment.load(TABLE), measured.parents[2])
    assert verify.main(words) == 1 and "different by -" in capsys.readouterr().out
    # on another kind of processor it may differ by what trainings differ
    monkeypatch.setattr(verification, "hardware", lambda: {"processor": "another", "kind": "x", "threads": 1})
    for reach, holds in ((None, False), (1.0, False), (100.0, True)):
        monkeypatch.setattr(Cell, "reach", lambda _, reach=reach: reach)
        assert verified(cell, tmp_path / "again").holds == holds
    frame[frame["seed"] != "20"].to_csv(facts, index=False, lineterminator="\n")
    verdict = verified(cell, tmp_path / "again")
    assert not verdict.holds and verdict.text == "different: 1 of 2 values are kept or made again alone"


def test_a_validation_and_a_set_of_the_second_table_are_verified(tmp_path, words, capsys):
    """A smoke run records the sets of the table that measured it first."""
    of_first = [word for word in words if not word.startswith("eval.sets")]
    for name, sets in (("mgsr/ablation", "dolly"), ("mgsr/ablation", "dolly,self_inst")):
        table, chosen = requested([name, "model=micro", *of_first, f"eval.sets=[{sets}]", "rows=[none]"])
        assert table.measure(chosen) == []
        path = str(table.write().path)
    for column in ("Dolly Validation", "Self-Instruct"):
        assert verify.main([path, "row=none", f"column={column}", f"store={tmp_path}/again"]) == 0
    assert capsys.readouterr().out.count("equal to the byte") == 2
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    frame.loc[frame["row"] == "none", "Self-Instruct"] = "99.11"
    frame.to_csv(path, index=False, lineterminator="\n")
    assert verify.main([path, "row=none", "column=Self-Instruct", f"store={tmp_path}/again"]) == 1
    assert "shows 99.11, and its runs have" in capsys.readouterr().out


def test_what_cannot_be_verified_is_refused(measured, tmp_path):
    with pytest.raises(UserError, match="not the file of a measured table"):
        Cell.of(".", None, None)
    with pytest.raises(UserError, match="not the file of a measured table"):
        Cell.of(str(tmp_path / "x.csv"), None, None)
    with pytest.raises(UserError, match=r"row=FKL: not a row of this table; did you mean FKLD"):
        Cell.of(str(measured), "FKL", None)
    with pytest.raises(UserError, match="no such cell was measured"):
        Cell.of(str(measured), "AKL", None)
    with pytest.raises(UserError, match="not a word of this command"):
        verify.main([str(measured), "FKLD"])
    cell = Cell.of(str(measured), "FKLD", "Dolly Eval")
    run = next(measured.parents[1].glob(f"runs/{cell.row.runs[0]}/run.json"))
    text = run.read_text()
    run.write_text(text.replace('"max_new_tokens": ', '"max_new_tokens": 1'))
    with pytest.raises(UserError, match=r"another measurement: its settings or code"):
        verified(cell, tmp_path / "again")
    run.write_text(text.replace('"max_new_tokens": ', '"max_tokens": '))
    with pytest.raises(UserError, match=r"not settings of this version \(eval\.max_\w+: .*; commit") as caught:
        verified(cell, tmp_path / "again")
    assert "\n" not in str(caught.value)
    run.write_text(text)
    changed = {**cell.manifest.sets, "dolly": {**cell.manifest.sets["dolly"], "hash": "0" * 16}}
    facts = run.with_name("facts.csv")
    of_run = json.loads(text)["data"]["dolly"]["hash"]
    facts.write_text(facts.read_text().replace(of_run, "0" * 16))
    with pytest.raises(UserError, match="another measurement: the data of dolly changed; restore what commit"):
        verified(replace(cell, manifest=replace(cell.manifest, sets=changed)), tmp_path / "again")


def test_costs_are_not_verified(tmp_path, words):
    table, chosen = requested(["akl/cost", *words, "rows=[FKL]"])
    assert table.measure(chosen) == []
    written = str(table.write().path)
    with pytest.raises(UserError, match="column=Training Time: costs are of a machine"):
        Cell.of(written, "FKL", "Training Time")
    with pytest.raises(UserError, match="no such cell was measured"):
        Cell.of(written, None, None)


def test_how_far_a_cell_may_differ(tmp_path):
    """By trainings, of which a cell is the mean, and by teachers; of another table of the pair if its own has one.

    The row's own count before those of other rows.
    """
    values = {"A": [20.0, 22.0, 24.0], "B": [30.0, 33.0, 36.0], "C": [10.0]}
    of_table = {"one": ["C"], "several": ["A", "B"], "teachers": ["A", "B"]}
    for label, by_training in values.items():
        for seed, value in enumerate(by_training, 1):
            kept(tmp_path, f"{label}{seed}", value, seed)
    kept(tmp_path, "A-other", 26.0, 1)
    for name, labels in of_table.items():
        rows = [RowRuns(x, "paper", "student", "gpt2", [f"{x}{i + 1}" for i in range(len(values[x]))]) for x in labels]
        if name == "teachers":
            rows[0] = replace(rows[0], other_teachers={"11": "A-other"})
        sets = {"dolly": {"title": "Dolly", "hash": "h", "rows": 2, "note": ""}}
        Manifest(f"own/{name}", "gpt2", [10], [1], {"D": ["dolly", "rouge_l"]}, sets, rows).write(tmp_path)
    in_table = lambda name, label: Cell.of(str(tmp_path / f"gpt2/own/{name}.csv"), label, "D").reach()  # noqa: E731
    reach = lambda variance, degrees: stats.t.ppf(0.975, degrees) * math.sqrt(2 * variance)  # noqa: E731
    of_all, of_teachers = (4.0 + 9.0) / 2, 18.0
    assert in_table("one", "C") == pytest.approx(reach(of_all + of_teachers - of_all, 1))
    assert in_table("teachers", "A") == pytest.approx(reach(4 / 3 + of_teachers - 4, 1))
    assert in_table("several", "A") == in_table("teachers", "A")
    assert in_table("several", "B") == pytest.approx(reach(9 / 3 + of_teachers - 9, 1))
    (tmp_path / "gpt2/own/teachers.manifest.json").unlink()
    assert in_table("several", "A") == pytest.approx(reach(4 / 3, 2))
    assert in_table("one", "C") == pytest.approx(reach(of_all, 4))
    (tmp_path / "gpt2/own/several.manifest.json").unlink()
    assert in_table("one", "C") is None


def kept(results, run, value, train_seed):
    """A run with one ROUGE-L."""
    facts = [Fact("dolly", "h", "rouge_l", value, 2, "c", 10)]
    description = {"run": run, "model": "gpt2", "label": "x", "role": "student", "train_seed": train_seed,
                   "shared_seed": 10, "decode": "d", "commit": "c", "data": {}, "stages": {}, "artifacts": [],
                   "evaluations": [], "wall_seconds": 1.0}  # fmt: skip
    RunFolder(results, "gpt2", run).add(Measured(facts, description))


KEPT = sorted((locations.PAPER.parent / "micro/runs").glob("*/run.json"))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.parent.name)
def test_the_settings_of_kept_runs_are_read_today(path, tmp_path):
    """Each composes to the run that it was; its data is generated by the project."""
    run = json.loads(path.read_text())
    row = RowRuns("x", "paper", run["role"], run["model"], [run["run"]])
    cell = Cell(
        Manifest("own/t", "micro", [10], [1], {}, {}, [row]), path.parents[3], row, Column("D", (("dolly", "rouge_l"),))
    )
    assert _again(RunFolder(path.parents[3], "micro", run["run"]), cell, tmp_path).run == run["run"]


@pytest.mark.parametrize(
    ("name", "what"), [("akl/bertscore", "an encoder of its language"), ("akl/benchmarks", "the hub")]
)
def test_what_a_pair_cannot_have_is_said_in_its_cells(tmp_path, name, what):
    table, chosen = requested(
        [name, "model=micro", f"paths.store={tmp_path}/store", f"paths.results={tmp_path}/results"]
    )
    assert table.measure(chosen) == []
    frame = table.write().frame
    assert len(frame) > 5 and set(frame.drop(columns=["row", "group"]).to_numpy().flatten()) == {f"needs {what}"}


def test_rows_with_other_teachers(words):
    """They stand in a section of their own, and a table that is written again keeps them."""
    table, chosen = requested([TABLE, *words, "rows=[FKLD]", "teachers=[10,11]"])
    assert set(table.other_teachers["FKLD"]) == set(table.other_teachers["Teacher"]) == {"11"}  # 10 is the table's own
    assert table.other_teachers["FKLD"]["11"].plan.teacher != table.rows["FKLD"][0].plan.teacher
    assert table.measure(chosen) == []
    page = table.write().path.with_suffix(".md").read_text()
    section = page[page.index("## Other teachers") :]
    (line,) = re.findall(r"\| FKLD \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", section)
    first, second, std = map(float, line)
    assert (
        std == pytest.approx(abs(first - second) / 2**0.5, abs=0.02) and "Standard deviation over teachers" in section
    )
    again, chosen = requested([TABLE, *words, "rows=[FKLD]"])
    assert again.teachers == [11] and again.write().path.with_suffix(".md").read_text() == page
    assert preview(again, chosen).set_index("row")["would run"]["FKLD"].tolist() == ["", ""]
