"""Loading the sets that a config's `data` names: generated, from a folder of JSONL, or from the hub."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from distill.base import hub
from distill.base.console import say
from distill.base.errors import UserError
from distill.config.data import DataConfig, SplitConfig
from distill.config.schema import Config
from distill.data.examples import Example, fingerprint, is_raw, read, read_texts
from distill.data.gpt2_tokens import token_counts


@dataclass(frozen=True)
class Dataset:
    """A named list of examples with the hash of its content.

    Attributes:
        name: its key in the config.
        title: its name in tables.
        examples: its examples.
        note: `N of M` if only N of its M rows are used, otherwise empty.
        topics: whether its topics are measured separately.
        counted: number of rows before `skip` and `limit`, if it differs from `papers`.
        papers: number of rows that the papers have, if it differs from `counted`.
    """

    name: str
    title: str
    examples: list[Example]
    note: str = ""
    topics: bool = True
    counted: int | None = None
    papers: int | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Hash of content and order."""
        return fingerprint(self.examples)


def train_and_valid(config: Config) -> tuple[Dataset, Dataset]:
    """The training set and the validation set."""
    data = config.data
    if data.generator is not None:
        from distill.data.micro import generate

        generated = generate(data.generator)
        return (
            _cut("train", data.train, generated["train"], "train"),
            _cut("valid", data.valid, generated["valid"], "valid"),
        )
    train, valid = _all(data, {"train": data.train, "valid": data.valid})
    return train, valid


def evaluation(config: Config) -> dict[str, Dataset]:
    """The evaluation sets that `eval.sets` selects, by name."""
    data, names = config.data, config.eval.sets or list(config.data.eval)
    if data.generator is not None:
        from distill.data.micro import generate

        generated = generate(data.generator)
        fallback = generated["dolly"] if config.debug.smoke else None  # debug=smoke replaces sets of any name
        examples_by_set = {n: generated.get(n, fallback) for n in names}
        unknown = [n for n, examples in examples_by_set.items() if examples is None]
        if unknown:
            raise UserError(f"data.eval: {', '.join(unknown)}: the generated sets are {', '.join(sorted(generated))}")
        return {n: _cut(n, data.eval[n], examples or [], n) for n, examples in examples_by_set.items()}
    return {d.name: d for d in _all(data, {n: data.eval[n] for n in names})}


def pretraining(data: DataConfig) -> list[str]:
    """The texts of the plain-text corpus `data.pretrain`; an empty list if there is none.

    Raises:
        UserError: the file does not exist, has no text, or a line of it has none.
    """
    corpus = data.corpus
    if corpus is None:
        return []
    if corpus.file is None:
        split = SplitConfig(hub=corpus.hub, hub_file=corpus.hub_file, revision=corpus.revision)
        path = _from_hub("pretrain", split)
    else:
        path = Path(data.root or ".") / Path(corpus.file).expanduser()
    if not path.is_file():
        raise UserError(f"data.pretrain: there is no file {path}")
    texts = read_texts(path, corpus.limit)
    if not texts:
        raise UserError(f"data.pretrain: {path} holds no text")
    return texts


def _all(data: DataConfig, splits: dict[str, SplitConfig]) -> list[Dataset]:
    loaded, problems = [], []
    for name, split in splits.items():
        try:
            loaded.append(_load(data, name, split))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(list(dict.fromkeys(problems)))
    return loaded


def _load(data: DataConfig, name: str, split: SplitConfig) -> Dataset:
    if data.root is not None:
        if split.file is None:
            raise UserError(f"{_key(name)}: no file given; set {_key(name)}.file")
        path, rows = Path(data.root) / split.file, slice(None)
        if not path.exists():
            raise UserError(_what_is_there(Path(data.root), path, name))
    else:
        path, rows = _from_hub(name, split), _rows(split.hub_rows)
    raw = is_raw(path)
    examples = read(path, rows, raw, {str(name): own for name, own in data.fields.items()})
    whole = choose(examples, split, raw)
    if not whole:
        raise UserError(f"{path}: {_key(name)}.min_gpt2_tokens={split.min_gpt2_tokens} keeps none of its rows")
    counted = len(whole)  # before skip and limit
    dataset = _cut(name, split, whole, str(path))
    if split.expected is not None and counted != split.expected:
        say(f"{dataset.title}: {counted} rows, where the papers have {split.expected}")
        return replace(dataset, counted=counted, papers=split.expected)
    return dataset


def choose(examples: list[Example], split: SplitConfig, raw: bool = False) -> list[Example]:
    """The examples that `first`, `min_gpt2_tokens` and `sample` of `split` select, in the order of `examples`.

    Of a published set, the first examples; of a raw set, those whose first reference has enough GPT-2 tokens. Of these,
    the `sample` examples with the smallest ids (hashes of their content), so that this choice does not depend on the
    order of the file.
    """
    if not raw:
        examples = examples[: split.first]
    elif split.min_gpt2_tokens is not None:
        counts = token_counts([e.response for e in examples])
        examples = [e for e, count in zip(examples, counts, strict=True) if count >= split.min_gpt2_tokens]
    if split.sample is not None:
        chosen = set(sorted(e.id for e in examples)[: split.sample])
        examples = [e for e in examples if e.id in chosen]
    return examples


def _cut(name: str, split: SplitConfig, whole: list[Example], source: str) -> Dataset:
    """The dataset of the rows that `skip` and `limit` leave, with a note of how many these are."""
    end = None if split.limit is None else split.skip + split.limit
    examples = whole[split.skip : end]
    if not examples:
        raise UserError(f"{source}: {_key(name)}.skip={split.skip} leaves nothing of {len(whole)} rows")
    note = f"{len(examples)} of {len(whole)}" if len(examples) < len(whole) else ""
    return Dataset(name, split.title or name, examples, note, split.topics)


def _what_is_there(root: Path, path: Path, name: str) -> str:
    """The message for a data file that is missing: what its folder holds, or how to name the folder."""
    if not root.is_dir():
        return f"data.root={root}: no such folder; set data.root=DIR (or DISTILL_DATA) to the one that holds the files"
    files = sorted(file.name for file in root.iterdir() if not file.name.startswith("."))
    listed = ", ".join(files[:8]) + (" and more" if len(files) > 8 else "") if files else "nothing"
    return (
        f"{path}: no such data file; data.root={root} holds {listed}; name the file as {_key(name)}.file=NAME, or the"
        " folder as data.root=DIR"
    )


def _key(name: str) -> str:
    """The config key of a set."""
    return f"data.{name}" if name in ("train", "valid", "pretrain") else f"data.eval.{name}"


def _rows(text: str) -> slice:
    start, stop = text.split(":")
    return slice(int(start) if start else None, int(stop) if stop else None)


def _from_hub(name: str, split: SplitConfig) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if split.hub is None or split.hub_file is None:
        raise UserError(f"{_key(name)} names no hub data set; set its hub and hub_file, or data.root=DIR and its file")
    try:
        return Path(hf_hub_download(split.hub, split.hub_file, repo_type="dataset", revision=split.revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(hub.problems(split.hub, split.hub_file, "dataset", error)) from None
