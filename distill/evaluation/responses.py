"""Scored responses as they are kept: one JSON object a line in an evaluation's `generations.jsonl`."""

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
        id: its example's.
        text: decoded, without special tokens.
        tokens: how many were generated, EOS not counted.
        ended: whether EOS ended it, or the length limit cut it.
        rouge_l: ROUGE-L F1, 0 to 100.
        exact_match: 0 or 100; None in artifacts of before it was measured.
        token_ids: its own, without EOS; None likewise.
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
    """Keep scored responses in an evaluation's folder."""
    text = "".join(json.dumps(asdict(response), ensure_ascii=False) + "\n" for response in responses)
    write_whole(folder / GENERATIONS, text)
