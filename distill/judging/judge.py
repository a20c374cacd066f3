"""Asking a judge: every answer is kept, an answer that cannot be read is asked again, and the cost is told first."""

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

from filelock import FileLock

from distill.base.errors import UserError
from distill.config.evaluation import JudgeConfig
from distill.judging.questions import Question

ASKED = 3  # times at most, until an answer can be read
REFUSALS = 10  # of single questions, before the first is answered, that tell of wrong settings and not of questions
RETRIES = 6  # of a request that a busy or failing server refused, by the client, waiting longer each time
CHARACTERS = 4  # a token, about


@dataclass(frozen=True)
class Cost:
    """What is still to be asked, before it is."""

    questions: int
    kept: int
    tokens_in: int
    tokens_out: int
    dollars: float | None

    def describe(self) -> str:
        """One line for a person."""
        price = "price unknown: eval.judge.price is not set" if self.dollars is None else f"about ${self.dollars:.2f}"
        return (
            f"{self.questions} questions, {self.kept} answered before; about {self.tokens_in / 1000:.0f} thousand"
            f" tokens to read and {self.tokens_out / 1000:.1f} thousand to write, if none is asked again; {price}"
        )


class Judge:
    """A judge model behind OPENAI_BASE_URL (the service's own address if unset) with the key OPENAI_API_KEY.

    Args:
        folder: where its answers are kept, one JSON line each; a question is never asked again after it was answered.

    Raises:
        UserError: no judge is named, the client is not installed, or no key is set.
    """

    def __init__(self, config: JudgeConfig, folder: Path):
        if config.model is None:
            raise UserError("eval.judge.model is null; name the judge, such as eval.judge.model=gpt-4o-mini")
        try:
            import openai
        except ImportError:
            raise UserError("the judge needs the openai client: pip install 'distill[judge]'") from None
        self._errors = openai
        base, key = os.environ.get("OPENAI_BASE_URL"), os.environ.get("OPENAI_API_KEY")
        if key is None and base is None:
            raise UserError(
                "OPENAI_API_KEY is not set; set it, or OPENAI_BASE_URL for a server of your own (such as transformers"
                " serve)"
            )
        self.address = base or "https://api.openai.com/v1"
        self._client = openai.OpenAI(base_url=base, api_key=key or "none", max_retries=RETRIES, timeout=config.timeout)
        self.config, self.model = config, config.model
        self._file = folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', self.model).strip('_')}.jsonl"
        self._lock, self._next = threading.Lock(), 0.0
        self._kept: dict[str, str] = {}
        self.refused: list[str] = []
        if self._file.is_file():
            with self._shared(), self._file.open("r+b") as file:
                whole, end, _ = file.read().rpartition(b"\n")
                file.truncate(len(whole) + len(end))  # a stopped run may have left half a line
            for line in whole.decode().splitlines():
                kept = json.loads(line)
                self._kept[kept["key"]] = kept["answer"]

    def cost(self, questions: Sequence[Question]) -> Cost:
        """What asking these will take."""
        unlike = list(dict.fromkeys(questions))
        fresh = [q for q in unlike if self._key(_messages(q)) not in self._kept]
        read = sum(len(q.text) for q in fresh) // CHARACTERS
        written = len(fresh) * self.config.max_tokens
        price = self.config.price
        dollars = (read * price[0] + written * price[1]) / 1e6 if price else None
        return Cost(len(unlike), len(unlike) - len(fresh), read, written, dollars)

    def ask(
        self, questions: Sequence[Question], progress: Callable[[int], object] = lambda n: None
    ) -> list[float | str | None]:
        """What the judge says to each; None where no answer could be read, or the server refused the question.

        Raises:
            UserError: the server cannot be reached or refuses; what was answered is kept.
        """
        unlike = list(dict.fromkeys(questions))

        def one(question: Question) -> float | str | None:
            found = self._ask(question)
            progress(1)
            return found

        pool = ThreadPoolExecutor(self.config.parallel)
        try:
            read = dict(zip(unlike, pool.map(one, unlike), strict=True))
            if self.refused and not self._kept:
                raise self._errors.OpenAIError(self.refused[0])
        except self._errors.OpenAIError as error:
            raise UserError(
                f"{self.address}, model {self.model}: {_told(error)}; the answers so far are kept"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)
        return [read[question] for question in questions]

    def _ask(self, question: Question) -> float | str | None:
        messages = _messages(question)
        for _ in range(ASKED):
            if not self._kept and len(self.refused) >= REFUSALS:
                raise self._errors.OpenAIError(self.refused[0])
            try:
                answer = self._answer(messages)
            except (self._errors.BadRequestError, self._errors.UnprocessableEntityError) as error:
                self.refused.append(_told(error))  # by a filter, or as too long: the others may pass
                return None
            found = question.read(answer)
            if found is not None:
                return found
            messages = [
                *messages,
                {"role": "assistant", "content": answer},
                {"role": "user", "content": question.again},
            ]
        return None

    def _answer(self, messages: list[dict[str, str]]) -> str:
        key = self._key(messages)
        if key in self._kept:
            return self._kept[key]
        self._wait()
        reply = self._client.chat.completions.create(
            model=self.model,
            messages=messages,  # type: ignore[arg-type]
            **self._settings(),
        )
        answer = (reply.choices[0].message.content if reply.choices else None) or ""
        line: dict[str, Any] = {"key": key, "model": self.model, "messages": messages, "answer": answer}
        if reply.usage is not None:
            line |= {"tokens_in": reply.usage.prompt_tokens, "tokens_out": reply.usage.completion_tokens}
        with self._lock:
            self._kept[key] = answer
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._shared(), self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        return answer

    def _settings(self) -> dict[str, Any]:
        """Of a request; a model that thinks refuses a temperature, and the older name of the limit."""
        limit = self.config.max_tokens
        return {"max_completion_tokens": limit} if self.config.reasoning else {"temperature": 0, "max_tokens": limit}

    def _shared(self) -> FileLock:
        """Holds the file of answers against other processes."""
        return FileLock(self._file.with_name(f".{self._file.name}.lock"))

    def _wait(self) -> None:
        """Keep to the requests a minute that are allowed."""
        if self.config.requests_per_minute is None:
            return
        with self._lock:
            start = max(time.monotonic(), self._next)
            self._next = start + 60.0 / self.config.requests_per_minute
        time.sleep(max(0.0, start - time.monotonic()))

    def _key(self, messages: list[dict[str, str]]) -> str:
        asked: list[Any] = [self.address, self.model, self.config.max_tokens, messages]
        asked += ["reasoning"] if self.config.reasoning else []
        content = json.dumps(asked, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:32]


def _messages(question: Question) -> list[dict[str, str]]:
    return [{"role": "user", "content": question.text}]


def _told(error: Exception) -> str:
    """The first line of what went wrong."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
