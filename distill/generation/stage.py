"""The evaluation stage: responses written group by group, kept as they come, then scored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from distill.base.console import bar, say
from distill.base.errors import UserError
from distill.base.processes import is_main_process, rank, world_size
from distill.config.schema import Config
from distill.data.encode import Encoded, EncodedSet, Encoder
from distill.data.sets import Dataset
from distill.evaluation.rouge import rouge_l
from distill.evaluation.text import exact_match
from distill.generation.engine import Generation, Writing, groups, write_group
from distill.generation.vllm import VllmEngine
from distill.models.load import Weights, check_positions, load_model, load_tokenizer
from distill.models.tokenizers import pad_id
from distill.pipeline.store import digest

GENERATIONS, GROUPS, PLAN = "generations.jsonl", "groups", "plan"


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
        self.write: Callable[[Sequence[Encoded], Writing, Callable[[int], object]], list[Generation]]
        if config.eval.engine == "vllm":
            self.write = VllmEngine(config, weights).write
            return
        dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = load_model(weights, dtype).to(device).eval()
        needed = config.train.max_prompt_length + config.eval.max_new_tokens
        check_positions(model, needed, "train.max_prompt_length and eval.max_new_tokens")
        self.write = partial(write_group, model)

    def measure(self, dataset: Dataset, folders: dict[int, Path]) -> list[dict[str, Any]]:
        """Leave the scored responses of each seed in its folder.

        A group of prompts is written for all seeds together and kept under the folders at once: a run that was stopped
        goes on behind its last group, and several processes share the groups out. The groups stay there until their
        folders are finished artifacts (`remove_groups`).

        Returns:
            What each seed's manifest shall tell.
        """
        prompts = self._prompts(dataset)
        writing = Writing(
            dataset.name, list(folders), self.config.eval, self.tokenizer.eos_token_id, pad_id(self.tokenizer)
        )
        scored_before = all((folder / GENERATIONS).is_file() for folder in folders.values())
        _together()  # before the first process moves them
        if not scored_before:  # else it was stopped when some seeds had become artifacts and these had not
            self.write_all(prompts.rows, writing, folders, f"  {dataset.title}")
        if not is_main_process():
            return [{} for _ in folders]
        references = {e.id: e.references for e in dataset.examples}
        told = []
        for folder in folders.values():
            written = written_in(folder, prompts.rows)
            scored = self._score(written, references)
            _write_lines(folder / GENERATIONS, scored)
            told.append(
                {
                    "rows": len(scored),
                    "rouge_l": sum(row.rouge_l for row in scored) / len(scored),
                    "ties": sum(g.ties for g in written),
                    "overlong": dict(prompts.counts),
                }
            )
        return told

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

    def write_all(self, prompts: Sequence[Encoded], writing: Writing, folders: dict[int, Path], label: str) -> None:
        """Write this process's share of the groups that are not kept yet, each seed's in its folder (`written_in`)."""
        cut = groups(prompts, writing)
        plan = digest(
            [[[prompts[i].id for i in group] for group in cut], list(writing.seeds), writing.decode.batch_tokens]
        )
        kept = [folder / GROUPS for folder in folders.values()]
        if is_main_process():
            for folder in kept:  # of a run that cut its groups otherwise
                if not (folder / PLAN).is_file() or (folder / PLAN).read_text() != plan:
                    shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True, exist_ok=True)
                (folder / PLAN).write_text(plan)
        _together()
        finished = [all((folder / f"{at:04}.jsonl").is_file() for folder in kept) for at in range(len(cut))]
        _together()  # before any process adds to them
        rows = len(prompts) * len(writing.seeds)
        with bar(rows, label, "row") as shown:
            shown.update(sum(len(group) for group, there in zip(cut, finished, strict=True) if there) * len(kept))
            for at in [at for at, there in enumerate(finished) if not there][rank() :: world_size()]:
                progress: Callable[[int], object] = lambda n: shown.update(n * world_size())  # noqa: E731
                written = self.write([prompts[i] for i in cut[at]], writing, progress)
                for seed, folder in zip(writing.seeds, kept, strict=True):
                    _write_lines(folder / f"{at:04}.jsonl", [g for g in written if g.seed == seed])
        _together()

    def _score(self, written: Sequence[Generation], references: Mapping[str, Sequence[str]]) -> list[Scored]:
        texts = [self.tokenizer.decode(g.tokens, skip_special_tokens=True) for g in written]
        wanted = [references[g.id] for g in written]
        scores = zip(written, texts, rouge_l(texts, wanted), exact_match(texts, wanted), strict=True)
        return [Scored(g.id, text, len(g.tokens), g.ended, rouge, exact, g.tokens) for g, text, rouge, exact in scores]


def remove_groups(folder: Path) -> None:
    """Remove what a finished evaluation was put together from."""
    shutil.rmtree(folder / GROUPS, ignore_errors=True)


def written_in(folder: Path, prompts: Sequence[Encoded]) -> list[Generation]:
    """What `Evaluator.write_all` left in a folder, in the order of the prompts."""
    order = {row.id: at for at, row in enumerate(prompts)}
    written = [g for path in sorted((folder / GROUPS).glob("*.jsonl")) for g in _read(path, Generation)]
    return sorted(written, key=lambda g: order[g.id])


def read_generations(folder: Path) -> list[Scored]:
    """The scored responses of a finished evaluation."""
    return _read(folder / GENERATIONS, Scored)


def _together() -> None:
    if world_size() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def _write_lines(path: Path, rows: Sequence[Any]) -> None:
    """Dataclasses as JSON lines, the file whole or not at all."""
    temporary = path.with_suffix(".tmp")
    text = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _read(path: Path, kind: Callable[..., Any]) -> list[Any]:
    with path.open(encoding="utf-8") as lines:
        return [kind(**json.loads(line)) for line in lines]
