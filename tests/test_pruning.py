"""Pruning keeps what its score says, and the student trains on the rows that are left."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import tiny_gpt2

from distill.base.errors import UserError
from distill.config import load
from distill.data.encode import Encoded
from distill.pipeline.nodes import ensure
from distill.pipeline.plan import Plan
from distill.training.pruning import ids_to_keep, mean_nll, read_nll


def test_the_probes_mean_nll_is_the_models_own_loss():
    model = tiny_gpt2()
    rows = [Encoded(f"r{n}", list(range(1, 3 + n)), [5 + n, 9, 3, 0][: 2 + n % 3]) for n in range(20)]
    nll = mean_nll(model, rows, 0)
    assert set(nll) == {row.id for row in rows}
    for row in rows:
        ids = torch.tensor([[*row.prompt, *row.response]])
        labels = torch.tensor([[-100] * len(row.prompt) + row.response])
        assert nll[row.id] == pytest.approx(model(ids, labels=labels).loss.item(), rel=1e-5)


def test_the_rows_that_tell_least_are_left_out():
    nll = {"a": 3.0, "b": 1.0, "c": 2.0, "d": 1.0, "e": 0.5}
    assert ids_to_keep(nll, 0.2) == {"a", "b", "c", "d"} and ids_to_keep(nll, 0.4) == {"a", "c", "d"}
    assert ids_to_keep(nll, 0.1) == set(nll) and ids_to_keep(nll, 0.99) == {"a"}


@pytest.mark.parametrize("probe", ["start", "teacher"])
def test_the_student_trains_on_what_is_left(smoke, probe):
    words = ["model=gpt2", "loss=fkl", f"data.prune.probe={probe}"]
    plan, whole = Plan(smoke(*words, "data.prune.share=0.4")), Plan(smoke("model=gpt2", "loss=fkl"))
    ensure(plan.store, [plan.student])
    (manifest,) = [json.loads(f.read_text()) for f in plan.store.folder(plan.student).glob("artifact.json")]
    assert manifest["rows"]["train"] == 21 - 8  # of 21, and the nearest number below 40 %
    assert len(ids_to_keep(read_nll(plan.store.folder(plan.probe)), 0.4)) == 13
    assert plan.student.key != whole.student.key and plan.teacher.key == whole.teacher.key
    assert plan.start.key == whole.start.key and plan.signal.key == whole.signal.key
    less = Plan(smoke(*words, "data.prune.share=0.2"))
    assert less.probe.key == plan.probe.key and less.student.key != plan.student.key


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["loss=fkl", "data.prune.share=1.0"], "less than 1"),
        (["loss=fkl", "data.prune.share=0"], "greater than 0"),
        (["loss=fkl", "data.prune.probe=base", "data.prune.share=0.5"], "'start' or 'teacher'"),
        (["loss=sft", "data.prune.share=0.5"], "leave data.prune out"),
    ],
)
def test_bad_settings(words, message):
    with pytest.raises(UserError) as error:
        load(["model=micro", *words])
    assert any(message in problem for problem in error.value.problems)
