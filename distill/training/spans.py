"""The token spans of the rows of a training: stored for data, found in processes beside the training for new text."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from distill.base.console import bar, say
from distill.base.errors import UserError
from distill.config.objective import SpanConfig
from distill.data import chunkers
from distill.data.encode import Encoded
from distill.data.spans import token_ends, token_spans

Spans = list[tuple[int, int]]  # (first token, behind the last)
SPANS = "spans.json"
ENDED = (
    "loss.span: a process that finds phrases was ended from outside, perhaps for want of memory; set"
    " loss.span.processes=1, and run the command again"
)
# Use fork: spawn and forkserver would re-import the caller's script in every worker
FORK = "fork" if "fork" in multiprocessing.get_all_start_methods() else None


class PhraseFinder:
    """Finds the token spans of a text's phrases.

    Args:
        chunker: see `SpanConfig.chunker`.
        pipeline: see `SpanConfig.pipeline`.
        tokenizer: decodes the tokens.

    Raises:
        UserError: the chunker cannot be loaded.
    """

    def __init__(self, chunker: str, pipeline: str | None, tokenizer: Any):
        self.name, self.tokenizer = chunker, tokenizer
        self.chunker = chunkers.load(chunker, pipeline)

    def __call__(self, ids: Sequence[int]) -> Spans | None:
        """The spans of a response's tokens; None if the tokens cannot be aligned with their text.

        Args:
            ids: the response's tokens. An EOS at its end belongs to no phrase.

        Raises:
            UserError: the chunker failed, or gave spans that are not in the text.
        """
        ids = list(ids[:-1] if len(ids) and ids[-1] == self.tokenizer.eos_token_id else ids)
        text, ends = token_ends(ids, self._decode)
        if ends is None:
            return None
        try:
            spans = [(int(first), int(end)) for first, end in self.chunker(text)] if text.strip() else []
        except Exception as error:
            raise UserError(
                f"loss.span.chunker={self.name} failed with {type(error).__name__}: {error} (text: {text[:80]!r})"
            ) from error
        if wrong := [span for span in spans if not 0 <= span[0] <= span[1] <= len(text)]:
            raise UserError(
                f"loss.span.chunker={self.name} gave the span {wrong[0]} of a text of {len(text)} characters; a span is"
                f" (first character, behind the last) (text: {text[:80]!r})"
            )
        return token_spans(spans, ends)

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


_FINDER: PhraseFinder | UserError | None = None  # of a worker process


def _prepare(parent: int, *arguments: Any) -> None:
    """Make a worker process ready, and let it end if the training is killed: it would wait for work forever."""
    global _FINDER
    threading.Thread(target=_end_without, args=(parent,), daemon=True).start()
    try:
        _FINDER = PhraseFinder(*arguments)
    except Exception as error:  # raised by the first text: an error here would only say that a process ended
        _FINDER = UserError(f"loss.span: the chunker {arguments[0]} cannot be loaded: {error}")


def _end_without(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _find(ids: Sequence[int]) -> Spans | None:
    assert _FINDER is not None
    if isinstance(_FINDER, UserError):
        raise _FINDER
    return _FINDER(ids)


def _pool(chunker: str, settings: SpanConfig, tokenizer: Any) -> ProcessPoolExecutor:
    """Processes that each have a `PhraseFinder`, which `_find` calls."""
    chunkers.check(chunker, settings.pipeline)
    arguments = os.getpid(), chunker, settings.pipeline, tokenizer
    return ProcessPoolExecutor(settings.processes, multiprocessing.get_context(FORK), _prepare, arguments)


def write_spans(
    rows: Sequence[Encoded], chunker: str, settings: SpanConfig, tokenizer: Any, folder: Path
) -> dict[str, int]:
    """Find the spans of rows and write them to `folder`.

    Args:
        rows: data with responses.
        chunker: the name of the chunker.
        settings: its pipeline, and the number of processes.
        tokenizer: decodes the tokens.

    Returns:
        The numbers of texts, of spans, and of texts whose tokens could not be aligned with their text.

    Raises:
        UserError: the chunker failed on a text.
    """
    by_id = {row.id: row for row in rows}
    spans: dict[str, Spans | None] = {}
    with _pool(chunker, settings, tokenizer) as pool, bar(len(by_id), "  phrases", "text") as progress_bar:
        found = pool.map(_find, [row.response for row in by_id.values()], chunksize=16)
        try:
            for row_id, of_row in zip(by_id, found, strict=True):
                spans[row_id] = of_row
                progress_bar.update(1)
        except BrokenProcessPool:
            raise UserError(ENDED) from None
    (folder / SPANS).write_text(json.dumps(spans))
    return _counted(spans.values())


def read_spans(folder: Path) -> dict[str, Spans | None]:
    """The spans of each row that `write_spans` wrote, by id; None for a text that could not be aligned."""
    stored = json.loads((folder / SPANS).read_text())
    return {row_id: None if spans is None else [(a, b) for a, b in spans] for row_id, spans in stored.items()}


def _counted(spans: Iterable[Spans | None]) -> dict[str, int]:
    every = list(spans)
    aligned = [of_text for of_text in every if of_text is not None]
    return {"texts": len(every), "spans": sum(map(len, aligned)), "not aligned": len(every) - len(aligned)}


def tell_unaligned(counts: Mapping[str, int]) -> None:
    """Say how many texts have no spans because their tokens do not align, if there are any."""
    if counts["not aligned"]:
        say(
            f"  the tokens of {counts['not aligned']} of {counts['texts']} texts cannot be aligned with their"
            " characters: these texts have no spans"
        )


class RowSpans:
    """The spans of each row that a training reads.

    Spans of the student's texts are found in processes beside the training: `start_finding` starts on a step's texts,
    and the spans are needed only after the forward passes of the step's first micro-batch.

    Args:
        settings: which tokens belong together.
        chunker: the name of the chunker; None for `kind=adjacent`.
        stored: the spans of the data's rows by id, None for a text that could not be aligned.
        tokenizer: decodes the tokens of the student's texts.

    Attributes:
        counts: the numbers of texts of the student that this process has trained on, of their spans, and of texts that
            could not be aligned.
    """

    def __init__(
        self,
        settings: SpanConfig,
        chunker: str | None,
        stored: Mapping[str, Spans | None],
        tokenizer: Any,
    ):
        self.settings, self.chunker, self.stored, self.tokenizer = settings, chunker, stored, tokenizer
        self._pool: ProcessPoolExecutor | None = None
        self._found: dict[str, Future[Spans | None]] = {}
        self.counts = _counted([])

    def start_finding(self, rows: Sequence[Encoded]) -> None:
        """Start to find the spans of the rows of a step that are not stored. Those of earlier steps are forgotten."""
        self._counted: set[str] = set()
        if self.chunker is None:
            return
        new = [row for row in rows if row.response and row.id not in self.stored]
        if new and self._pool is None:
            self._pool = _pool(self.chunker, self.settings, self.tokenizer)
        found = {}
        for row in new:
            assert self._pool is not None
            found[row.id] = self._found.get(row.id) or self._pool.submit(_find, row.response)
        self._found = found

    def spans_of(self, row_id: str, length: int) -> Spans:
        """The spans of a row's response of `length` tokens; none if the text could not be aligned.

        Raises:
            UserError: the chunker failed on it.
        """
        if self.settings.kind == "adjacent":
            return [(0, length)] if length else []
        if row_id in self.stored:
            spans = self.stored[row_id]
        elif row_id in self._found:
            try:
                spans = self._found[row_id].result()
            except BrokenProcessPool:
                raise UserError(ENDED) from None
            if row_id not in self._counted:
                self._counted.add(row_id)
                for name, number in _counted([spans]).items():
                    self.counts[name] += number
        else:
            raise KeyError(f"row {row_id}: its spans were neither stored nor looked for")
        if self.settings.kind == "random":
            return chunkers.random_chunks(len(spans or ()), length, row_id)
        return spans or []

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
