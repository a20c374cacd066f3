"""What is measured of finished texts and models by other libraries: BERTScore, lm-eval's benchmarks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.base.console import say
from distill.data.sets import Dataset
from distill.evaluation.benchmarks import Harness
from distill.evaluation.bertscore import BertScorer
from distill.evaluation.responses import read_responses
from distill.pipeline.nodes import Maker, Node
from distill.pipeline.store import Spec

if TYPE_CHECKING:
    from distill.pipeline.plan import Plan, Role

SCORES = "scores.json"  # an artifact's values by response, in the order of its evaluation's


class BertScores(Maker):
    """BERTScore of a role's responses to one set."""

    quiet = True

    def __init__(self, plan: Plan, role: Role, dataset: Dataset):
        self.plan, self.role, self.dataset = plan, role, dataset

    def make(self, nodes: Sequence[Spec], folders: list[Path]) -> list[dict[str, Any]]:
        """See the base class."""
        references = {e.id: e.references for e in self.dataset.examples}
        evaluations = [node.inputs[0] for node in nodes if isinstance(node, Node)]
        several = [read_responses(self.plan.store.folder(e)) for e in evaluations if isinstance(e, Node)]
        beside = [row for rows in zip(*several, strict=True) for row in rows]  # a reference is embedded once
        scorer = self.plan.session.shared("encoder", lambda: BertScorer(self.plan.config.eval.bertscore))
        scores = scorer.score([row.text for row in beside], [references[row.id] for row in beside])
        entries = []
        for at, folder in enumerate(folders):
            own = scores[at :: len(folders)]
            (folder / SCORES).write_text(json.dumps([round(score, 4) for score in own]))
            entries.append({"bertscore": sum(own) / len(own), "rows": len(own)})
        return entries


class Questions(Maker):
    """A role's model on one of lm-eval's tasks."""

    quiet = True

    def __init__(self, plan: Plan, role: Role, task: str, shots: int):
        self.plan, self.role, self.task, self.shots = plan, role, task, shots

    def make(self, nodes: Sequence[Spec], folders: list[Path]) -> list[dict[str, Any]]:
        """See the base class."""
        session, config = self.plan.session, self.plan.config
        make = lambda: Harness(session.model(self.role), session.tokenizer(self.role), config)  # noqa: E731
        harness = session.shared(f"harness {self.role}", make)
        answers: dict[str, Any] = harness.run(self.task, self.shots)
        shown = ", ".join(f"{name} {value:.2f}" for name, value in answers["metrics"].items())
        say(f"{self.task}, {self.shots} shots, {answers['rows']} questions: {shown}")
        return [answers]
