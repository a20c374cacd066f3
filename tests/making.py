"""Making parts of a plan in tests, and reading what came of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd

from distill.evaluation.responses import Scored, read_responses
from distill.models.load import Weights
from distill.pipeline.measure import Measurements, measure
from distill.pipeline.nodes import Node, ensure
from distill.pipeline.plan import Plan, Role
from distill.pipeline.rows import Row

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]


def own_errors(stderr: str) -> str:
    """What the processes of a launcher printed, without the launcher's own traceback behind it, which is longer than
    what a test's report shows."""
    return stderr.split("] failed (exitcode")[0][-4000:]


def made(plan: Plan, node: Any, role: Role = "student") -> Weights:
    """The weights of a node, made with all that it needs."""
    if isinstance(node, Node):
        ensure(plan.store, [node])
    return plan.session.weights(node, role)


def student(plan: Plan) -> Weights:
    """The trained student."""
    return made(plan, plan.student)


def teacher(plan: Plan) -> Weights:
    """The trained or supplied teacher."""
    return made(plan, plan.teacher, "teacher")


def signal(plan: Plan) -> Path:
    """The folder of the teacher's stored hidden states."""
    ensure(plan.store, [plan.signal])
    return plan.store.folder(plan.signal)


def evaluate(plan: Plan, role: Role, seeds: list[int]) -> dict[tuple[str, int], list[Scored]]:
    """Scored responses by set and seed."""
    nodes = {(d.name, s): plan.evaluation(role, d, s) for d in plan.sets.values() for s in seeds}
    ensure(plan.store, list(nodes.values()))
    return {at: read_responses(plan.store.folder(node)) for at, node in nodes.items()}


def measured(row: Row, needed: Measurements | None = None) -> tuple[pd.DataFrame, bool]:
    """A row's facts after measuring it, values as numbers, and whether anything was made."""
    made_now = measure(row, needed or Measurements())
    facts = row.folder.facts()
    return facts.assign(value=facts["value"].astype(float), n=facts["n"].astype(int)), made_now
