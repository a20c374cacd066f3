"""The teacher's responses to the training prompts, written once and stored as JSON lines (SeqKD)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.base.processes import is_main_process
from distill.config.schema import Config
from distill.data.encode import Encoded, EncodedSet, fitted
from distill.data.examples import Example
from distill.generation.load import load_engine
from distill.generation.requests import Decoding
from distill.generation.resumable import read_responses, write_resumably
from distill.models.load import Weights, load_tokenizer
from distill.models.tokenizers import pad_id
from distill.samplers import Sampler
from distill.training.encoding import plain_sampling, training_encoder

ANSWERS = "answers.jsonl"


def write_answers(
    config: Config, sampler: Sampler, teacher: Weights, examples: Sequence[Example], vocabulary: int, folder: Path
) -> Any:
    """Write the teacher's response to the prompt of every example into `folder`.

    A run that was stopped continues after its last finished group. All processes must call this together.

    Args:
        sampler: gives the sampling settings.
        teacher: the weights of the teacher.
        vocabulary: the number of ids that are written, see `Decoding`.
        folder: gets the groups that are finished, and at the end the file `answers.jsonl`.

    Returns:
        Entries for the manifest, on the main process: `rows`, their number; `length`, the mean number of response
        tokens, EOS included; `eos_rate`, the percentage of responses that EOS ended. Empty on the other processes.
    """
    decode = plain_sampling(config.eval, sampler)
    tokenizer, limit = load_tokenizer(teacher), config.train.max_length
    write = load_engine(config.model_copy(update={"eval": decode}), teacher)
    prompts = training_encoder(config, tokenizer).prompts(examples)
    decoding = Decoding(decode, tokenizer.eos_token_id, pad_id(tokenizer), vocabulary)
    folders = {config.train.shared_seed: folder}
    write_resumably(write, prompts.rows, "train", decoding, folders, "  the teacher's answers")
    if not is_main_process():
        return {}
    responses = read_responses(folder, prompts.rows)
    rows = []
    for prompt, response in zip(prompts.rows, responses, strict=True):
        tokens = [*response.tokens, *([tokenizer.eos_token_id] if response.ended else [])]
        rows.append(Encoded(prompt.id, prompt.prompt, fitted(prompt.prompt, tokens, limit)[0]))
    lines = ({"id": row.id, "prompt": row.prompt, "response": row.response} for row in rows)
    (folder / ANSWERS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        "rows": len(rows),
        "length": sum(len(row.response) for row in rows) / len(rows),
        "eos_rate": 100 * sum(response.ended for response in responses) / len(rows),
    }


def read_answers(folder: Path) -> EncodedSet:
    """The rows that `write_answers` wrote into `folder`."""
    with (folder / ANSWERS).open() as lines:
        rows = [json.loads(line) for line in lines]
    # The fields are named because artifacts of earlier versions have one more field.
    return EncodedSet([Encoded(row["id"], row["prompt"], row["response"]) for row in rows])
