"""Generates and scores a model's responses to a set's prompts, for all generation seeds together."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.base.console import say
from distill.base.errors import UserError
from distill.base.processes import is_main_process, wait_for_everyone
from distill.config.evaluation import RougeTokenizer
from distill.data.encode import EncodedSet
from distill.data.sets import Dataset
from distill.evaluation.responses import GENERATIONS, Scored, write_responses
from distill.evaluation.rouge import rouge_l
from distill.evaluation.text import exact_match
from distill.generation.load import WriteGroup, load_engine
from distill.generation.requests import Decoding
from distill.generation.resumable import SeedResponse, read_responses, write_resumably
from distill.models.tokenizers import pad_id
from distill.pipeline.nodes import Maker, Node
from distill.pipeline.store import Spec
from distill.training.encoding import evaluation_encoder

if TYPE_CHECKING:
    from distill.pipeline.plan import Plan, Role


class Texts(Maker):
    """Generates and scores a role's responses to one set.

    They are written group by group, for all seeds together (`write_resumably`). The store removes the groups' files
    when the artifacts of the seeds are finished.
    """

    together = True
    quiet = True

    def __init__(self, plan: Plan, role: Role, dataset: Dataset):
        self.plan, self.role, self.dataset = plan, role, dataset

    def make(self, nodes: Sequence[Spec], folders: list[Path]) -> list[dict[str, Any]]:
        """See the base class."""
        started, config, dataset = time.perf_counter(), self.plan.config, self.dataset
        tokenizer = self.plan.session.tokenizer(self.role)
        seeds = [node.subject.seed or 0 for node in nodes if isinstance(node, Node) and node.subject is not None]
        prompts = self._prompts(tokenizer)
        # All are scored already if an earlier run was stopped while the store renamed the folders of the seeds.
        scored_before = all((folder / GENERATIONS).is_file() for folder in folders)
        wait_for_everyone()  # all processes must have looked before the main process renames the folders
        if not scored_before:
            decoding = Decoding(
                config.eval, tokenizer.eos_token_id, pad_id(tokenizer), self.plan.session.vocabulary(self.role)
            )
            by_seed = dict(zip(seeds, folders, strict=True))
            write_resumably(self._engine(), prompts.rows, dataset.name, decoding, by_seed, f"  {dataset.title}")
        if not is_main_process():
            return [{} for _ in folders]
        references = {e.id: e.references for e in dataset.examples}
        entries = []
        for folder in folders:
            responses = read_responses(folder, prompts.rows)
            scored = _scored(tokenizer, responses, references, config.eval.rouge_tokenizer)
            write_responses(folder, scored)
            entries.append(
                {
                    "rows": len(scored),
                    "rouge_l": sum(row.rouge_l for row in scored) / len(scored),
                    "ties": sum(response.ties for response in responses),
                    "overlong": dict(prompts.counts),
                }
            )
        listed, seconds = ", ".join(map(str, seeds)), time.perf_counter() - started
        say(f"evaluate {dataset.title}: {len(dataset.examples)} prompts, seeds {listed}, in {seconds:.0f} s")
        return entries

    def _engine(self) -> WriteGroup:
        """The function that writes a group's responses with the role's model, shared by all sets."""
        plan, session, role = self.plan, self.plan.session, self.role

        def load() -> WriteGroup:
            return load_engine(plan.config, plan.weights(plan.model(role), role), lambda: session.model(role))

        engine: WriteGroup = session.shared(f"engine {role}", load)
        return engine

    def _prompts(self, tokenizer: Any) -> EncodedSet:
        """The set's encoded prompts.

        Raises:
            UserError: all prompts are too long.
        """
        limit = self.plan.config.train.max_prompt_length
        prompts = evaluation_encoder(self.plan.config, tokenizer).prompts(self.dataset.examples)
        if prompts.describe():
            say(f"  {self.dataset.title}: {prompts.describe()} (limit {limit} tokens)")
        if not prompts.rows:
            raise UserError(
                f"{self.dataset.title}: all prompts have more than {limit} tokens; set eval.overlong_prompt=cut, or"
                " raise train.max_prompt_length"
            )
        return prompts


def _scored(
    tokenizer: Any,
    responses: Sequence[SeedResponse],
    references: Mapping[str, Sequence[str]],
    rouge_tokenizer: RougeTokenizer,
) -> list[Scored]:
    """The decoded responses with their ROUGE-L and exact match against the references (by example id)."""
    texts = [tokenizer.decode(r.tokens, skip_special_tokens=True) for r in responses]
    expected = [references[r.id] for r in responses]
    rouge = rouge_l(texts, expected, tokenizer=rouge_tokenizer)
    scores = zip(responses, texts, rouge, exact_match(texts, expected), strict=True)
    return [Scored(r.id, text, len(r.tokens), r.ended, score, exact, r.tokens) for r, text, score, exact in scores]
