"""Writing a prompt with its template."""

from __future__ import annotations

import re

from distill.config.template import INPUT, INSTRUCTION, TemplateConfig

PLACEHOLDER = re.compile(f"{re.escape(INSTRUCTION)}|{re.escape(INPUT)}")


def render(template: TemplateConfig, instruction: str, text: str) -> str:
    """The prompt for an instruction and its input text, which may be empty.

    All placeholders are replaced in one pass, so that braces inside the data stay as they are.
    """
    return fill(template.with_input if text else template.without_input, instruction, text)


def fill(text: str, instruction: str, given: str) -> str:
    """A template's text, or a part of it, with its placeholders replaced by the instruction and the input `given`."""
    values = {INSTRUCTION: instruction, INPUT: given}
    return PLACEHOLDER.sub(lambda match: values[match[0]], text)
