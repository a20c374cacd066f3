"""The questions for a judge model, and how scores and verdicts are read from its answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["diversity", "quality", "accuracy", "completeness", "fluency", "relevance", "preference"]

# MGSR's four criteria, 1 to 5 (seed 003, appendix C.1), paraphrased. All texts of questions are part of the key of
# stored answers: a change asks the judge again.
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
    """A question for the judge.

    Attributes:
        kind: what is judged. It decides how an answer is read.
        text: the message that is sent.
    """

    kind: Kind
    text: str

    @property
    def reminder(self) -> str:
        """The message that follows an answer that could not be read."""
        if self.kind == "preference":
            return "That is no verdict. Reply with one word: A, B or tie."
        low, high = RANGES[self.kind]
        return f"That is no score. Reply with one number from {low} to {high} and nothing else."

    def read(self, answer: str) -> float | str | None:
        """The score or the verdict of an answer; None if the answer has none or more than one."""
        return read_verdict(answer) if self.kind == "preference" else read_score(answer, *RANGES[self.kind])


def diversity(task: str, answers: Sequence[str]) -> Question:
    """The question how diverse the answers of several seeds are, from 1 to 10 (AKL, appendix F)."""
    numbered = "\n\n".join(f"Answer {n}:\n{text}" for n, text in enumerate(answers, 1))
    return Question(
        "diversity",
        f"Below are a task and {len(answers)} answers to it. Rate how diverse the answers are among each other, from 1"
        " (all the same) to 10 (each different in what it says). Reply with the number alone.\n\n"
        f"Task:\n{task}\n\n{numbered}",
    )


def quality(task: str, answer: str) -> Question:
    """The question how good an answer is, from 1 to 10 (AKL, appendix F)."""
    return Question(
        "quality",
        "Below are a task and an answer to it. Rate the quality of the answer, from 1 (useless) to 10 (excellent)."
        f" Reply with the number alone.\n\nTask:\n{task}\n\nAnswer:\n{answer}",
    )


def criterion(kind: Kind, task: str, answer: str) -> Question:
    """The question how an answer is rated by one of MGSR's criteria, from 1 to 5.

    Each criterion is a question of its own, so that one rating does not influence the others.
    """
    return Question(
        kind,
        f"Below are a task and an answer to it. Rate the {kind} of the answer - {CRITERIA[kind]} - from 1 (worst) to 5"
        f" (best). Reply with the number alone.\n\nTask:\n{task}\n\nAnswer:\n{answer}",
    )


def preference(task: str, first: Sequence[str], second: Sequence[str]) -> Question:
    """The question which of two answers is better or, if each side has several, which side is more diverse."""
    is_set = len(first) > 1
    comparison = "sets of answers to it. Which set is more diverse" if is_set else "answers to it. Which is better"
    side_a, side_b = ["\n---\n".join(texts) for texts in (first, second)]
    return Question(
        "preference",
        f"Below are a task and two {comparison}? Reply with one word: A, B, or tie.\n\n"
        f"Task:\n{task}\n\nA:\n{side_a}\n\nB:\n{side_b}",
    )


_NUMBERED_ANSWER = re.compile(r"\b(?:answers?|option|set|number|no\.?)\s*#?\s*\d+", re.IGNORECASE)
_COUNTED_THING = re.compile(r"\d+(?:\.\d+)?\s+(?!out\b|points?\b|because\b|since\b|as\b|for\b|overall\b)[A-Za-z]\w*")
_INTRODUCTION = r"(?:(?:the\s+)?(?:final\s+)?(?:answer|set|option|winner|verdict|choice)\s*(?:is\b)?\s*:?\s*)?"
_VERDICTS = [
    re.compile(rf"^{_INTRODUCTION}(A|B)\s*(?:$|[.,;:!\n(–—-])"),
    re.compile(
        r"^(?:the\s+)?(?:(?:answer|set|option)\s+)?(A|B)\s+(?:is|was|looks|seems)\s+(?:(?!not\b)\w+\s+)?"
        r"(?:better|best|more\s+diverse|the\s+(?:better|winner|more\s+diverse))\b",
        re.IGNORECASE,
    ),
    re.compile(r"^(?!.*\b(?:not|nor|neither|or)\b).*(?:\bis|:)\s+(?:(?:answer|set|option)\s+)?(A|B)\W*$", re.DOTALL),
]
_OTHER_SIDE = re.compile(r"\b(?:than|over|unlike|not)\s+(?:the\s+)?(?:(?:answer|set|option)\s+)?(?:A|B)\b")
_TIES = re.compile(
    rf"^(?:{_INTRODUCTION}|(?:it\s+is|it's|this\s+is)\s+)(?:a\s+)?(?:tie|draw)\s*(?:$|[.,;:!\n(])"
    r"|^(?:they|both(?:\s+\w+)?|the\s+(?:answers|sets))\s+are\s+(?:\w+\s+)?(?:equal|tied|equally\s+\w+)\b",
    re.IGNORECASE,
)


def read_score(answer: str, low: int, high: int) -> float | None:
    """The score from `low` to `high` in an answer; None if it has no number, several, or one outside of the range.

    The answer may repeat the scale (`8/10`, `8 out of 10`, `on a scale of 1 to 10: 8`). It has no score if a number
    names an answer (`answer 1 is best`), counts something (`the 5 answers differ`) or has another scale (`5/5`).
    """
    text = re.sub(rf"\b{low}\s*(?:-|–|to)\s*{high}\b", " ", re.sub(r"[*_`]", "", answer))
    text = re.sub(rf"(?<=\d)\s*\(?(?:/|out of)\s*{high}\b(?!\.\d)", ".", text)
    if _NUMBERED_ANSWER.search(text) or _COUNTED_THING.search(text) or re.search(r"\d\s*/\s*\d", text):
        return None
    scores = {float(number) for number in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w%])", text)}
    if len(scores) != 1:
        return None
    (score,) = scores
    return score if low <= score <= high else None


def read_verdict(answer: str) -> str | None:
    """`first`, `second` or `tie`; None if an answer does not clearly state one of them, or states several."""
    text = re.sub(r"[*_`\"]", "", answer).strip()
    letters = set()
    for match in filter(None, (pattern.search(text) for pattern in _VERDICTS)):
        letter = match[1].upper()
        # `A: 5/10, B: 8/10` chooses neither; `A, since it is clearer than B` chooses A
        if not re.search(rf"\b{'B' if letter == 'A' else 'A'}\b", _OTHER_SIDE.sub("", text[match.end() :])):
            letters.add(letter)
    verdicts = {FIRST if letter == "A" else SECOND for letter in letters} | ({TIE} if _TIES.search(text) else set())
    return verdicts.pop() if len(verdicts) == 1 else None


def verdict(as_asked: str | None, swapped: str | None) -> float | None:
    """1 for a win, 0 for a loss and 0.5 for a tie, from the verdicts in both orders; None if a verdict is missing.

    A win or a loss needs two verdicts that agree. If they differ, the order influenced the judge, which is a tie.
    """
    if as_asked is None or swapped is None:
        return None
    return {(FIRST, SECOND): 1.0, (SECOND, FIRST): 0.0}.get((as_asked, swapped), 0.5)
