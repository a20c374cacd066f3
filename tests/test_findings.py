"""The papers' claims against measurements: tests, verdicts, their tables, and the page that collects them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from distill.base import locations
from distill.base.errors import UserError
from distill.results import experiment, findings
from distill.results.comparisons import claimed, comparisons, orders
from distill.results.experiment import Experiment
from distill.results.manifest import WITHOUT_MODEL, RowRuns
from distill.results.printed import PaperNumber, paper_numbers
from distill.results.sections import claims_section, claims_table, note_on_tests
from distill.results.statistics import Column, holm
from distill.results.table import RowData

KEPT = locations.PAPER.parent
DOLLY, SNI = (Column(title, ((name, "rouge_l"),)) for title, name in (("Dolly Eval", "dolly"), ("S-NI", "sni")))


def row(label, rng, dolly, sni, prompts=200, group="paper", copy="", others=()):
    """A row with one training, its scores by prompt around these means.

    Args:
        copy: the copy of the teacher that it was made with.
        others: its means on Dolly with further teachers.
    """
    frames, lines = [], []
    for dataset, mean in (("dolly", dolly), ("sni", sni)):
        values = mean + rng.normal(0, 2, prompts)
        ids = [f"{dataset}{i}" for i in range(prompts)]
        frames.append(pd.DataFrame({"dataset": dataset, "id": ids, "topic": "", "rouge_l": values}))
        line = {"dataset": dataset, "metric": "rouge_l", "train_seed": 1, "seed": "10", "value": values.mean()}
        line["run"] = label
        lines.append(line)
    runs = RowRuns(label, group, "student", "gpt2", [label])
    described = [{"stages": {"train/t": {"weights": copy}}, "shared_seed": 10}]
    with_others = {
        str(seed): row(f"{label}{seed}", rng, mean, sni, prompts, group) for seed, mean in enumerate(others, 11)
    }
    return RowData(runs, pd.DataFrame(lines), [pd.concat(frames)], described, with_others)


def own(claims):
    return Experiment.model_validate(
        {
            "title": "T", "paper": "own", "model": "gpt2", "against": "A", "claims": claims,
            "columns": {"Dolly Eval": {"dataset": "dolly"}, "S-NI": {"dataset": "sni"}},
            "rows": {label: {"overrides": [f"loss={x}"]} for label, x in {"A": "fkl", "B": "rkl", "C": "skl"}.items()},
        }
    )  # fmt: skip


def of_paper(rows, columns, table):
    return claimed(comparisons(rows, columns, table), table)


def test_a_claim_holds_is_reversed_or_is_open():
    rng = np.random.default_rng(0)
    rows = [row("A", rng, 20, 20), row("B", rng, 25, 20)]  # C was not measured
    table = own({"B": ["A", "C"], "A": ["B"]})
    tests = of_paper(rows, [DOLLY, SNI], table)
    assert [(*key, test.verdict) for key, test in tests.items()] == [
        ("B", "A", "Dolly Eval", "yes"), ("B", "A", "S-NI", "open"),
        ("A", "B", "Dolly Eval", "reversed"), ("A", "B", "S-NI", "open"),
    ]  # fmt: skip
    first, second = list(tests.values())[:2]  # the others are the same tests the other way round
    assert [test.p for test in tests.values()] == 2 * holm([first.comparison.p, second.comparison.p])
    assert "for the 2 tests of this page" in note_on_tests(tests, rows)
    shown = claims_table(table, {}, tests).set_index("claim")
    assert list(shown.index) == ["B above A", "A above B"]
    cell = re.fullmatch(
        r"([+-]\d+\.\d\d) \[([+-]\d+\.\d\d), ([+-]\d+\.\d\d)\] yes \(Holm p <?[\de.-]+\)",
        shown.loc["B above A", "Dolly Eval"],
    )
    assert float(cell[2]) < float(cell[1]) < float(cell[3]) and float(cell[2]) > 0
    text = "\n".join(claims_section(rows, [DOLLY, SNI], table, "gpt2", tests))
    assert "`reversed`" in text and "tau" not in text  # no numbers of a paper here
    assert claims_section(rows[:1], [DOLLY, SNI], table, "gpt2", {}) == []


def test_p_is_adjusted_for_all_tests_of_the_table():
    """The verdict is the interval's, which does not depend on how many other claims there are."""
    rng = np.random.default_rng(3)
    rows = [row(label, rng, 20, 20) for label in "ABC"]
    rows[1] = row("B", rng, 20.4, 20)
    alone = comparisons(rows[:2], [DOLLY], own({"B": ["A"]}))["B", "A", "Dolly Eval"]
    assert alone.p == alone.comparison.p < 0.05 and alone.verdict == "yes"
    among = comparisons(rows, [DOLLY, SNI], own({"B": ["A", "C"], "C": ["A"]}))["B", "A", "Dolly Eval"]
    assert among.comparison == alone.comparison and among.verdict == "yes" and among.p > 3 * alone.p
    assert str(among).startswith(f"{among.comparison.interval} yes (Holm p 0.0")


def test_an_added_row_leaves_the_p_of_the_others():
    rng = np.random.default_rng(3)
    rows = [row(label, rng, 20, 20) for label in "ABC"]
    mine = [row(label, rng, 20, 20, group="added") for label in ("D", "E")]
    table = own({"B": ["A", "C"]})
    before, after = (comparisons(x, [DOLLY, SNI], table) for x in (rows, [*rows, *mine]))
    assert {key: after[key] for key in before} == before and len(after) == len(before) + 4
    own_tests = [test for key, test in after.items() if key not in before]
    assert [test.p for test in own_tests] == holm([test.comparison.p for test in own_tests])
    assert "for the 6 tests of this page of the table's rows, and for the 4 of rows below them" in note_on_tests(
        after, [*rows, *mine]
    )


def test_rows_over_different_copies_are_not_compared():
    rng = np.random.default_rng(3)
    rows = [row("A", rng, 20, 20, copy="x"), row("B", rng, 25, 20, copy="y"), row("C", rng, 30, 20, copy="x")]
    tests = comparisons(rows, [DOLLY], own({"B": ["A"], "C": ["A"]}))
    assert [key[:2] for key in tests] == [("C", "A")]
    paper = {(x.label, "Dolly Eval"): PaperNumber(str(i), "") for i, x in enumerate(rows)}
    assert orders(rows, [DOLLY], paper) == {}  # two rows have no order
    assert (
        orders(
            [row("D", rng, 9, 20, copy="z"), *rows[::2], row("E", rng, 9, 20, copy="x")],
            [DOLLY],
            {**paper, ("D", "Dolly Eval"): PaperNumber("7", ""), ("E", "Dolly Eval"): PaperNumber("8", "")},
        )["Dolly Eval"].rows
        == 3
    )  # A, C and E
    same = [row(x, rng, 20 + 5 * i, 20, copy="x") for i, x in enumerate("ABC")]
    assert orders(same, [DOLLY], paper)["Dolly Eval"].rows == 3


def test_a_claim_tells_the_difference_with_other_teachers():
    rng = np.random.default_rng(3)
    rows = [row("A", rng, 20, 20, others=(20, 20)), row("B", rng, 25, 20, others=(23, 18))]
    test = comparisons(rows, [DOLLY], own({"B": ["A"]}))["B", "A", "Dolly Eval"]
    assert dict(test.by_teacher) == pytest.approx({"10": 5, "11": 3, "12": -2}, abs=0.6) and test.turns
    of_teachers = r"first trainings by teacher 10: \+\d\.\d\d, 11: \+\d\.\d\d, 12: -\d\.\d\d"
    assert re.search(rf"yes \(Holm p .*; {of_teachers}\)$", str(test))
    steady = [rows[0], row("B", rng, 25, 20, others=(23, 22))]
    assert not comparisons(steady, [DOLLY], own({"B": ["A"]}))["B", "A", "Dolly Eval"].turns


def test_the_order_is_of_the_papers_own_rows():
    rng = np.random.default_rng(1)
    table = experiment.load("abkd/losses_gpt2")
    paper, _ = paper_numbers(table, "gpt2")
    labels = [label for label, r in table.rows.items() if r.group == "paper"]
    printed = [float(paper[label, "Dolly Eval"].mean) for label in labels]
    rows = [row(label, rng, 5 * value, 20) for label, value in zip(labels, printed, strict=True)]
    mine = row("Mine", rng, 0, 20, group="added")
    (agreement,) = orders([*rows, mine], [DOLLY], paper).values()
    assert agreement.tau > 0.9 and agreement.rows == len(labels)
    shown = claims_table(table, {"Dolly Eval": agreement}, {}).set_index("claim")
    assert shown.loc["the order of 8 rows: tau", "Dolly Eval"] == str(agreement)


def test_a_claim_of_a_row_that_the_table_does_not_have_is_refused():
    with pytest.raises(ValueError, match="claims name D, which is not a row; the rows are A, B, C"):
        own({"B": ["D"]})


@pytest.mark.parametrize("name", experiment.names())
def test_every_table_with_two_numbers_of_a_paper_has_its_claims(name):
    table = experiment.load(name)
    rouge = [c for c in table.columns.values() if c.dataset not in (None, "training", "validation", "benchmarks")]
    paper = [label for label, r in table.rows.items() if r.group == "paper"]
    scored = any(c.metric.partition(":")[0] in ("rouge_l", "bertscore") for c in rouge)
    assert bool(table.claims) == (bool(table.sources) and len(paper) > 1 and scored), name


def test_the_page_of_findings_is_that_of_the_kept_results():
    page = Path(__file__).parents[1].joinpath(findings.PAGE).read_text(encoding="utf-8")
    assert page == findings.written_again(page, KEPT), "run make docs"


def test_what_is_said_by_hand_stands_in_a_kept_table():
    """Every difference with its interval in the text of a section is in a page that the section shows or names."""
    page = Path(__file__).parents[1].joinpath(findings.PAGE).read_text(encoding="utf-8")
    count = 0
    for section in re.split(r"^#+ ", page, flags=re.MULTILINE):
        tables = [
            f"{name.split()[1]}/{name.split()[0]}" for _, name, _ in findings.MARK.findall(section) if " " in name
        ]
        pages = {*tables, *re.findall(r"\.\./results/([\w/]+)\.md", section)}
        text = "\n".join((KEPT / f"{name}.md").read_text(encoding="utf-8") for name in sorted(pages))
        said = re.findall(r"[+-]?\d+\.\d+ \[[^\]]*\]", " ".join(findings.MARK.sub("", section).split()))
        count += len(said)
        assert [interval for interval in said if interval not in text] == [], section.splitlines()[0]
    assert count > 30


def test_every_kept_table_has_its_line_in_the_page():
    page = Path(__file__).parents[1].joinpath(findings.PAGE).read_text(encoding="utf-8")
    manifests = [m for m in findings.kept_manifests(KEPT) if m.model != WITHOUT_MODEL]
    assert [m.table for m in manifests if f"(../results/{m.model}/{m.table}.md)" not in page] == []


def test_a_kept_table_without_a_place_in_the_page_and_a_place_without_a_table():
    with pytest.raises(
        UserError, match=re.escape("add the lines `<!-- abkd/losses_gpt2 micro -->` and `<!-- end -->`")
    ):
        findings.written_again("<!-- all -->\n<!-- end -->\n", KEPT)
    page = Path(__file__).parents[1].joinpath(findings.PAGE).read_text(encoding="utf-8")
    with pytest.raises(UserError, match="has a place for own/table micro, which is not kept or says nothing"):
        findings.written_again(page + "<!-- own/table micro -->\n<!-- end -->\n", KEPT)


@pytest.mark.parametrize("name", [name for name in experiment.names() if experiment.load(name).claims])
def test_a_row_that_is_said_to_be_best_is_tested_against_the_second_best(name):
    """Of each column in which a claiming row is printed as the best student."""
    table = experiment.load(name)
    for pair in table.printed_pairs:
        paper, _ = paper_numbers(table, pair)
        students = [label for label, r in table.rows.items() if r.group == "paper" and r.role == "student"]
        for title in table.columns:
            printed = {x: float(paper[x, title].mean) for x in students if (x, title) in paper}
            ranked = sorted(printed, key=printed.__getitem__, reverse=True)
            if len(ranked) > 2 and ranked[0] in table.claims and len(table.claims[ranked[0]]) > 2:
                assert ranked[1] in table.claims[ranked[0]], (title, ranked)
