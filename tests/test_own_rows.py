"""Rows and tables of one's own, what a run would make, LaTeX, and cells made again (`distill.verify`)."""

from __future__ import annotations

import re
import shutil
import subprocess

import pandas as pd
import pytest

from distill import verify
from distill.base.errors import UserError
from distill.pipeline.preview import Before, overview, preview, sets_line
from distill.pipeline.request import requested
from distill.pipeline.store import Store
from distill.pipeline.verification import Cell, verified
from distill.results import experiment
from distill.results.experiment import Experiment
from distill.results.latex import latex_table
from distill.results.manifest import RowRuns
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
    ],
)
def test_a_row_that_cannot_be_added_is_refused(words, word, message):
    with pytest.raises(UserError, match=re.escape(message)):
        requested([TABLE, *words, word])


def test_a_figure_has_no_rows_to_add_to():
    with pytest.raises(UserError, match="this is a figure"):
        requested(["akl/fig_toy_gaussian", "row.Mine=loss=skl"])


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


def test_all_tables_in_one_overview(words):
    tables = overview(["model=micro", *words]).set_index("table")
    assert set(tables.index) == set(experiment.names())
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


def test_a_cell_made_again_is_equal_to_the_byte(measured, tmp_path, capsys):
    assert verify.main([str(measured), "row=FKLD", "column=Dolly Eval", f"store={tmp_path}/again"]) == 0
    assert "equal to the byte" in capsys.readouterr().out
    cell = Cell.of(str(measured.with_suffix(".md")), None, None)
    assert cell.column.title == "Dolly Eval" and cell.row.label in ("Teacher", "SFT", "FKLD")
    facts = next(measured.parents[1].glob(f"runs/{cell.row.runs[0]}/facts.csv"))
    frame = pd.read_csv(facts, dtype=str, keep_default_na=False)
    frame.loc[frame["metric"] == "rouge_l", "value"] = "77.0"
    frame.to_csv(facts, index=False, lineterminator="\n")
    verdict = verified(cell, tmp_path / "again")
    assert not verdict.holds and "different by -" in verdict.text
    words = [str(measured), f"row={cell.row.label}", "column=Dolly Eval", f"store={tmp_path}/again"]
    assert verify.main(words) == 1


def test_what_cannot_be_verified_is_refused(measured, tmp_path):
    with pytest.raises(UserError, match="not the file of a measured table"):
        Cell.of(str(tmp_path / "x.csv"), None, None)
    with pytest.raises(UserError, match=r"row=FKL: not a row of this table; did you mean FKLD"):
        Cell.of(str(measured), "FKL", None)
    with pytest.raises(UserError, match="no such cell was measured"):
        Cell.of(str(measured), "AKL", None)
    with pytest.raises(UserError, match="not a word of this command"):
        verify.main([str(measured), "FKLD"])
    run = next(measured.parents[1].glob(f"runs/{Cell.of(str(measured), 'FKLD', None).row.runs[0]}/run.json"))
    run.write_text(run.read_text().replace('"max_new_tokens": ', '"max_new_tokens": 1'))
    with pytest.raises(UserError, match="made again it would be another run"):
        verified(Cell.of(str(measured), "FKLD", "Dolly Eval"), tmp_path / "again")


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
