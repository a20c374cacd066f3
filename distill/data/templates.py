"""Writing a prompt from its template."""

from __future__ import annotations

import re

from distill.config.template import INPUT, INSTRUCTION, TemplateConfig

PLACEHOLDER = re.compile(f"{re.escape(INSTRUCTION)}|{re.escape(INPUT)}")


def render(template: TemplateConfig, instruction: str, text: str) -> str:
    """The prompt for an instruction and its input text (which may be empty).

    One pass over the template's own placeholders, so that braces inside the data stay as they are.
    """
    values = {INSTRUCTION: instruction, INPUT: text}
    return PLACEHOLDER.sub(lambda found: values[found[0]], template.with_input if text else template.without_input)
