"""Scored responses of a model to a set's prompts, all generation seeds together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.base.console import say
from distill.data.sets import Dataset
from distill.generation.stage import Evaluator
from distill.pipeline.nodes import Maker, Node
from distill.pipeline.store import Spec

if TYPE_CHECKING:
    from distill.pipeline.plan import Plan, Role


class Texts(Maker):
    """A role's responses to one set."""

    together = True
    quiet = True

    def __init__(self, plan: Plan, role: Role, dataset: Dataset):
        self.plan, self.role, self.dataset = plan, role, dataset

    def make(self, nodes: Sequence[Spec], folders: list[Path]) -> list[dict[str, Any]]:
        """See the base class."""
        started = time.perf_counter()
        seeds = [node.subject.seed for node in nodes if isinstance(node, Node) and node.subject is not None]
        evaluator = Evaluator(self.plan.config, self.plan.weights(self.plan.model(self.role), self.role))
        entries = evaluator.measure(self.dataset, dict(zip(seeds, folders, strict=True)))  # type: ignore[arg-type]
        shown, seconds = ", ".join(map(str, seeds)), time.perf_counter() - started
        prompts = len(self.dataset.examples)
        say(f"evaluate {self.dataset.title}: {prompts} prompts, seeds {shown}, in {seconds:.0f} s")
        return entries
