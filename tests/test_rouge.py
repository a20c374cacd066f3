"""ROUGE-L equals the rouge-score package's, to the last bit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from distill.evaluation import rouge, rouge_l
from distill.evaluation.rouge import TOKENIZERS, can_score

WORDS = st.sampled_from(
    "running runs ran the The a cats cat's 42 3.5 naïve café 東京 🙂 \n - _x_ don't I.B.M. ".split(" ")
)
TEXT = st.one_of(st.lists(WORDS, max_size=12).map(" ".join), st.text(max_size=40))
SCORER = RougeScorer(["rougeL"], use_stemmer=True)


@settings(max_examples=400, deadline=None)
@given(TEXT, st.lists(TEXT, min_size=1, max_size=3))
def test_equal_to_the_package(prediction, references):
    expected = 100 * max(SCORER.score(r, prediction)["rougeL"].fmeasure for r in references)
    assert rouge_l([prediction], [references]) == [expected]


def test_known_value():
    # "the cat sat" against "the cats sat down": stems agree on three words of three and of four.
    assert rouge_l(["the cat sat"], [["the cats sat down"]])[0] == pytest.approx(100 * 2 * 1.0 * 0.75 / 1.75)
    assert rouge_l(["", "a"], [["a"], ["b", "a"]]) == [0.0, 100.0]


@pytest.mark.parametrize("references", [[], ["a plain string"], [[]]])
def test_refuses_what_it_cannot_score(references):
    with pytest.raises(ValueError):
        rouge_l(["a"], references)


@pytest.mark.parametrize("processes", [2, 3, None])
def test_several_processes_score_as_one(processes, monkeypatch):
    """Uneven shares, and fewer texts than processes; of themselves where texts are many."""
    started = []
    pool = rouge.ProcessPoolExecutor
    monkeypatch.setattr(rouge, "ProcessPoolExecutor", lambda count, *more: started.append(count) or pool(count, *more))
    monkeypatch.setattr(rouge, "EACH", 3)
    monkeypatch.setattr(rouge.os, "cpu_count", lambda: 2)
    predictions = [f"the cats sat {n} times" for n in range(7)]
    references = [["the cat sat three times", f"{n}"] for n in range(7)]
    assert rouge_l(predictions, references, processes) == rouge_l(predictions, references, 1)
    assert started == [processes or 2]
    assert rouge_l(predictions[:1], references[:1], processes) == rouge_l(predictions[:1], references[:1], 1)
    assert rouge_l([], [], processes) == []


@pytest.mark.parametrize(
    ("tokenizer", "prediction", "reference", "expected"),
    [
        ("english", "答案", "答案", 0.0),
        ("characters", "答案是二", "答案是三", 75.0),
        ("characters", "a b", "AB", 100.0),
        ("words", "красный дом", "Красный старый дом", 80.0),
        ("words", "houses", "house", 0.0),  # no stemming
        ("words", "हिन्दी भाषा", "हिन्दी", 200 / 3),  # combining marks belong to their words
        ("english", "houses", "house", 100.0),
    ],
)
def test_tokenizers_for_other_scripts(tokenizer, prediction, reference, expected):
    (score,) = rouge_l([prediction], [[reference]], tokenizer=tokenizer)
    assert score == pytest.approx(expected)
    assert can_score([[reference]], tokenizer) == (expected > 0 or tokenizer == "words")


TEXTS = [
    "",
    " \n",
    "?!",
    "a",
    "7",
    "_",
    "\u4e2d\u6587",
    "\u0915\u093f",
    "\u00e9",
    "\u0301",
    "\u3000",
    "\u212a",
    "--x--",
]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_whether_a_text_has_a_token_is_what_its_tokenizer_says(tokenizer):
    has_token = [can_score([[text]], tokenizer) for text in TEXTS]
    assert has_token == [bool(tuple(TOKENIZERS[tokenizer](text))) for text in TEXTS]
    assert True in has_token and False in has_token
