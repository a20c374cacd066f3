"""Prompt templates: files of `conf/template/` and of `--config-dir`, chosen by `data.template=NAME`."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import model_validator

from distill.base.errors import nearest
from distill.base.locations import options
from distill.config.section import Section

INSTRUCTION, INPUT = "{instruction}", "{input}"


class TemplateConfig(Section):
    """A prompt template. `{instruction}` and `{input}` are placeholders; other braces are plain text.

    Attributes:
        name: the name of its file.
        with_input: the prompt of an example that has an input text.
        without_input: the prompt of an example that has none.
    """

    name: str
    with_input: str
    without_input: str

    @model_validator(mode="after")
    def _placeholders(self) -> TemplateConfig:
        for field, text, required in (
            ("with_input", self.with_input, {INSTRUCTION: 1, INPUT: 1}),
            ("without_input", self.without_input, {INSTRUCTION: 1, INPUT: 0}),
        ):
            for placeholder, times in required.items():
                if (count := text.count(placeholder)) != times:
                    raise ValueError(
                        f"template {self.name}: {field} has {placeholder} {count} times, and it must have it"
                        f" {'once' if times else 'not at all'}"
                    )
        return self


def named(name: str) -> TemplateConfig:
    """The template in the file `template/NAME.yaml`.

    Raises:
        ValueError: there is no such file, or it is not a template.
    """
    return TemplateConfig.model_validate(fields(name))


def fields(name: str) -> dict[str, str]:
    """The fields of the template in the file `template/NAME.yaml`; its placeholders are not checked.

    Raises:
        ValueError: there is no such file, or it has other fields than the two texts.
    """
    files = options("template")
    if name not in files:
        raise ValueError(
            f"no template is named {name}{nearest(name, files)} (templates: {', '.join(files)}); one of your own is"
            f" DIR/template/{name}.yaml with with_input and without_input, and --config-dir DIR"
        )
    try:
        content: Any = yaml.safe_load(files[name].read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{files[name]}: {' '.join(str(error).split())}") from None
    texts = {"with_input", "without_input"}
    if not isinstance(content, dict) or set(content) != texts or not all(isinstance(v, str) for v in content.values()):
        found = ", ".join(map(str, content)) if isinstance(content, dict) else repr(content)
        raise ValueError(f"{files[name]}: a template has two texts, with_input and without_input; found {found}")
    return {"name": name, **content}
