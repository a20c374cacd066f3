"""What the cases of the catalogue are made of: small checkpoints, data, and the commands, run in this process."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra

from distill.base.errors import FAILED, command
from distill.pipeline import keys

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, which reads it once
WORDS = ("red", "green", "old", "new", "house", "river", "stone", "bird", "the", "a", "near", "under")
# A pair of supplied checkpoints on a few rows: every stage runs, in a second or two
SMALL = (
    "train.precision=fp32", "train.teacher.epochs=1", "train.start.epochs=0", "train.student.epochs=1",
    "train.teacher.global_batch_size=8", "train.student.global_batch_size=8", "train.micro_batch_size=8",
    "train.max_length=96", "train.max_prompt_length=80", "eval.max_new_tokens=6", "seed=[10]", "data.template=short",
    "eval.bertscore.encoder=null",
)  # fmt: skip


@dataclass
class Outcome:
    """What a command printed, on both streams, and its exit code; 1 with a traceback."""

    code: int
    text: str

    @property
    def errors(self) -> list[str]:
        """The lines that begin with `error:`."""
        return [line for line in re.split(r"[\r\n]+", self.text) if line.startswith("error: ")]


@dataclass(frozen=True)
class Case:
    """One trial.

    Attributes:
        kind: the letter of its kind of fault.
        title: what is tried.
        act: makes the situation in a workshop, and returns what the command did.
        code: the exit code that is right.
        says: parts of the lines that must be printed.
    """

    kind: str
    title: str
    act: Callable[[Workshop], Outcome]
    code: int
    says: tuple[str, ...]


CASES: list[Case] = []


def case(kind: str, title: str, *says: str, code: int = 2) -> Callable[[Callable[[Workshop], Outcome]], Any]:
    """Add a function to the catalogue."""

    def add(act: Callable[[Workshop], Outcome]) -> Callable[[Workshop], Outcome]:
        CASES.append(Case(kind, title, act, code, says))
        return act

    return add


@dataclass
class Workshop:
    """An empty folder and the commands."""

    folder: Path
    words: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.words = (f"paths.store={self.folder}/store", f"paths.results={self.folder}/results")

    def command(self, module: str, *words: str) -> Outcome:
        """Run `python -m distill.MODULE WORDS` in this process."""
        return _command(module, words)

    def run(self, *words: str) -> Outcome:
        """`distill.run` in this workshop's folders."""
        return self.command("run", *words, *self.words)

    def pair(self, *words: str, teacher: Path | str | None = None, student: Path | str | None = None) -> Outcome:
        """A run of a pair of supplied checkpoints on small data; without words it is forward KL on fixed data."""
        return self.run(*self.of_pair(teacher, student), *(words or ("loss=fkl",)))

    def of_pair(self, teacher: Path | str | None = None, student: Path | str | None = None) -> tuple[str, ...]:
        """The words that choose a pair of supplied checkpoints and small data. An adapter's base is T, or S."""
        sound = {"teacher": self.checkpoint("T"), "student": self.checkpoint("S", seed=2)}
        words = []
        for role, given in (("teacher", teacher), ("student", student)):
            folder = Path(given or sound[role])
            base = sound[role] if (folder / "adapter_config.json").is_file() else folder
            words.append(f"model.{role}.id='{base}'")
            if role == "teacher" or base != folder:
                words.append(f"model.{role}.path='{given or sound[role]}'")
        return ("model=gpt2", "data=jsonl", f"data.root={self.data()}", *SMALL, *words)

    def data(self, **files: Any) -> Path:
        """A folder of data with `train`, `valid` and `test`; a file may be replaced by text, bytes or records."""
        folder = self.folder / "data"
        folder.mkdir(exist_ok=True)
        for name in ("train", "valid", "test"):
            path = folder / f"{name}.jsonl"
            if name in files or not path.exists():
                write(path, files.get(name, rows(16 if name == "train" else 4)))
        return folder

    def checkpoint(self, name: str = "T", **settings: Any) -> Path:
        """A copy of a sound small checkpoint with a tokenizer."""
        target = self.folder / name
        if not target.exists():
            shutil.copytree(_sound(tuple(sorted(settings.items()))), target)
        return target

    def with_weights(self, name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
        """A checkpoint whose stored tensors were changed."""
        from safetensors.torch import load_file, save_file

        path = self.checkpoint(name) / "model.safetensors"
        save_file({k: v.contiguous() for k, v in change(load_file(path)).items()}, path, metadata={"format": "pt"})
        return path.parent

    def with_json(self, name: str, file: str, change: Mapping[str, Any]) -> Path:
        """A checkpoint with changed entries of a JSON file, which is made if it is missing; None removes an entry."""
        path = self.checkpoint(name) / file
        content = json.loads(path.read_text()) if path.is_file() else {}
        content = {key: value for key, value in {**content, **change}.items() if value is not None}
        path.write_text(json.dumps(content))
        return path.parent


def rows(count: int) -> list[dict[str, Any]]:
    """Rows of small data."""
    word = lambda i: WORDS[i % len(WORDS)]  # noqa: E731
    return [
        {"instruction": f"{word(i)} {word(3 * i + 1)}", "output": f"{word(i + 1)} {word(5 * i)}"} for i in range(count)
    ]


def write(path: Path, content: Any) -> Path:
    """Write text, bytes, or records as JSONL."""
    if isinstance(content, list):
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """These variables are set for the time being."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@cache
def _sound(settings: tuple[tuple[str, Any], ...]) -> Path:
    """The folder of a sound checkpoint with these settings, made once."""
    import tempfile

    from distill.config.model import WeightsConfig
    from distill.models.create import random_model
    from distill.models.tokenizers import train_tokenizer

    given = dict(settings)
    folder = Path(tempfile.mkdtemp(prefix="sound-"))
    tokenizer = train_tokenizer(given.get("convention", "gpt2"), [" ".join(WORDS)] * 20, 400)
    weights = WeightsConfig(hidden=given.get("hidden", 16), layers=2, heads=2)
    model = random_model(given.get("architecture", "gpt2"), weights, tokenizer, given.get("seed", 1))
    if added := given.get("added", 0):
        tokenizer.add_tokens([f"<extra{i}>" for i in range(added)])
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if padded := given.get("padded", 0):
        model.resize_token_embeddings(len(tokenizer) + padded, mean_resizing=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _command(module: str, words: Sequence[str]) -> Outcome:
    output = io.StringIO()
    argv, main = sys.argv[:], importlib.import_module(f"distill.{module}").main
    FAILED.clear()
    keys._HASHES.clear()  # a command of its own process reads its folders again
    if absl := sys.modules.get("absl.logging"):  # closes its stream when Hydra sets up logging, that of pytest too
        absl.get_absl_handler().python_handler.setStream(io.StringIO())
    GlobalHydra.instance().clear()
    sys.argv[1:] = words
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            code = command(main)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except Exception:
            traceback.print_exc()
            code = 1
        finally:
            sys.argv[:] = argv
    return Outcome(code, output.getvalue())
