"""Prompt templates. The two Alpaca headers are those of the papers' data; `short` saves a small model's context."""

from __future__ import annotations

from typing import Literal

TEMPLATES: dict[str, dict[bool, str]] = {
    "alpaca": {
        True: (
            "Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request.\n\n"
            "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
        ),
        False: (
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request.\n\n"
            "### Instruction:\n{instruction}\n\n### Response:\n"
        ),
    },
    "short": {True: "{instruction}\n{input}\n>", False: "{instruction}\n>"},
}


def render(template: Literal["alpaca", "short"] | str, instruction: str, text: str) -> str:
    """The prompt for an instruction and its input text (which may be empty)."""
    parts = TEMPLATES[template][bool(text)]
    # One pass over the template's own fields, so that braces inside the data stay as they are.
    head, tail = parts.split("{instruction}")
    return head + instruction + tail.replace("{input}", text)
