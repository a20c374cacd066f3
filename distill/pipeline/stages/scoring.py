"""Measurements by other libraries: BERTScore of finished responses, and lm-eval's benchmarks of models."""

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

SCORES = "scores.json"  # one score per response, in the order of the evaluation's responses


class BertScores(Maker):
    """Computes BERTScore of a role's responses to one set."""

    quiet = True

    def __init__(self, plan: Plan, role: Role, dataset: Dataset):
        self.plan, self.role, self.dataset = plan, role, dataset

    def make(self, nodes: Sequence[Spec], folders: list[Path]) -> list[dict[str, Any]]:
        """See the base class."""
        references = {e.id: e.references for e in self.dataset.examples}
        evaluations = [node.inputs[0] for node in nodes if isinstance(node, Node)]
        by_seed = [read_responses(self.plan.store.folder(e)) for e in evaluations if isinstance(e, Node)]
        # The responses of all seeds to a prompt are neighbours, so that the scorer embeds its references once.
        responses = [response for of_prompt in zip(*by_seed, strict=True) for response in of_prompt]
        scorer = self.plan.session.shared("encoder", lambda: BertScorer(self.plan.config.eval.bertscore))
        scores = scorer.score([r.text for r in responses], [references[r.id] for r in responses])
        entries = []
        for index, folder in enumerate(folders):
            of_seed = scores[index :: len(folders)]
            (folder / SCORES).write_text(json.dumps([round(score, 4) for score in of_seed]))
            entries.append({"bertscore": sum(of_seed) / len(of_seed), "rows": len(of_seed)})
        return entries


class Questions(Maker):
    """Evaluates a role's model on one of lm-eval's tasks."""

    quiet = True

    def __init__(self, plan: Plan, role: Role, task: str, shots: int):
        self.plan, self.role, self.task, self.shots = plan, role, task, shots

    def make(self, nodes: Sequence[Spec], folders: list[Path]) -> list[dict[str, Any]]:
        """See the base class."""
        session, config = self.plan.session, self.plan.config
        make = lambda: Harness(session.model(self.role), session.tokenizer(self.role), config)  # noqa: E731
        harness = session.shared(f"harness {self.role}", make)
        result: dict[str, Any] = harness.run(self.task, self.shots)
        values = ", ".join(f"{name} {value:.2f}" for name, value in result["metrics"].items())
        say(f"{self.task}, {self.shots} shots, {result['rows']} questions: {values}")
        return [result]
