"""From examples to token ids: a response continues its prompt, EOS by position, labels shifted in one place."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from distill.base.errors import UserError
from distill.config.template import TemplateConfig
from distill.data.examples import Example
from distill.data.templates import fill, render

IGNORE = -100  # target of a position that does not count, as in PyTorch's cross_entropy


# Names of extras (`Encoded.extras`)
LATE = "late_targets"  # bool: targets are not shifted, as published code has them for the student's own text
STUDENT_TEXT = "student_text"  # bool: the student wrote the response, alone or with the teacher
ROLLOUT = "rollout"  # tensor [n, k]: what a policy gradient reads of each token (`Divergence.rollout_data`)

# The value of an extra in a row that lacks it, if other rows of the batch have it. For an extra per token: the k
# numbers of each token. Those of a rollout are log m, w and A as `distill.losses.minillm` reads them; with these three
# values the loss is the reverse KL, as on text that was not sampled in a rollout.
DEFAULTS: dict[str, Any] = {LATE: False, STUDENT_TEXT: False, ROLLOUT: (0.0, 1.0, 0.0)}


@dataclass(frozen=True)
class Encoded:
    """A row: the token ids of one example, and further data about it.

    Attributes:
        id: the example's id; a stored teacher finds the text's hidden states by it.
        prompt: token ids.
        response: token ids, with EOS at the end unless the response was cut.
        extras: further data by name. A tensor `[len(response), k]` is per response token; anything else belongs to the
            row as a whole. Only plain values and tensors, so that a checkpoint can store them. `==` ignores extras.

    Raises:
        ValueError: an extra is a tensor that is not `[len(response), k]`.
    """

    id: str
    prompt: list[int]
    response: list[int]
    extras: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def example_id(self) -> str:
        """The id of the example whose prompt it has. A text that was generated in training has an id of its own."""
        return self.id.partition("@")[0]

    def __post_init__(self) -> None:
        for name, value in self.extras.items():
            if isinstance(value, Tensor) and (value.ndim != 2 or len(value) != len(self.response)):
                raise ValueError(
                    f"row {self.id}: the extra {name} is {list(value.shape)}, and the response has"
                    f" {len(self.response)} tokens; per token it must be [{len(self.response)}, k]"
                )


# A row without a target. With several processes it fills up the last, smaller batch of an epoch: otherwise accelerate
# would repeat rows.
FILLER = Encoded("filler", [0, 0], [])


@dataclass
class EncodedSet:
    """Encoded examples, and what was done with the over-long ones.

    Attributes:
        rows: the encoded examples.
        counts: how many prompts were dropped and prompts and responses cut, by a description such as `prompts cut`.
    """

    rows: list[Encoded]
    counts: Counter[str] = field(default_factory=Counter)

    def describe(self) -> str:
        """The counts as text, such as `3 prompts dropped`; an empty string if there are none."""
        return ", ".join(f"{n} {what}" for what, n in sorted(self.counts.items()) if n)


class Encoder:
    """Turns examples into token ids.

    Attributes:
        tokenizer: the tokenizer.
        template: the prompt template.
        max_prompt_length: maximum number of tokens of a prompt.
        overlong_prompt: what is done with longer prompts: `drop` the row, `cut` the input text, `cut_right` the tokens.
        bos: whether a prompt has the tokenizer's BOS, if it has one.
    """

    def __init__(
        self, tokenizer: Any, template: TemplateConfig, max_prompt_length: int, overlong_prompt: str, bos: bool = True
    ):
        self.tokenizer, self.template, self.bos = tokenizer, template, bos
        self.max_prompt_length, self.overlong_prompt = max_prompt_length, overlong_prompt
        self._specials = special_tokens(tokenizer)

    def prompts(self, examples: Sequence[Example]) -> EncodedSet:
        """Rows with prompts and empty responses, for generation."""
        result = EncodedSet([])
        for example in examples:
            prompt = self._fitting(example, self._prompt(example.instruction, example.input), result.counts)
            if prompt is not None:
                result.rows.append(Encoded(example.id, prompt, []))
        return result

    def pairs(self, examples: Sequence[Example], max_length: int) -> EncodedSet:
        """Rows with prompts and responses, for training. A response that does not fit is cut and has no EOS.

        Args:
            examples: the examples.
            max_length: maximum number of tokens of prompt and response together.

        Raises:
            UserError: all prompts are too long.
        """
        result = EncodedSet([])
        for example in examples:
            whole_prompt = self._prompt(example.instruction, example.input)
            prompt = self._fitting(example, whole_prompt, result.counts)
            if prompt is None:
                continue
            response = [*self._response(example, whole_prompt, result.counts), self.tokenizer.eos_token_id]
            response, cut = fitted(prompt, response, max_length)
            result.counts["responses cut"] += cut
            result.rows.append(Encoded(example.id, prompt, response))
        if not result.rows:
            raise UserError(
                f"all {len(examples)} prompts are longer than {self.max_prompt_length} tokens; raise"
                " train.max_prompt_length or set train.overlong_prompt=cut"
            )
        return result

    def _response(self, example: Example, prompt: list[int], counts: Counter[str]) -> list[int]:
        """The response's ids as the continuation of its prompt, as the model will write them.

        Encoded separately, a response would begin with another token where the tokenizer puts a space before every
        text (sentencepiece). Where the prompt's ids are not the beginning of the ids of both texts together, because a
        token would reach over the border, the response is encoded separately.
        """
        both = self._prompt(example.instruction, example.input, example.response)
        if both[: len(prompt)] == prompt:
            return both[len(prompt) :]
        counts["responses encoded apart from their prompt"] += 1
        return plain_ids(self.tokenizer, self._specials, example.response)

    def _fitting(self, example: Example, ids: list[int], counts: Counter[str]) -> list[int] | None:
        """A prompt's ids, shortened if they are too many; None if the row is dropped."""
        if self._specials.search(f"{example.instruction}\n{example.input}\n{example.response}"):
            counts["texts that spell a special token, read as plain text"] += 1
        if len(ids) <= self.max_prompt_length:
            return ids
        if self.overlong_prompt == "drop":
            counts["prompts dropped"] += 1
            return None
        counts["prompts cut"] += 1
        return ids[: self.max_prompt_length] if self.overlong_prompt == "cut_right" else self._cut(example)

    def _prompt(self, instruction: str, text: str, response: str = "") -> list[int]:
        """The ids of a prompt and what follows it, with BOS as `bos` says and without an EOS of the tokenizer.

        A special token that the template spells is one; one that the data spells is plain text.
        """
        if not self._specials.search(instruction + "\n" + text + "\n" + response):
            ids = list(self.tokenizer(render(self.template, instruction, text) + response, **self._bos).input_ids)
            return ids[:-1] if len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id else ids
        template = self.template.with_input if text else self.template.without_input
        pieces = list(filter(None, re.split(f"({self._specials.pattern})", template)))
        if len(pieces) == 1:
            whole = fill(template, instruction, text) + response
            ids = list(self.tokenizer(whole, **self._bos, split_special_tokens=True).input_ids)
            return ids[:-1] if ids[-1] == self.tokenizer.eos_token_id else ids
        start = list(self.tokenizer("", **self._bos).input_ids)
        ids = start[:-1] if start and start[-1] == self.tokenizer.eos_token_id and len(start) > 1 else start
        if self._specials.fullmatch(pieces[-1]):
            pieces.append("")  # for the response
        for place, piece in enumerate(pieces, 1):
            if self._specials.fullmatch(piece):
                ids.append(self.tokenizer.convert_tokens_to_ids(piece))
            elif literal := fill(piece, instruction, text) + (response if place == len(pieces) else ""):
                ids += plain_ids(self.tokenizer, self._specials, literal)
        return ids

    @cached_property
    def _longest_token(self) -> int:
        """The number of characters of the longest token."""
        return max(map(len, self.tokenizer.get_vocab()))

    @property
    def _bos(self) -> dict[str, bool]:
        return {"add_special_tokens": self.bos}

    def _cut(self, example: Example) -> list[int]:
        """The longest prompt that fits when the input text (the instruction, if there is no input) is shortened.

        A text with more characters than the longest tokens could hold is not encoded, so that a row of megabytes does
        not take minutes.
        """
        long = example.input or example.instruction
        most = self.max_prompt_length * self._longest_token - (len(example.instruction) if example.input else 0)
        fits = lambda n: n <= most and len(self._shortened(example, long[:n])) <= self.max_prompt_length  # noqa: E731
        low, high = 0, len(long)
        while low < high:  # bisection for the largest number of characters that fits
            middle = (low + high + 1) // 2
            if fits(middle):
                low = middle
            else:
                high = middle - 1
        ids = self._shortened(example, long[:low])
        return ids[-self.max_prompt_length :]  # the instruction alone may be too long, even with an empty input

    def _shortened(self, example: Example, text: str) -> list[int]:
        return self._prompt(example.instruction, text) if example.input else self._prompt(text, "")


def special_tokens(tokenizer: Any) -> re.Pattern[str]:
    """A pattern of the texts that a tokenizer reads as special tokens; one that matches nothing if it has none."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    texts = {token.content for token in added.values() if token.special} | set(tokenizer.all_special_tokens)
    longest_first = sorted(texts, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def plain_ids(tokenizer: Any, specials: re.Pattern[str], text: str) -> list[int]:
    """The ids of a text without BOS and EOS. A special token that it spells is plain text."""
    as_text = {"split_special_tokens": True} if specials.search(text) else {}
    ids: list[int] = tokenizer(text, add_special_tokens=False, **as_text).input_ids
    return ids


def fitted(prompt: Sequence[int], response: Sequence[int], max_length: int) -> tuple[list[int], bool]:
    """The response cut so that prompt and response have at most `max_length` tokens, and whether it was cut."""
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
    """Makes batches of rows, right-padded to the longest. The attention mask follows lengths, never the pad id.

    Attributes:
        pad_id: the token id of padding.
    """

    def __init__(self, pad_id: int):
        self.pad_id = pad_id

    def __call__(self, rows: Sequence[Encoded]) -> dict[str, Any]:
        """A batch of `input_ids`, `attention_mask` and `labels` `[B, T]`, `example_ids` and `extras`.

        `extras` has every extra that at least one of the rows has. An extra of rows is a list with one entry per row.
        An extra per token is a tensor `[N, k]` over the response tokens of all rows, in the order in which
        `labels != IGNORE` selects them. Rows that lack the extra get its default (`DEFAULTS`).

        Raises:
            ValueError: a row lacks an extra that has no default, or an extra is per token in some rows only.
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
    """The values of one extra for a batch; see `Collator`."""
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
