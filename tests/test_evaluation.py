"""The evaluation stage: stopped, resumed, shared by processes, ending in the same bytes; what is counted of texts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import tiny_gpt2

from distill.base.errors import UserError
from distill.config import load
from distill.config.evaluation import BertScoreConfig
from distill.data.encode import Encoded
from distill.evaluation.agreement import agreement
from distill.evaluation.bertscore import WHEEL, BertScorer, check, metric_name
from distill.evaluation.exposure import excess_error
from distill.evaluation.text import distinct, exact_match, ngrams_per_text, words
from distill.pipeline.plan import Plan
from distill.pipeline.store import Store
from tests.making import TORCHRUN, evaluate, own_errors

RUN = """
import os, sys
import distill.generation.load as engines, distill.generation.requests as requests
from distill.config import load
from distill.base.processes import leave_processes
from distill.pipeline.plan import Plan
from distill.pipeline.nodes import ensure
requests.GROUP_BATCHES = 0  # every prompt is a group
after, original = int(sys.argv[1]), engines.write_group
def counted(model, group, *more):
    global after
    if after == 0:
        os._exit(9)
    after -= 1
    # whole, beside another process's lines
    os.write(1, f" wrote {group[0].id} as {os.environ.get('RANK', '0')}\\n".encode())
    return original(model, group, *more)
engines.write_group = counted
plan = Plan(load(sys.argv[2:]))
ensure(plan.store, [plan.evaluation("student", d, s) for d in plan.sets.values() for s in (10, 20)])
leave_processes()
"""
WORDS = ["debug=smoke", "model=gpt2", "loss=fkl", "eval.sets=[dolly,vicuna]", "seed=[10,20]"]


def run(folder, after, *launcher):
    file = folder.parent / "run.py"
    file.write_text(RUN)
    words_ = [*(launcher or [sys.executable]), str(file), str(after), *WORDS, f"paths.store={folder}"]
    done = subprocess.run(words_, capture_output=True, text=True, check=False)
    return done.returncode, re.findall(r"wrote (\w{16})\b", done.stdout), done


def texts(folder):
    plan = Plan(load([*WORDS, f"paths.store={folder}"]))
    found = {}
    for dataset in plan.sets.values():
        for seed in (10, 20):
            spec = plan.evaluation("student", dataset, seed)
            assert plan.store.has(spec)
            lines = (plan.store.folder(spec) / "generations.jsonl").read_text()
            assert [json.loads(x)["id"] for x in lines.splitlines()] == [e.id for e in dataset.examples]
            found[dataset.name, seed] = lines
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The store of a run that was not disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    code, written, done = run(folder, -1)
    assert code == 0, done.stderr
    assert len(written) == 8  # four prompts of two sets
    return folder


@pytest.fixture
def trained(whole, tmp_path):
    """A store that holds the trained student, and nothing that it wrote."""
    shutil.copytree(whole, tmp_path / "store", ignore=shutil.ignore_patterns("evaluate"))
    return tmp_path / "store"


def test_a_killed_evaluation_goes_on_behind_its_last_group(trained, whole):
    code, first, _ = run(trained, 6)
    assert code == 9 and len(first) == 6
    code, rest, done = run(trained, -1)
    assert code == 0, done.stderr
    assert len(rest) == 2
    assert texts(trained) == texts(whole)
    assert not list(trained.rglob(".partial*"))


def test_groups_of_another_cut_are_written_again(trained, whole):
    """Stopped with one prompt a group, gone on with all in one: what was kept is of no use."""
    assert run(trained, 2)[0] == 9
    plan = Plan(load([*WORDS, f"paths.store={trained}"]))
    evaluate(plan, "student", [10, 20])
    assert texts(trained) == texts(whole)


def test_two_processes_share_the_prompts_and_write_the_same_texts(trained, whole):
    code, written, done = run(trained, -1, *TORCHRUN)
    assert code == 0, own_errors(done.stderr)
    assert len(written) == 8
    assert sorted(re.findall(r"wrote \w{16} as (\d)", done.stdout)) == ["0"] * 4 + ["1"] * 4
    assert texts(trained) == texts(whole)


def test_a_stop_while_seeds_become_artifacts_writes_nothing_again(trained, whole, monkeypatch):
    """One seed of a set is an artifact, the other is whole but not yet one."""
    finish, finished = Store._finish, []

    def stopped(self, spec, *more):
        if finished:
            raise KeyboardInterrupt
        finished.append(spec)
        finish(self, spec, *more)

    words_ = [*WORDS, f"paths.store={trained}"]
    monkeypatch.setattr(Store, "_finish", stopped)
    with pytest.raises(KeyboardInterrupt):
        evaluate(Plan(load(words_)), "student", [10, 20])
    monkeypatch.setattr(Store, "_finish", finish)
    plan = Plan(load([w.replace(",vicuna", "") for w in words_]))
    monkeypatch.setattr("distill.generation.load.write_group", lambda *_: pytest.fail("written again"))
    evaluate(plan, "student", [10, 20])
    monkeypatch.undo()
    assert run(trained, -1)[0] == 0
    assert texts(trained) == texts(whole)
    assert not list(trained.rglob("groups"))


def test_overlapping_seeds_in_two_processes_keep_each_others_texts(trained, whole):
    """Seeds 10 and 20 beside 20 and 30: the second waits for 20 and finds it, and writes 30 alone."""
    code = (
        "import sys; from distill.config import load; from distill.pipeline.plan import Plan\n"
        "from distill.pipeline.nodes import ensure\n"
        "plan = Plan(load(sys.argv[2:])); seeds = [int(s) for s in sys.argv[1].split(',')]\n"
        "ensure(plan.store, [plan.evaluation('student', d, s) for d in plan.sets.values() for s in seeds])"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code, seeds, *WORDS, f"paths.store={trained}"], stderr=subprocess.PIPE)
        for seeds in ("10,20", "20,30")
    ]
    errors = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert texts(trained) == texts(whole) and len(list((trained / "evaluate").iterdir())) == 2 * 3


def test_words_and_distinct_n_grams():
    assert words("Don't STOP, it's 5!") == ["don", "t", "stop", "it", "s", "5"]
    assert distinct(["a b a", "b a"], 1) == pytest.approx(100 * 2 / 5)
    assert distinct(["a b a", "b a"], 2) == pytest.approx(100 * 2 / 3)  # no n-gram runs from one text into the next
    assert distinct(["a"], 3) == 0 and distinct([], 1) == 0


def test_n_grams_of_each_text():
    """Repetition inside a text, whatever the other texts are; MGSR's sentence counts an apostrophe as a split."""
    text = "The cat's bed is the dog's bed; it is the cat's."
    counts = [ngrams_per_text([text], n) for n in (1, 2, 3)]
    assert [(of_n["total"], of_n["unique"]) for of_n in counts] == [(14, 7), (13, 9), (12, 11)]
    for n in (1, 2, 3):
        assert ngrams_per_text([text] * 3, n) == pytest.approx(ngrams_per_text([text], n))
    mixed = ngrams_per_text(["a a", "b c", ""], 1)
    assert mixed == pytest.approx({"total": 4 / 3, "unique": 1, "distinct": 75})
    assert ngrams_per_text([], 2) == ngrams_per_text(["a"], 2) == {"total": 0, "unique": 0, "distinct": 0}


def test_exact_match_folds_case_punctuation_and_white_space():
    assert exact_match(["The  cat.", "cat", ""], [["the cat"], ["the cat", "Cat!"], ["x"]]) == [100, 100, 0]
    assert exact_match(["+", "<=", "", " "], [["-"], ["<="], ["..."], [""]]) == [0, 100, 0, 100]


def test_agreement_by_hand():
    """Against whole logits; a model agrees with itself wholly, and padding is no position."""
    student, teacher = tiny_gpt2().eval(), tiny_gpt2(hidden=24, seed=9).eval()
    rows = [Encoded("a", [5, 6, 7], [8, 9, 0]), Encoded("b", [3], [4, 0])]
    found = agreement(student, teacher, rows, 0)
    same, forward, reverse = [], [], []
    for row in rows:
        ids = torch.tensor([row.prompt + row.response])
        at = slice(len(row.prompt) - 1, -1)
        with torch.no_grad():
            q, p = (m(ids).logits[0, at].double().log_softmax(-1) for m in (student, teacher))
        same += (q.argmax(-1) == p.argmax(-1)).tolist()
        forward += (p.exp() * (p - q)).sum(-1).tolist()
        reverse += (q.exp() * (q - p)).sum(-1).tolist()
    assert found["positions"] == 5 and found["top1"] == 100 * sum(same) / 5
    assert found["fkl"] == pytest.approx(sum(forward) / 5, rel=1e-4)
    assert found["rkl"] == pytest.approx(sum(reverse) / 5, rel=1e-4)
    own = agreement(student, student, rows, 0)
    assert own["top1"] == 100 and own["fkl"] == pytest.approx(0, abs=1e-6)


def kl_by_position(student, teacher, row):
    """Forward KL at each response position, from whole logits in float64."""
    ids = torch.tensor([row.prompt + row.response])
    with torch.no_grad():
        q, p = (m(ids).logits[0, len(row.prompt) - 1 : -1].double().log_softmax(-1) for m in (student, teacher))
    return (p.exp() * (p - q)).sum(-1).tolist()


def test_excess_error_by_hand():
    """Means over all texts, of which one has ended before the length; against whole logits."""
    student, teacher = tiny_gpt2().eval(), tiny_gpt2(hidden=24, seed=9).eval()
    own = [Encoded("a", [5, 6, 7], [8, 9, 4, 11]), Encoded("b", [3], [4, 0])]
    theirs = [Encoded("a", [5, 6, 7], [1, 2, 3]), Encoded("b", [3], [9, 9, 9, 0])]
    found = excess_error(student, teacher, own, theirs, [1, 2, 3], 0)
    assert found.pop(1) == pytest.approx(0, abs=1e-3)  # the first position has only the prompt before it
    for length, value in found.items():
        mine, base = (
            sum(sum(kl_by_position(student, teacher, row)[:length]) for row in rows) / 2 for rows in (own, theirs)
        )
        assert value == pytest.approx(100 * (mine - base) / base, rel=1e-4)
    assert excess_error(student, teacher, own, own, [2], 0)[2] == 0  # its own text is the teacher's
    assert excess_error(student, student, own, theirs, [2], 0) == {}
    with pytest.raises(ValueError, match="no text"):
        excess_error(student, teacher, [], theirs, [2], 0)


def test_bertscore_is_the_packages_and_an_empty_answer_scores():
    from bert_score import BERTScorer

    scorer = BertScorer(BertScoreConfig(encoder=WHEEL))
    texts = ["A cat sat on the mat.", "", "   ", "Paris", "42", "It rains"]
    wanted = [["A cat sat on the mat."], ["x"], ["x"], ["London", "Paris is a city."], ["forty-two"], [""]]
    scores = scorer.score(texts, wanted)
    assert scores[0] == pytest.approx(100, abs=1e-3) and scores[1:3] == [0, 0] and scores[5] == 0
    package = BERTScorer(scorer._scorer.model_type, num_layers=6)
    _, _, f1 = package.score(["Paris"], [["London", "Paris is a city."]])
    assert scores[3] == pytest.approx(100 * f1.item(), abs=1e-3)
    alone = [package.score(["Paris"], [[one]])[2].item() for one in ("London", "Paris is a city.")]
    assert scores[3] == pytest.approx(100 * max(alone), abs=1e-3)
    assert scorer.score([], []) == []


def test_an_encoder_that_is_not_there_is_refused_before_anything_runs(monkeypatch):
    with pytest.raises(UserError, match=r"eval\.bertscore\.encoder=nobody/nothing: .*hf download.*make encoder"):
        check(BertScoreConfig(encoder="nobody/nothing"))
    with pytest.raises(UserError, match="has 6"):
        BertScorer(BertScoreConfig(encoder=WHEEL, layers=7))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="make encoder"):
        check(BertScoreConfig(encoder=WHEEL))


def test_encoders_are_different_metrics(tmp_path):
    names = {
        metric_name(BertScoreConfig(encoder=e, layers=n))
        for e, n in (("roberta-large", None), ("roberta-large", 9), (WHEEL, None))
    }
    assert names == {"bertscore:roberta-large", "bertscore:roberta-large@9", f"bertscore:{WHEEL}"}
    for name in "ab":  # folders of one name
        (tmp_path / name / "enc").mkdir(parents=True)
        (tmp_path / name / "enc" / "config.json").write_text(name)
    one, other = (metric_name(BertScoreConfig(encoder=str(tmp_path / name / "enc"))) for name in "ab")
    assert one.startswith("bertscore:enc-") and one != other
