"""What a judge is asked, and how its answers are read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["diversity", "quality", "accuracy", "completeness", "fluency", "relevance", "preference"]

# MGSR's four criteria, 1 to 5 (seed 003, appendix C.1), in our words
CRITERIA = {
    "accuracy": "whether it has the details that the task and its input call for, and has them right",
    "completeness": "whether it covers all that the task asks for",
    "fluency": "whether it is natural, readable and grammatical",
    "relevance": "whether it does what the task in particular requires, and keeps to it",
}
RANGES: dict[str, tuple[int, int]] = {"diversity": (1, 10), "quality": (1, 10), **dict.fromkeys(CRITERIA, (1, 5))}
FIRST, SECOND, TIE = "first", "second", "tie"


@dataclass(frozen=True)
class Question:
    """One request: what it is about and its text."""

    kind: Kind
    text: str

    @property
    def again(self) -> str:
        """What is said to a judge whose answer could not be read."""
        if self.kind == "preference":
            return "That is no verdict. Reply with one word: A, B or tie."
        low, high = RANGES[self.kind]
        return f"That is no score. Reply with one number from {low} to {high} and nothing else."

    def read(self, answer: str) -> float | str | None:
        """The score or the verdict that an answer gives, or None if it gives none, or more than one."""
        return read_verdict(answer) if self.kind == "preference" else read_score(answer, *RANGES[self.kind])


def diversity(task: str, answers: Sequence[str]) -> Question:
    """How far the answers of several seeds differ, 1 to 10 (AKL, appendix F)."""
    listed = "\n\n".join(f"Answer {n}:\n{text}" for n, text in enumerate(answers, 1))
    return Question(
        "diversity",
        f"Below are a task and {len(answers)} answers to it. Rate how diverse the answers are among each other, from 1"
        " (all the same) to 10 (each different in what it says). Reply with the number alone.\n\n"
        f"Task:\n{task}\n\n{listed}",
    )


def quality(task: str, answer: str) -> Question:
    """How good one answer is, 1 to 10, seen alone (AKL, appendix F)."""
    return Question(
        "quality",
        "Below are a task and an answer to it. Rate the quality of the answer, from 1 (useless) to 10 (excellent)."
        f" Reply with the number alone.\n\nTask:\n{task}\n\nAnswer:\n{answer}",
    )


def criterion(kind: Kind, task: str, answer: str) -> Question:
    """One of MGSR's four criteria, 1 to 5; each is asked apart, so that one rating does not draw the others."""
    return Question(
        kind,
        f"Below are a task and an answer to it. Rate the {kind} of the answer - {CRITERIA[kind]} - from 1 (worst) to 5"
        f" (best). Reply with the number alone.\n\nTask:\n{task}\n\nAnswer:\n{answer}",
    )


def preference(task: str, first: Sequence[str], second: Sequence[str]) -> Question:
    """Which of two answers is better; of several answers each, which are the more diverse."""
    several = len(first) > 1
    what = "sets of answers to it. Which set is more diverse" if several else "answers to it. Which is better"
    shown = ["\n---\n".join(texts) for texts in (first, second)]
    return Question(
        "preference",
        f"Below are a task and two {what}? Reply with one word: A, B, or tie.\n\n"
        f"Task:\n{task}\n\nA:\n{shown[0]}\n\nB:\n{shown[1]}",
    )


_LABELS = re.compile(r"\b(?:answers?|option|set|number|no\.?)\s*#?\s*\d+", re.IGNORECASE)
_COUNTS = re.compile(r"\d+(?:\.\d+)?\s+(?!out\b|points?\b|because\b|since\b|as\b|for\b|overall\b)[A-Za-z]\w*")
_NAMED = r"(?:(?:the\s+)?(?:final\s+)?(?:answer|set|option|winner|verdict|choice)\s*(?:is\b)?\s*:?\s*)?"
_VERDICTS = [
    re.compile(rf"^{_NAMED}(A|B)\s*(?:$|[.,;:!\n(–—-])"),
    re.compile(
        r"^(?:the\s+)?(?:(?:answer|set|option)\s+)?(A|B)\s+(?:is|was|looks|seems)\s+(?:(?!not\b)\w+\s+)?"
        r"(?:better|best|more\s+diverse|the\s+(?:better|winner|more\s+diverse))\b",
        re.IGNORECASE,
    ),
    re.compile(r"^(?!.*\b(?:not|nor|neither|or)\b).*(?:\bis|:)\s+(?:(?:answer|set|option)\s+)?(A|B)\W*$", re.DOTALL),
]
_COMPARED = re.compile(r"\b(?:than|over|unlike|not)\s+(?:the\s+)?(?:(?:answer|set|option)\s+)?(?:A|B)\b")
_TIES = re.compile(
    rf"^(?:{_NAMED}|(?:it\s+is|it's|this\s+is)\s+)(?:a\s+)?(?:tie|draw)\s*(?:$|[.,;:!\n(])"
    r"|^(?:they|both(?:\s+\w+)?|the\s+(?:answers|sets))\s+are\s+(?:\w+\s+)?(?:equal|tied|equally\s+\w+)\b",
    re.IGNORECASE,
)


def read_score(answer: str, low: int, high: int) -> float | None:
    """The one number from `low` to `high` that an answer states; None if it states none, another, or several.

    The scale itself may be repeated (`8/10`, `8 out of 10`, `on a scale of 1 to 10: 8`). A number that names an answer
    (`answer 1 is best`), counts something (`the 5 answers differ`) or is of another scale (`5/5`) is no score.
    """
    text = re.sub(rf"\b{low}\s*(?:-|–|to)\s*{high}\b", " ", re.sub(r"[*_`]", "", answer))
    text = re.sub(rf"(?<=\d)\s*\(?(?:/|out of)\s*{high}\b(?!\.\d)", ".", text)
    if _LABELS.search(text) or _COUNTS.search(text) or re.search(r"\d\s*/\s*\d", text):
        return None
    found = {float(number) for number in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w%])", text)}
    if len(found) != 1:
        return None
    (value,) = found
    return value if low <= value <= high else None


def read_verdict(answer: str) -> str | None:
    """`first`, `second` or `tie`; None where an answer does not plainly name one, or names more than one."""
    text = re.sub(r"[*_`\"]", "", answer).strip()
    named = set()
    for match in filter(None, (pattern.search(text) for pattern in _VERDICTS)):
        letter = match[1].upper()
        # `A: 5/10, B: 8/10` names both; `A, since it is clearer than B` does not
        if not re.search(rf"\b{'B' if letter == 'A' else 'A'}\b", _COMPARED.sub("", text[match.end() :])):
            named.add(letter)
    found = {FIRST if letter == "A" else SECOND for letter in named} | ({TIE} if _TIES.search(text) else set())
    return found.pop() if len(found) == 1 else None


def verdict(as_asked: str | None, swapped: str | None) -> float | None:
    """1 for a win, 0 for a loss, 0.5 for a tie, of two verdicts with the order swapped; None if one is missing.

    Won or lost is what both say; where they differ the order had a part in it, and it is a tie.
    """
    if as_asked is None or swapped is None:
        return None
    return {(FIRST, SECOND): 1.0, (SECOND, FIRST): 0.0}.get((as_asked, swapped), 0.5)
