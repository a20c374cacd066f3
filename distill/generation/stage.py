"""The evaluation stage: responses are written group by group, then scored."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.base.console import say
from distill.base.errors import UserError
from distill.base.processes import is_main_process, wait_for_everyone
from distill.config.schema import Config
from distill.data.encode import EncodedSet, Encoder
from distill.data.sets import Dataset
from distill.evaluation.rouge import rouge_l
from distill.evaluation.text import exact_match
from distill.generation.load import load_engine
from distill.generation.requests import Decoding
from distill.generation.resumable import SeedResponse, read_responses, write_lines, write_resumably
from distill.models.load import Weights, load_tokenizer
from distill.models.tokenizers import pad_id

GENERATIONS = "generations.jsonl"


@dataclass(frozen=True)
class Scored:
    """One generated response with its scores (0 to 100); `token_ids` are its own, EOS not among them."""

    id: str
    text: str
    tokens: int
    ended: bool
    rouge_l: float
    exact_match: float | None = None  # older generations were kept without these two
    token_ids: list[int] | None = None


class Evaluator:
    """Writes and scores the responses of one model, which is loaded once."""

    def __init__(self, config: Config, weights: Weights):
        self.config = config
        self.tokenizer = load_tokenizer(weights)
        self.write = load_engine(config, weights)

    def measure(self, dataset: Dataset, folders: dict[int, Path]) -> list[dict[str, Any]]:
        """Leave the scored responses of each generation seed in its folder.

        The responses are written group by group (`write_resumably`). The groups' files stay until the folders are
        finished artifacts (`remove_groups`).

        Returns:
            The entries for each seed's manifest.
        """
        prompts = self._prompts(dataset)
        decoding = Decoding(self.config.eval, self.tokenizer.eos_token_id, pad_id(self.tokenizer))
        scored_before = all((folder / GENERATIONS).is_file() for folder in folders.values())
        wait_for_everyone()  # before the main process moves them
        if not scored_before:  # otherwise the run was stopped when some seeds were artifacts and these were not yet
            write_resumably(self.write, prompts.rows, dataset.name, decoding, folders, f"  {dataset.title}")
        if not is_main_process():
            return [{} for _ in folders]
        references = {e.id: e.references for e in dataset.examples}
        manifests = []
        for folder in folders.values():
            responses = read_responses(folder, prompts.rows)
            scored = self._score(responses, references)
            write_lines(folder / GENERATIONS, scored)
            manifests.append(
                {
                    "rows": len(scored),
                    "rouge_l": sum(row.rouge_l for row in scored) / len(scored),
                    "ties": sum(response.ties for response in responses),
                    "overlong": dict(prompts.counts),
                }
            )
        return manifests

    def _prompts(self, dataset: Dataset) -> EncodedSet:
        config = self.config
        limit = config.train.max_prompt_length
        encoder = Encoder(self.tokenizer, config.data.template, limit, config.eval.overlong_prompt)
        prompts = encoder.prompts(dataset.examples)
        if prompts.said():
            say(f"  {dataset.title}: {prompts.said()} (limit {limit} tokens)")
        if not prompts.rows:
            raise UserError(f"{dataset.title}: no prompt is left; set eval.overlong_prompt=cut")
        return prompts

    def _score(self, responses: Sequence[SeedResponse], references: Mapping[str, Sequence[str]]) -> list[Scored]:
        texts = [self.tokenizer.decode(r.tokens, skip_special_tokens=True) for r in responses]
        expected = [references[r.id] for r in responses]
        scores = zip(responses, texts, rouge_l(texts, expected), exact_match(texts, expected), strict=True)
        return [Scored(r.id, text, len(r.tokens), r.ended, rouge, exact, r.tokens) for r, text, rouge, exact in scores]


def read_generations(folder: Path) -> list[Scored]:
    """The scored responses of a finished evaluation."""
    with (folder / GENERATIONS).open(encoding="utf-8") as lines:
        return [Scored(**json.loads(line)) for line in lines]
