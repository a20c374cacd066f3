"""Phrases of a text as spans of its tokens: where each token ends in the text, and which tokens a phrase covers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

CharSpans = list[tuple[int, int]]  # (first character, behind the last)
Decode = Callable[[Sequence[int]], str]


def token_ends(ids: Sequence[int], decode: Decode) -> tuple[str, list[int] | None]:
    """A text's characters, and where in them each token ends.

    The ends are found by decoding one token more at a time, so that they are right for any tokenizer, and for ids that
    it would not have chosen. A token with a part of a character's bytes ends where the character does.

    Args:
        ids: the text's tokens, without EOS.
        decode: the text of ids.

    Returns:
        The text and the ends; None in place of the ends if they cannot be found, because the text of the first tokens
        does not begin the whole text.
    """
    text, ends = decode(ids), []
    for count in range(1, len(ids) + 1):
        part = decode(ids[:count])
        whole = part.rstrip("\N{REPLACEMENT CHARACTER}")  # the bytes of a character that is not complete yet
        if not text.startswith(whole):
            return text, None
        ends.append(len(part) if text.startswith(part) else len(whole) + 1)
    return text, ends


def token_spans(spans: Sequence[tuple[int, int]], ends: Sequence[int]) -> list[tuple[int, int]]:
    """The tokens (first, behind the last) that each span of characters covers, wholly or in part.

    Spans behind the last token, as after a cut, are left out, and those that reach behind it end with it.

    Args:
        spans: (first character, behind the last).
        ends: where each token ends, see `token_ends`.
    """
    starts: list[int] = []  # the tokens of one character start where it does
    for i, stop in enumerate(ends):
        starts.append(0 if i == 0 else starts[-1] if stop == ends[i - 1] else ends[i - 1])
    found = []
    for begin, end in spans:
        tokens = [i for i, (start, stop) in enumerate(zip(starts, ends, strict=True)) if stop > begin and start < end]
        if tokens and end > begin:
            found.append((tokens[0], tokens[-1] + 1))
    return found
