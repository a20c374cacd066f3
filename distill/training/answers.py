"""The teacher's responses to the training prompts, written once and kept (SeqKD)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.base.processes import is_main_process
from distill.config.schema import Config
from distill.data.encode import Encoded, EncodedSet, fitted
from distill.data.examples import Example
from distill.generation.engine import Writing
from distill.generation.stage import Evaluator, remove_groups, written_in
from distill.models.load import Weights
from distill.models.tokenizers import pad_id
from distill.samplers import Sampler
from distill.training.encoding import plain_sampling, training_encoder

ANSWERS = "answers.jsonl"


def write_answers(config: Config, sampler: Sampler, teacher: Weights, examples: Sequence[Example], folder: Path) -> Any:
    """Let the teacher answer every prompt; a run that was stopped goes on behind its last group.

    Returns:
        What the manifest tells: rows, mean length in tokens, share that EOS ended in percent.
    """
    decode = plain_sampling(config.eval, sampler)
    evaluator = Evaluator(config.model_copy(update={"eval": decode}), teacher)
    tokenizer, limit = evaluator.tokenizer, config.train.max_length
    prompts = training_encoder(config, tokenizer).prompts(examples)
    seed = config.train.shared_seed
    writing = Writing("train", [seed], decode, tokenizer.eos_token_id, pad_id(tokenizer))
    evaluator.write_all(prompts.rows, writing, {seed: folder}, "  the teacher's answers")
    if not is_main_process():
        return {}
    written = written_in(folder, prompts.rows)
    rows = []
    for prompt, one in zip(prompts.rows, written, strict=True):
        tokens = [*one.tokens, *([tokenizer.eos_token_id] if one.ended else [])]
        rows.append(Encoded(prompt.id, prompt.prompt, fitted(prompt.prompt, tokens, limit)[0]))
    lines = ({"id": row.id, "prompt": row.prompt, "response": row.response} for row in rows)
    (folder / ANSWERS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    remove_groups(folder)
    return {
        "rows": len(rows),
        "length": sum(len(row.response) for row in rows) / len(rows),
        "eos_rate": 100 * sum(one.ended for one in written) / len(rows),
    }


def read_answers(folder: Path) -> EncodedSet:
    """The rows that `write_answers` left."""
    with (folder / ANSWERS).open() as lines:
        rows = [json.loads(line) for line in lines]
    # By name: artifacts of earlier versions have a field more.
    return EncodedSet([Encoded(row["id"], row["prompt"], row["response"]) for row in rows])
