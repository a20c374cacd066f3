"""Scored responses as they are stored: one JSON object per line in an evaluation's `generations.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from distill.base.files import write_whole

GENERATIONS = "generations.jsonl"


@dataclass(frozen=True)
class Scored:
    """One generated response with its scores.

    Attributes:
        id: the example's id.
        text: decoded, without special tokens.
        tokens: the number of generated tokens, without EOS.
        ended: whether EOS ended it; otherwise the length limit cut it.
        rouge_l: ROUGE-L F1, 0 to 100.
        exact_match: 0 or 100; None in artifacts of earlier versions.
        token_ids: the generated tokens, without EOS; None in artifacts of earlier versions.
    """

    id: str
    text: str
    tokens: int
    ended: bool
    rouge_l: float
    exact_match: float | None = None
    token_ids: list[int] | None = None


def read_responses(folder: Path) -> list[Scored]:
    """The scored responses of a finished evaluation, in the order of its prompts."""
    with (folder / GENERATIONS).open(encoding="utf-8") as lines:
        return [Scored(**json.loads(line)) for line in lines]


def write_responses(folder: Path, responses: Sequence[Scored]) -> None:
    """Write scored responses to an evaluation's folder."""
    text = "".join(json.dumps(asdict(response), ensure_ascii=False) + "\n" for response in responses)
    write_whole(folder / GENERATIONS, text)
