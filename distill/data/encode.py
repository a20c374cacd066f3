"""From examples to token ids: prompt and response apart, EOS by position, one shift."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distill.base.errors import UserError
from distill.config.template import TemplateConfig
from distill.data.examples import Example
from distill.data.templates import render

IGNORE = -100  # target of a position that does not count; the field's convention


# Names of extras (`Encoded.extras`)
LATE = "late_targets"  # bool: targets stand one position too far on, as published code has the student's own text
STUDENT_TEXT = "student_text"  # bool: the student wrote the response, alone or with the teacher
ROLLOUT = "rollout"  # tensor [n, k]: what a policy gradient reads of each token (`Divergence.rollout_data`)
SPANS = "spans"  # pairs (first, behind last) of places in the response: tokens that belong together

# What a row without an extra has in a batch where other rows have it. For one that is per token: the k numbers of each
# token. Those of a rollout are log m, w and A as `distill.losses.minillm` reads them: it is then the reverse KL, as on
# text that was not drawn.
DEFAULTS: dict[str, Any] = {LATE: False, STUDENT_TEXT: False, SPANS: (), ROLLOUT: (0.0, 1.0, 0.0)}


@dataclass(frozen=True)
class Encoded:
    """A row: the token ids of one example, and what else is known of it.

    Attributes:
        id: names the text, for a stored teacher.
        prompt: token ids.
        response: token ids, with EOS at the end unless the response was cut.
        extras: further data by name. A tensor `[len(response), k]` is per response token; anything else is of the row
            as a whole. Plain values and tensors only, so that a checkpoint holds them. Extras do not take part in `==`.

    Raises:
        ValueError: an extra is a tensor that is not `[len(response), k]`.
    """

    id: str
    prompt: list[int]
    response: list[int]
    extras: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for name, value in self.extras.items():
            if isinstance(value, Tensor) and (value.ndim != 2 or len(value) != len(self.response)):
                raise ValueError(
                    f"row {self.id}: the extra {name} is {list(value.shape)}, and the response has"
                    f" {len(self.response)} tokens; per token it must be [{len(self.response)}, k]"
                )


# A row without a target. With several processes it fills the last, smaller batch, where accelerate would repeat rows.
FILLER = Encoded("filler", [0, 0], [])


@dataclass
class EncodedSet:
    """Encoded examples and what became of the over-long ones."""

    rows: list[Encoded]
    counts: Counter[str] = field(default_factory=Counter)

    def describe(self) -> str:
        """`3 prompts dropped, 1 response cut`, or nothing."""
        return ", ".join(f"{n} {what}" for what, n in sorted(self.counts.items()) if n)


class Encoder:
    """Turns examples into token ids for one tokenizer, template and set of limits."""

    def __init__(self, tokenizer: Any, template: TemplateConfig, max_prompt_length: int, overlong_prompt: str):
        self.tokenizer, self.template = tokenizer, template
        self.max_prompt_length, self.overlong_prompt = max_prompt_length, overlong_prompt

    def prompts(self, examples: Sequence[Example]) -> EncodedSet:
        """Prompts alone, for generation."""
        result = EncodedSet([])
        for example in examples:
            prompt = self._prompt(example, result.counts)
            if prompt is not None:
                result.rows.append(Encoded(example.id, prompt, []))
        return result

    def pairs(self, examples: Sequence[Example], max_length: int) -> EncodedSet:
        """Prompts with their responses, for training; a response that does not fit is cut and gets no EOS.

        Raises:
            UserError: nothing is left.
        """
        result = EncodedSet([])
        for example in examples:
            prompt = self._prompt(example, result.counts)
            if prompt is None:
                continue
            response = self.tokenizer(example.response, add_special_tokens=False).input_ids
            response = [*response, self.tokenizer.eos_token_id]
            response, cut = fitted(prompt, response, max_length)
            result.counts["responses cut"] += cut
            result.rows.append(Encoded(example.id, prompt, response))
        if not result.rows:
            raise UserError(
                f"all {len(examples)} prompts are longer than {self.max_prompt_length} tokens; raise"
                " train.max_prompt_length or set train.overlong_prompt=cut"
            )
        return result

    def _prompt(self, example: Example, counts: Counter[str]) -> list[int] | None:
        ids = self._ids(example.instruction, example.input)
        if len(ids) <= self.max_prompt_length:
            return ids
        if self.overlong_prompt == "drop":
            counts["prompts dropped"] += 1
            return None
        counts["prompts cut"] += 1
        return ids[: self.max_prompt_length] if self.overlong_prompt == "cut_right" else self._cut(example)

    def _ids(self, instruction: str, text: str) -> list[int]:
        """A prompt's ids, with the family's BOS; an EOS that a tokenizer adds of itself is taken off."""
        ids = list(self.tokenizer(render(self.template, instruction, text)).input_ids)
        eos = self.tokenizer.eos_token_id
        return ids[:-1] if len(ids) > 1 and ids[-1] == eos else ids

    def _cut(self, example: Example) -> list[int]:
        """The longest prompt that fits when the input text (or, without one, the instruction) is shortened."""
        long = example.input or example.instruction
        low, high = 0, len(long)
        while low < high:  # the largest number of characters that fits
            middle = (low + high + 1) // 2
            if len(self._shortened(example, long[:middle])) <= self.max_prompt_length:
                low = middle
            else:
                high = middle - 1
        ids = self._shortened(example, long[:low])
        return ids[-self.max_prompt_length :]  # an instruction that is too long beside its input

    def _shortened(self, example: Example, text: str) -> list[int]:
        return self._ids(example.instruction, text) if example.input else self._ids(text, "")


def fitted(prompt: Sequence[int], response: Sequence[int], max_length: int) -> tuple[list[int], bool]:
    """A response cut to what `max_length` leaves it behind its prompt, and whether it was cut."""
    room = max_length - len(prompt)
    return list(response[:room]), len(response) > room


def shift(prompt: Sequence[int], response: Sequence[int], late: bool = False) -> tuple[list[int], list[int]]:
    """Model inputs and their targets: `targets[t]` is the token that the logits at `t` predict.

    The only place where labels are shifted. The last token is no input, as nothing is predicted from it; the first
    target is the response's first token, at the prompt's last position. With `late` they are not shifted: every target
    is the input at its own position.
    """
    ids = [*prompt, *response]
    if late:
        return ids, [IGNORE] * len(prompt) + list(response)
    targets = [IGNORE] * (len(prompt) - 1) + list(response)
    return ids[:-1], targets


class Collator:
    """Right-pads rows to the batch's longest; attention follows lengths, never the pad id."""

    def __init__(self, pad_id: int):
        self.pad_id = pad_id

    def __call__(self, rows: Sequence[Encoded]) -> dict[str, Any]:
        """A batch of `input_ids`, `attention_mask` and `labels` `[B, T]`, `example_ids` and `extras`.

        `extras` has every extra that one of the rows has: a list with one entry a row, or for one per token a tensor
        `[N, k]` over the response tokens of all rows, row by row, as `labels != IGNORE` selects them. Rows without it
        get its default (`DEFAULTS`).

        Raises:
            ValueError: rows lack an extra that has no default, or have different kinds of it.
        """
        pairs = [shift(row.prompt, row.response, row.extras.get(LATE, False)) for row in rows]
        longest = max(len(ids) for ids, _ in pairs)
        input_ids = torch.full((len(rows), longest), self.pad_id)
        attention_mask = torch.zeros((len(rows), longest), dtype=torch.long)
        labels = torch.full((len(rows), longest), IGNORE)
        for i, (ids, targets) in enumerate(pairs):
            input_ids[i, : len(ids)] = torch.tensor(ids)
            attention_mask[i, : len(ids)] = 1
            labels[i, : len(targets)] = torch.tensor(targets)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "example_ids": [row.id for row in rows],
            "extras": {name: _batched(name, rows) for name in dict.fromkeys(n for row in rows for n in row.extras)},
        }


def _batched(name: str, rows: Sequence[Encoded]) -> Tensor | list[Any]:
    """One extra of a batch; see `Collator`."""
    per_token = next(isinstance(row.extras[name], Tensor) for row in rows if name in row.extras)
    values: list[Any] = []
    for row in rows:
        if name not in row.extras and name not in DEFAULTS and (row.response or not per_token):
            raise ValueError(
                f"row {row.id} lacks the extra {name}, which other rows of its batch have and which has no default;"
                " give it to every row, or enter a default in distill.data.encode.DEFAULTS"
            )
        if name in row.extras:
            if isinstance(row.extras[name], Tensor) != per_token:
                raise ValueError(f"the extra {name} is per token in some rows of a batch and per row in others")
            values.append(row.extras[name])
        elif not per_token:
            values.append(DEFAULTS[name])
        elif row.response:
            values.append(torch.tensor(DEFAULTS[name]).expand(len(row.response), -1))
    return torch.cat(values) if per_token else values
