"""The judge: how answers are read, what is kept, and a whole run against a real server on loopback."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import openai
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill import judge as judge_command
from distill.base.errors import UserError
from distill.config import load
from distill.config.evaluation import JudgeConfig
from distill.judge import _means, _preferences, _ratios
from distill.judging.judge import MAX_ATTEMPTS, MAX_REFUSALS, Judge
from distill.judging.questions import (
    FIRST,
    SECOND,
    TIE,
    diversity,
    preference,
    quality,
    read_score,
    read_verdict,
    verdict,
)
from distill.pipeline.plan import Plan
from distill.results import experiment
from distill.results.judged import judged_columns
from distill.results.manifest import Manifest, RowRuns
from distill.results.rendering import write_table
from tests.making import made


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("8", 8), (" 8.\n", 8), ("**7**", 7), ("Score: 8/10", 8), ("8 out of 10", 8), ("I'd say 7.5", 7.5), ("10", 10),
        ("On a scale of 1 to 10: 6", 6), ("(1-10) 4", 4), ("10/10", 10), ("9, yes 9", 9), ("1", 1),
        ("**4**/10", 4), ("4 (out of 10)", 4),
        ("", None), ("good", None), ("0", None), ("11", None), ("-3", None), ("7-8", None), ("7 or 8", None),
        ("80%", None), ("Answer 1: 5, answer 2: 6", None), ("eight", None), ("v2.0", None), ("8e1", None),
        ("There are 5 answers, all the same", None), ("The 5 answers are diverse", None), ("Answer 1 is best", None),
        ("5/5", None), ("8 because it is right", 8), ("4 points", 4),
    ],
)  # fmt: skip
def test_scores_are_read_or_missing(answer, score):
    assert read_score(answer, 1, 10) == score


@given(st.text())
def test_no_answer_breaks_the_reading(text):
    found = read_score(text, 1, 10)
    assert found is None or 1 <= found <= 10
    assert read_verdict(text) in (None, FIRST, SECOND, TIE)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("A", FIRST), ("B.", SECOND), ("**tie**", TIE), ("Answer A is better.", FIRST), ("The winner: B", SECOND),
        ("A better answer is B", SECOND),
        ("A is better than B.", FIRST), ("**B** is better than A", SECOND),
        ("They are equal", TIE), ("", None), ("A or B", None), ("neither", None),
        ("A tie", TIE), ("Bad", None), ("B's", None), ("It is a tie.", TIE), ("Answer: A", FIRST),
        ("A, since it is right", FIRST),
        ("Neither A", None), ("not A", None), ("A close call; hard to say", None), ("It is not a tie", None),
        ("A careful comparison of the two", None), ("I would draw on the first", None), ("The answer is not B", None),
        ("A, B, or tie.", None), ("A: 5/10\nB: 8/10", None), ("A: vague. B: better in all respects", None),
        ("A is better in style, B is right", None), ("B: clearer than A", SECOND), ("A, not B", FIRST),
        ("A is not better than B", None), ("Set B is more diverse", SECOND), ("a", None),
    ],
)  # fmt: skip
def test_verdicts_are_read_or_missing(answer, found):
    assert read_verdict(answer) == found


def test_a_verdict_that_follows_the_order_is_a_tie():
    assert verdict(FIRST, SECOND) == 1 and verdict(SECOND, FIRST) == 0
    assert verdict(FIRST, FIRST) == verdict(SECOND, SECOND) == verdict(TIE, TIE) == verdict(FIRST, TIE) == 0.5
    assert verdict(None, FIRST) is None and verdict(TIE, None) is None


def test_questions_hold_task_and_answers():
    text = diversity("Name a fruit", ["apple", "pear"]).text
    assert "Name a fruit" in text and "Answer 1:\napple" in text and "Answer 2:\npear" in text
    assert "A:\nx" in preference("t", ["x"], ["y"]).text and "more diverse" in preference("t", ["x", "z"], ["y"]).text


@pytest.fixture
def judge(tmp_path, monkeypatch):
    """A judge whose server's answers a test gives: `judge.answers` by the number of messages so far."""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    made = Judge(JudgeConfig(model="org/judge", price=[1.0, 10.0]), tmp_path)
    made.sent, made.settings = [], []

    class Completions:
        def create(self, messages, **more):
            made.sent.append(messages)
            made.settings.append(more)
            answer = made.answers[len(messages) // 2]
            if isinstance(answer, Exception):
                raise answer
            choice = type("C", (), {"message": type("M", (), {"content": answer})})
            return type("R", (), {"choices": [choice], "usage": None})

    made._client = type("Client", (), {"chat": type("Chat", (), {"completions": Completions()})})
    return made


def test_an_answer_that_is_no_number_is_asked_again_then_missing(judge):
    judge.answers = ["fine", "", "6"]
    assert judge.ask([quality("t", "a")]) == [6.0] and len(judge.sent) == 3
    assert "one number from 1 to 10" in judge.sent[1][-1]["content"]
    judge.answers = ["fine"] * MAX_ATTEMPTS
    assert judge.ask([quality("t", "b")]) == [None] and len(judge.sent) == 6


def refusal(judge, text):
    response = httpx.Response(400, request=httpx.Request("POST", judge.address))
    return openai.BadRequestError(text, response=response, body=None)


def test_a_refused_question_is_missing_and_the_others_are_asked(judge):
    judge.answers, judge.config = ["7"], judge.config.model_copy(update={"parallel": 1})
    assert judge.ask([quality("t", "a")]) == [7.0]
    judge.answers = [refusal(judge, "too long")]
    assert judge.ask([quality("t", "a"), quality("t", "b"), quality("t", "c")]) == [7.0, None, None]
    assert judge.refusals == ["too long"] * 2


def test_a_server_that_refuses_all_is_an_error(judge):
    judge.answers, judge.config = [refusal(judge, "no temperature")], judge.config.model_copy(update={"parallel": 1})
    with pytest.raises(UserError, match="no temperature"):
        judge.ask([quality("t", "a")])
    with pytest.raises(UserError, match="no temperature"):
        judge.ask([quality("t", str(n)) for n in range(1000)])
    assert len(judge.sent) == MAX_REFUSALS


def test_every_answer_is_kept_and_no_question_asked_twice(judge, tmp_path):
    judge.answers = ["7"]
    ask = [quality("t", "a"), quality("t", "a"), quality("t", "b")]
    before = judge.cost(ask)
    assert (before.questions, before.answered) == (2, 0) and "about $0.00" in before.describe()
    assert judge.ask(ask) == [7.0] * 3 and len(judge.sent) == 2
    assert judge.cost(ask).tokens_in == 0
    (file,) = tmp_path.glob("*.jsonl")
    with file.open("a") as lines:
        lines.write('{"key": "half a li')
    again = Judge(judge.config, tmp_path)
    again._client = None
    assert again.ask(ask) == [7.0] * 3
    assert [json.loads(line)["answer"] for line in file.read_text().splitlines()] == ["7", "7"]
    other = Judge(judge.config.model_copy(update={"model": "org/other"}), tmp_path)
    assert other.cost(ask).answered == 0  # another judge has not answered


def test_a_judge_that_thinks_gets_no_temperature_and_is_asked_anew(judge):
    judge.answers, ask = ["7"], [quality("t", "a")]
    judge.ask(ask)
    judge.config = judge.config.model_copy(update={"reasoning": True})
    judge.ask(ask)
    assert [{k: v for k, v in s.items() if k != "model"} for s in judge.settings] == [
        {"temperature": 0, "max_tokens": 16},
        {"max_completion_tokens": 16},
    ]


def test_a_judge_that_cannot_be_asked(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(UserError, match=r"eval\.judge\.model is null"):
        Judge(JudgeConfig(), tmp_path)
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set"):
        Judge(JudgeConfig(model="m"), tmp_path)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setattr("distill.judging.judge.MAX_RETRIES", 0)
    with pytest.raises(UserError, match=r"judge m at http://127\.0\.0\.1:9/v1: Connection error.*are stored"):
        Judge(JudgeConfig(model="m"), tmp_path).ask([quality("t", "a")])


def test_requests_a_minute_are_kept_to(judge, monkeypatch):
    judge.answers, waited = ["7"], []
    judge.config = judge.config.model_copy(update={"requests_per_minute": 60.0, "parallel": 1})
    monkeypatch.setattr("distill.judging.judge.time.sleep", waited.append)
    monkeypatch.setattr("distill.judging.judge.time.monotonic", lambda: 5.0)
    judge.ask([quality("t", str(n)) for n in range(3)])
    assert waited == [0.0, 1.0, 2.0]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """`transformers serve` with SmolLM2 on loopback; its address and the model's name."""
    folder = tmp_path_factory.mktemp("judge")
    plan = Plan(load(["model=smollm2", "data=micro", f"paths.store={folder}/store"]))
    model = str(Path(made(plan, plan.base("teacher"), "teacher").base).absolute())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(Path(sys.executable).parent / "transformers"),
        "serve",
        model,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        for _ in range(240):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1", model
        process.terminate()
        process.wait(20)


def test_a_table_is_judged_by_a_real_server(server, tmp_path):
    """Smoke rows, four kinds of judgement; asked once, then all from what is kept."""
    address, model = server
    folders = [f"paths.store={tmp_path}/store", f"paths.results={tmp_path}/results"]
    words = ["abkd/losses_gpt2", "debug=smoke", "model=gpt2", "rows=[ABKD]", "seed=[10,20]", *folders]
    environment = {**os.environ, "OPENAI_BASE_URL": address, "HF_HUB_OFFLINE": "1"}

    def run(module, *more):
        return subprocess.run(
            [sys.executable, "-m", f"distill.{module}", *words, *more],
            capture_output=True, text=True, check=False, env=environment,
        )  # fmt: skip

    asked = [f"eval.judge.model={model}", "set=dolly", "limit=1"]
    early = run("judge", *asked)
    again = f"run first: python -m distill.table {shlex.join(words)}"
    assert early.returncode == 2 and again in early.stderr and "already has its values" not in early.stderr
    assert run("table").returncode == 0
    shutil.move(tmp_path / "store/evaluate", tmp_path / "evaluate")
    gone = run("judge", *asked)
    assert gone.returncode == 2 and f"{tmp_path}/results already has its values" in gone.stderr
    assert f"{again} eval.judge.model={model} paths.results={tmp_path}/results-again" in gone.stderr
    shutil.move(tmp_path / "evaluate", tmp_path / "store/evaluate")
    told = run("judge", *asked, "cost=true")
    assert told.returncode == 0 and re.search(r"\d+ questions, \d+ answered before", told.stdout), told.stderr
    done = run("judge", *asked)
    assert done.returncode == 0, done.stderr[-2000:]
    out = tmp_path / "results/gpt2/abkd"
    lines = pd.read_csv(out / "losses_gpt2_judge_long.csv", keep_default_na=False)
    assert set(lines["what"]) >= {"diversity", "quality", "accuracy", "completeness", "fluency", "relevance"}
    assert set(lines["row"]) == {"Teacher", "SFT", "ABKD"} and set(lines["judge"]) == {model}
    quality_ = lines[(lines["what"] == "quality") & (lines["value"] != "")]["value"].astype(float)
    assert len(lines[lines["what"] == "quality"]) == 3 * 2 and quality_.between(1, 10).all()
    assert len(quality_), "no answer of the real judge could be read"
    text = (out / "losses_gpt2_judge.md").read_text()
    missing = (lines["value"] == "").sum()
    assert f"{len(lines) - missing} values; {missing} missing" in text
    kept = next((tmp_path / "store/judge").glob("*.jsonl"))
    before = kept.read_bytes()
    again = run("judge", *asked)
    assert again.returncode == 0 and "about 0 thousand tokens" in again.stdout and kept.read_bytes() == before
    narrow = run("judge", *asked, "what=[quality]")
    assert narrow.returncode == 0
    assert len(pd.read_csv(out / "losses_gpt2_judge_long.csv")) == len(lines)  # earlier judgements stand
    wrong = run("judge", *asked, "limit=few")
    assert wrong.returncode == 2 and "limit=few: give a number" in wrong.stderr
    bad = run("judge", *asked, "what=[charm]")
    assert bad.returncode == 2 and "diversity, quality, criteria, preference" in bad.stderr


def judged(row, against, what, values, ids=None):
    return pd.DataFrame(
        {"row": row, "against": against, "what": what, "id": ids or list("abcd")[: len(values)], "value": values}
    )


def test_win_tie_and_loss_are_of_the_pairs_that_could_be_read():
    """A row that wins two of four, with one answer missing besides."""
    better = judged("A", "B", "prefer quality", [1.0, 1.0, 0.5, 0.0, float("nan")], list("abcde"))
    (line,) = _ratios(better).to_dict("records")
    assert line == {"row": "A vs B", "quality win": "50.0", "quality tie": "25.0", "quality loss": "25.0",
                    "quality pairs": "4"}  # fmt: skip


def test_scores_compare_rows_over_the_prompts_that_all_have():
    """Seeds are averaged within a prompt first; a prompt that one row lacks, or that could not be read, is out."""
    first = judged("A", "", "quality", [2.0, 4.0, 8.0, 9.0], ["a", "a", "b", "c"])
    second = judged("B", "", "quality", [5.0, 7.0, float("nan")], ["a", "b", "c"])
    shaped = _means(pd.concat([first, second])).set_index("row")
    assert shaped.loc["A", "quality"] == "5.50 (2)" and shaped.loc["B", "quality"] == "6.00 (2)"
    assert _means(first.iloc[:0]).empty


def judged_file(folder, lines):
    """A judge's values of akl/main beside it, each (row, run, against, against_run, id, what, value, judge)."""
    names = ["row", "run", "against", "against_run", "id", "what", "value", "judge"]
    path = folder / "m/akl/main_judge_long.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    values = pd.DataFrame(lines, columns=names).assign(dataset="dolly", seed="10", seeds="10")
    earlier = values.assign(dataset="self_inst", value="1")  # another set, which the table does not show
    pd.concat([earlier, values]).to_csv(path, index=False)


def test_columns_of_tables_show_what_a_judge_said(tmp_path):
    """Of the judge that was asked last, and of the table's own runs; the rest needs a judge."""
    marks = [("AKL", "a", "8"), ("FKL", "f", "6"), ("RKL", "another run", "9")]
    lines = [(row, run, "", "", "p1", "diversity", "1", "first") for row, run, _ in marks]
    lines += [(row, run, "", "", "p1", "diversity", value, "last") for row, run, value in marks]
    lines += [("AKL", "a", "", "", "p2", "diversity", "4", "last"), ("FKL", "f", "", "", "p2", "diversity", "", "last")]
    lines += [("AKL", "a", "FKL", "f", f"p{i}", "prefer quality", value, "last") for i, value in enumerate("1101")]
    lines += [("AKL", "an earlier run", "FKL", "f", "p0", "prefer quality", "1", "last")]
    lines += [("AKL", "a", "FKL", "f", "p9", "prefer quality", "0.5", "last")]
    judged_file(tmp_path, lines)
    rows = [RowRuns(label, "paper", "student", "m", [label[0].lower()]) for label in ("FKL", "RKL", "AKL")]
    figure = experiment.load("akl/fig_judge")
    cells = judged_columns(Manifest("akl/fig_judge", "m", [], [1], {}, {}, rows), figure, tmp_path)
    # p2 has no mark for FKL, so that the means are over p1
    assert cells == {"Diversity": ["6.00", "needs a judge", "8.00"], "Quality": ["needs a judge"] * 3}
    rows = [replace(rows[0], label="AKL vs FKL"), replace(rows[1], label="AKL vs RKL")]
    table = experiment.load("akl/preference")
    manifest = Manifest("akl/preference", "m", [], [1], {}, {}, rows)
    cells = judged_columns(manifest, table, tmp_path)
    assert [cells[f"Quality {name}"][0] for name in ("Win", "Tie", "Loss")] == ["60.0", "20.0", "20.0"]
    assert {cells[title][1] for title in cells} == {cells["Diversity Win"][0]} == {"needs a judge"}
    manifest.write(tmp_path)
    page = write_table(manifest, table, tmp_path).path.with_suffix(".md").read_text()
    assert "| AKL vs FKL | needs a judge |" in page and "| AKL vs FKL | 60.0 | 39.2 |" in page
    assert "Judged by last on the responses of akl/main." in page


def test_the_marks_of_several_criteria_are_averaged(tmp_path):
    names = ("accuracy", "completeness", "fluency", "relevance")
    judged_file(tmp_path, [("x", "s", "", "", "p", name, str(i), "j") for i, name in enumerate(names, 1)])
    (tmp_path / "m/akl/main_judge_long.csv").rename(tmp_path / "m/akl/span_judge_long.csv")
    (tmp_path / "m/akl").rename(tmp_path / "m/mgsr")
    rows = [RowRuns("Span-Relation", "paper", "student", "m", ["s"])]
    cells = judged_columns(Manifest("mgsr/span", "m", [], [1], {}, {}, rows), experiment.load("mgsr/span"), tmp_path)
    assert cells == {"Average GPT-4 Evaluation": ["2.50"]}


def test_preferences_pair_rows_in_both_orders_and_skip_equal_answers():
    spec = SimpleNamespace(run="r", config=SimpleNamespace(seed=[10, 20]))
    table = SimpleNamespace(rows={"A": [spec], "B": [spec]})
    texts = {"A": {"1": ["x", "y"], "2": ["same", "z"]}, "B": {"1": ["v", "w"], "2": ["same", "u"]}}
    judged_values = list(_preferences(table, "A", "B", "dolly", {"1": "t", "2": "t"}, texts))
    assert [(v.record["id"], v.record["what"]) for v in judged_values] == [
        ("1", "prefer quality"), ("1", "prefer diversity"), ("2", "prefer diversity")]  # fmt: skip
    ours_first, theirs_first = judged_values[0].questions
    assert "A:\nx" in ours_first.text and "B:\nv" in ours_first.text
    assert "A:\nv" in theirs_first.text and "B:\nx" in theirs_first.text
    assert judged_values[0].combine([FIRST, SECOND]) == 1.0 and judged_values[0].combine([SECOND, FIRST]) == 0.0


def test_a_table_of_a_judges_numbers_alone_is_refused():
    with pytest.raises(UserError, match=r"akl/preference: it has no responses of its own.* such as akl/main"):
        judge_command.main(["akl/preference", "model=micro", "eval.judge.model=x"])
