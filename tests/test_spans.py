"""Phrases as spans of tokens: contractions, unicode, leading spaces, cuts, and text that cannot be aligned."""

from __future__ import annotations

import pytest

from distill.data.gpt2_tokens import gpt2_tokenizer
from distill.data.spans import token_ends, token_spans
from distill.models.tokenizers import train_tokenizer

TEXTS = [
    "I can't see the na\u00efve caf\u00e9 \U0001f600\U0001f600 there, don't you?",
    " leading  spaces\n\nand lines",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8",
    "the cat and the cat and the cat",
    "",
]


def gpt2():
    tokenizer = gpt2_tokenizer()
    return lambda text: tokenizer.encode(text).ids, lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False)


@pytest.mark.parametrize("text", TEXTS)
def test_every_token_ends_where_its_characters_do(text):
    encode, decode = gpt2()
    ids = encode(text)
    found, ends = token_ends(ids, decode)
    assert found == text and len(ends) == len(ids) and ends == sorted(ends) and (not ids or ends[-1] == len(text))
    for i, end in enumerate(ends):  # the bytes up to a token are those of the characters up to its end, or cut the last
        part = decode(ids[: i + 1])
        assert part == text[:end] or (part.endswith("\ufffd") and text[: end - 1] == part.rstrip("\ufffd"))


@pytest.mark.parametrize(
    ("text", "phrase", "tokens"),
    [
        ("I can't see the cat", "the cat", [" the", " cat"]),
        ("I can't see the cat", "n't", [" can", "'t"]),  # inside a word: the tokens that it touches
        ("see \U0001f600 there", "\U0001f600", [" \U0001f600"]),
        ("the cat and the cat", "cat and", [" cat", " and"]),
    ],
)
def test_a_phrase_covers_its_tokens(text, phrase, tokens):
    encode, decode = gpt2()
    ids = encode(text)
    _, ends = token_ends(ids, decode)
    begin = text.index(phrase)
    ((first, last),) = token_spans([(begin, begin + len(phrase))], ends)
    assert decode(ids[first:last]) == "".join(tokens)


def test_leading_spaces_of_sentencepiece():
    """A response continues its prompt, so its first token may be a space, a word's middle or a word with its space."""
    texts = ["The home of Bafer is Zemon.", "In Zemon it is windy, and caf\u00e9s like it there."]
    tokenizer = train_tokenizer("llama", texts, 300)

    def decode(ids):
        return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    for prompt in ("Say: ", "Say:", "Say:\n"):
        for response in ("the home of Bafer", "  two spaces", "caf\u00e9s \U0001f600 there", "x"):
            whole = tokenizer(prompt + response, add_special_tokens=False).input_ids
            ids = whole[len(tokenizer(prompt, add_special_tokens=False).input_ids) :]
            text, ends = token_ends(ids, decode)
            assert ends is not None and ends == sorted(ends) and ends[-1] == len(text)
            begin = text.rindex(response.split()[-1])
            ((first, end),) = token_spans([(begin, len(text))], ends)
            assert end == len(ids) and decode(ids[first:]).strip().endswith(response.split()[-1])


def test_a_span_cut_by_truncation():
    encode, decode = gpt2()
    text = "the old cat sat on the mat"
    ids = encode(text)[:2]
    _, ends = token_ends(ids, decode)
    assert token_spans([(0, 11), (12, 15), (3, 3)], ends) == [(0, 2)]
    assert token_spans([], ends) == [] == token_spans([(0, 3)], [])


def test_text_that_cannot_be_aligned_is_told():
    """A tokenizer whose text changes as tokens come."""
    assert token_ends([1, 2, 3], lambda ids: "abc" if len(ids) == 3 else "x" * len(ids)) == ("abc", None)
