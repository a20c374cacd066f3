"""Requests to a judge model: stores every answer, repeats a question with an unreadable answer, estimates the cost."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from filelock import FileLock

from distill.base.errors import UserError
from distill.config.evaluation import JudgeConfig
from distill.judging.questions import Question

MAX_ATTEMPTS = 3  # requests for a question, until an answer can be read
MAX_REFUSALS = 10  # refused questions without any answer: then the settings are wrong, not the questions
MAX_RETRIES = 6  # by the client, of a request that a busy or failing server rejected, with growing pauses
CHARACTERS_PER_TOKEN = 4  # an estimate


@dataclass(frozen=True)
class Cost:
    """An estimate of the requests that questions need.

    Attributes:
        questions: number of different questions.
        answered: number of those whose answers are stored.
        tokens_in: input tokens of the other questions.
        tokens_out: output tokens at most, if no question is repeated.
        dollars: price of the tokens; None if the config has no price.
    """

    questions: int
    answered: int
    tokens_in: int
    tokens_out: int
    dollars: float | None

    def describe(self) -> str:
        """The estimate as one line of text."""
        unknown = "the price is unknown, since eval.judge.price is not set"
        price = unknown if self.dollars is None else f"about ${self.dollars:.2f}"
        return (
            f"{self.questions} questions, {self.answered} answered before; the others need about"
            f" {self.tokens_in / 1000:.0f} thousand tokens of input and {self.tokens_out / 1000:.1f} thousand of output"
            f" if no question is repeated; {price}"
        )


class Judge:
    """A judge model at OPENAI_BASE_URL (OpenAI's address if unset) with the key OPENAI_API_KEY.

    Args:
        config: the judge model and the limits of its requests.
        folder: where its answers are stored, one JSON line each. A request with a stored answer is not sent again.

    Attributes:
        address: base URL of the server.
        model: the model's name at that address.
        refusals: error messages of the questions that the server refused.

    Raises:
        UserError: the config names no judge, the client is not installed, or no key is set.
    """

    def __init__(self, config: JudgeConfig, folder: Path):
        if config.model is None:
            raise UserError("eval.judge.model is null; name the judge model, for example eval.judge.model=gpt-4o-mini")
        try:
            import openai
        except ImportError:
            raise UserError(
                "the judge needs the openai client, which is not installed; run pip install 'distill[judge]'"
            ) from None
        self._openai = openai
        base, key = os.environ.get("OPENAI_BASE_URL"), os.environ.get("OPENAI_API_KEY")
        if key is None and base is None:
            raise UserError(
                "OPENAI_API_KEY is not set; set it, or set OPENAI_BASE_URL to the address of your own server (for"
                " example transformers serve)"
            )
        if base is not None and urlparse(base).scheme not in ("http", "https"):
            raise UserError(f"OPENAI_BASE_URL={base} is no address of a server, such as http://localhost:8000/v1")
        self.address = base or "https://api.openai.com/v1"
        self._client = openai.OpenAI(
            base_url=base,
            api_key=key or "none",
            max_retries=MAX_RETRIES,
            timeout=config.timeout,
        )
        self.config, self.model = config, config.model
        self._file = folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', self.model).strip('_')}.jsonl"
        self._lock, self._next_start = threading.Lock(), 0.0
        self._answers: dict[str, str] = {}
        self.refusals: list[str] = []
        if self._file.is_file():
            with self._file_lock(), self._file.open("r+b") as file:
                complete, newline, _ = file.read().rpartition(b"\n")
                file.truncate(len(complete) + len(newline))  # a stopped run may have left half a line
            for line in complete.decode().splitlines():
                record = json.loads(line)
                self._answers[record["key"]] = record["answer"]

    def cost(self, questions: Sequence[Question]) -> Cost:
        """The estimated cost of asking these questions."""
        distinct = list(dict.fromkeys(questions))
        unanswered = [q for q in distinct if self._key(_messages(q)) not in self._answers]
        tokens_in = sum(len(q.text) for q in unanswered) // CHARACTERS_PER_TOKEN
        tokens_out = len(unanswered) * self.config.max_tokens
        price = self.config.price
        dollars = (tokens_in * price[0] + tokens_out * price[1]) / 1e6 if price else None
        return Cost(len(distinct), len(distinct) - len(unanswered), tokens_in, tokens_out, dollars)

    def ask(
        self, questions: Sequence[Question], progress: Callable[[int], object] = lambda n: None
    ) -> list[float | str | None]:
        """The judge's score or verdict for each question; None if no answer could be read or the question was refused.

        Args:
            questions: equal ones are asked once.
            progress: called with the number of questions that were finished since the last call.

        Raises:
            UserError: the server cannot be reached, or it refuses all questions. The answers so far are stored.
        """
        distinct = list(dict.fromkeys(questions))

        def ask_one(question: Question) -> float | str | None:
            value = self._ask(question)
            progress(1)
            return value

        pool = ThreadPoolExecutor(self.config.parallel)
        try:
            values = dict(zip(distinct, pool.map(ask_one, distinct), strict=True))
            if self.refusals and not self._answers:
                raise self._openai.OpenAIError(self.refusals[0])
        except self._openai.OpenAIError as error:
            raise UserError(
                f"judge {self.model} at {self.address}: {_first_line(error)}; the answers so far are stored, and the"
                " same command continues from them"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)
        return [values[question] for question in questions]

    def _ask(self, question: Question) -> float | str | None:
        messages = _messages(question)
        for _ in range(MAX_ATTEMPTS):
            if not self._answers and len(self.refusals) >= MAX_REFUSALS:
                raise self._openai.OpenAIError(self.refusals[0])
            try:
                answer = self._answer(messages)
            except (self._openai.BadRequestError, self._openai.UnprocessableEntityError) as error:
                # A content filter or the length limit may refuse single questions; the others are still asked
                self.refusals.append(_first_line(error))
                return None
            value = question.read(answer)
            if value is not None:
                return value
            messages = [
                *messages,
                {"role": "assistant", "content": answer},
                {"role": "user", "content": question.reminder},
            ]
        return None

    def _answer(self, messages: list[dict[str, str]]) -> str:
        """The judge's reply to the messages, stored or from the server."""
        key = self._key(messages)
        if key in self._answers:
            return self._answers[key]
        self._wait()
        reply = self._client.chat.completions.create(
            model=self.model,
            messages=messages,  # type: ignore[arg-type]
            **self._settings(),
        )
        answer = (reply.choices[0].message.content if reply.choices else None) or ""
        record: dict[str, Any] = {"key": key, "model": self.model, "messages": messages, "answer": answer}
        if reply.usage is not None:
            record |= {"tokens_in": reply.usage.prompt_tokens, "tokens_out": reply.usage.completion_tokens}
        with self._lock:
            self._answers[key] = answer
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file_lock(), self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        return answer

    def _settings(self) -> dict[str, Any]:
        """Settings of a request. Reasoning models accept neither a temperature nor the older name of the limit."""
        limit = self.config.max_tokens
        return {"max_completion_tokens": limit} if self.config.reasoning else {"temperature": 0, "max_tokens": limit}

    def _file_lock(self) -> FileLock:
        """The lock under which processes read and write the file of answers."""
        return FileLock(self._file.with_name(f".{self._file.name}.lock"))

    def _wait(self) -> None:
        """Sleep until `requests_per_minute` allows the next request."""
        if self.config.requests_per_minute is None:
            return
        with self._lock:
            start = max(time.monotonic(), self._next_start)
            self._next_start = start + 60.0 / self.config.requests_per_minute
        time.sleep(max(0.0, start - time.monotonic()))

    def _key(self, messages: list[dict[str, str]]) -> str:
        """The hash under which the answer is stored. It must not change, or stored answers would be requested again."""
        determinants: list[Any] = [self.address, self.model, self.config.max_tokens, messages]
        determinants += ["reasoning"] if self.config.reasoning else []
        content = json.dumps(determinants, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:32]


def _messages(question: Question) -> list[dict[str, str]]:
    return [{"role": "user", "content": question.text}]


def _first_line(error: Exception) -> str:
    """The first line of the error's message, or the name of its class if it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
