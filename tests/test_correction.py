"""SCRG: which token the teacher corrects, what the student makes of it, and that batches and order change nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import VOCAB, tiny_gpt2, tiny_llama, tiny_opt
from scipy.stats import chisquare
from test_samplers import EOS, ROWS, student_writer

from distill.base.errors import UserError
from distill.config import load
from distill.data.encode import FILLER, IGNORE, STUDENT_TEXT, Collator
from distill.generation import known
from distill.losses import Head
from distill.samplers import Step
from distill.samplers import build as build_sampler
from distill.teacher.signal import LiveTeacher
from distill.training import scrg
from distill.training.correction import Correction, Error, errors

HEADS = (Head(torch.eye(4)), Head(torch.eye(4)))  # hidden states are the logits


def logits(rows):
    """Log-probabilities of rows of weights."""
    weights = torch.tensor(rows)
    return (weights / weights.sum(-1, keepdim=True)).log()


def found(q, p, tokens, lengths, greedy=True, names=None):
    return errors((logits(q), logits(p)), HEADS, torch.tensor(tokens), lengths, names or list("abcdef"), greedy)


# Student and teacher by hand: weights of four tokens
MILD = ([4.0, 3, 2, 1], [3.0, 4, 2, 1])  # the teacher's likeliest is 1, the student's 0
STRONG = ([8.0, 1, 1, 1], [1.0, 1, 8, 1])  # the teacher's is 2
EQUAL = ([5.0, 1, 1, 1], [5.0, 1, 1, 1])


@pytest.mark.parametrize(
    ("places", "tokens", "expected"),
    [
        ([MILD, STRONG, EQUAL], [0, 0, 0], (1, 2)),  # the largest KL
        ([STRONG, MILD, EQUAL], [0, 0, 0], (0, 2)),  # the first token
        ([EQUAL, MILD, STRONG], [0, 0, 0], (2, 2)),  # the last
        ([MILD, STRONG, EQUAL], [0, 2, 0], (0, 1)),  # where the text has the teacher's token, KL does not count
        ([EQUAL, MILD], [0, 1], None),  # both agree everywhere
        ([EQUAL], [3], (0, 0)),  # a token that both find unlikely, with KL 0
        ([MILD], [0], (0, 1)),
    ],
)
def test_the_right_place_is_found(places, tokens, expected):
    (error,) = found([q for q, _ in places], [p for _, p in places], tokens, [len(tokens)])
    assert (error and (error.place, error.token)) == expected
    if error is not None:
        q, p = (np.array(x) / np.sum(x) for x in places[error.place])
        assert error.kl == pytest.approx((q * np.log(q / p)).sum(), abs=1e-6)


def test_several_texts_at_once():
    """Each for itself, an empty one among them."""
    q, p = zip(MILD, STRONG, EQUAL, STRONG, EQUAL, MILD, strict=True)
    errors_found = found(q, p, [0, 0, 0, 2, 0, 0], [2, 1, 0, 3])
    assert [e and (e.place, e.token) for e in errors_found] == [(1, 2), None, None, (2, 1)]


def test_a_wider_vocabulary_is_cut():
    heads = (Head(torch.eye(4)), Head(torch.cat((torch.eye(4), torch.ones(2, 4) * 9))))
    (error,) = errors((logits([MILD[0]]), logits([MILD[1]])), heads, torch.tensor([0]), [1], ["a"], True)
    assert error is not None and error.token == 1


def test_draws_have_the_distribution_of_drawing_everywhere():
    """Place and token together: at the place of largest KL unless the draw there agrees, then at the next."""
    q, p = [MILD[0], STRONG[0]], [MILD[1], STRONG[1]]
    strong, mild = (np.array(x[1]) / np.sum(x[1]) for x in (STRONG, MILD))
    expected = {(1, t): strong[t] for t in (1, 2, 3)}
    expected |= {(0, t): strong[0] * mild[t] for t in (1, 2, 3)}
    expected[None] = strong[0] * mild[0]
    count = 6000
    names = [f"{n}" for n in range(count)]
    results = found(q * count, p * count, [0, 0] * count, [2] * count, False, names)
    keys = [error and (error.place, error.token) for error in results]
    observed = [keys.count(key) for key in expected]
    assert sum(observed) == count
    assert chisquare(observed, [count * x for x in expected.values()]).pvalue > 1e-3
    assert found(q, p, [0, 0], [2], False, names[7:8]) == results[7:8]  # whatever stands beside it


def test_corrected_texts_are_the_old_ones_up_to_the_error():
    writer = student_writer(teacher=tiny_gpt2(hidden=24, seed=9), tokens=12)
    before = writer.write(ROWS, "s", 1)
    after = writer.correct(ROWS, before, "s", [1], greedy=False)
    corrections = writer.taken_corrections()
    assert len(corrections) == len(ROWS) and any(any(of_text) for of_text in corrections)
    for old, new, (correction,) in zip(before, after, corrections, strict=True):
        if correction is None:
            assert new is old
            continue
        place = round(correction.place * len(old.row.response))
        assert new.row.response[:place] == old.row.response[:place] and new.row.prompt == old.row.prompt
        assert new.row.response[place] != old.row.response[place] and new.row.id == f"{old.row.id} correction 1"
        assert len(new.row.response) <= 12 + new.ended and new.ended == (new.row.response[-1] == EOS)
        assert new.row.extras == {STUDENT_TEXT: True} and new.origin == "student"
    assert writer.taken() == after  # what is logged and counted is what is trained on


def test_a_text_depends_on_seed_step_and_example_alone():
    def write(rows, **settings):
        writer = student_writer(teacher=tiny_gpt2(hidden=24, seed=9), tokens=12)
        writer.decode = writer.decode.model_copy(update=settings)
        sampler = build_sampler("on_policy", scrg={"corrections": 2})
        return {s.row.id: s for s in sampler.next(rows, Step(4, 9, 1, 12), writer)}

    whole = write(ROWS)
    assert write(ROWS[::-1]) == whole == write(ROWS, batch_tokens=1)
    assert {**write(ROWS[:5]), **write(ROWS[5:])} == whole


@pytest.mark.parametrize("what", ["teacher", "correction"])
@pytest.mark.parametrize("other", ["seed", "step", "example", "number"])
def test_another_seed_step_example_or_correction_draws_anew(monkeypatch, what, other):
    """The teacher's tokens, and what the student writes behind them, have streams of their own."""
    written = student_writer(teacher=tiny_gpt2(hidden=24, seed=9), tokens=12).write(ROWS, "s", 1)
    found_errors = []

    def watched(*of_texts):
        found_errors.append(errors(*of_texts))
        return found_errors[-1] if what == "teacher" else [Error(0, 9, 1.0)] * len(found_errors[-1])

    monkeypatch.setattr(scrg, "errors", watched)

    def draws(changed):
        writer = student_writer(teacher=tiny_gpt2(hidden=24, seed=9), tokens=12)
        writer.seed += changed == "seed"
        rows = [replace(row, id=f"{row.id}x" if changed == "example" else row.id) for row in ROWS]
        step, number = "t" if changed == "step" else "s", 2 if changed == "number" else 1
        samples = writer.correct(rows, written, step, [number], greedy=False)
        return found_errors[-1] if what == "teacher" else [sample.row.response for sample in samples]

    assert draws("nothing") == draws("nothing") != draws(other)


@pytest.mark.parametrize("quirks", [{"late": True}, {"erased": EOS}, {"late": True, "erased": EOS}])
def test_quirks_of_published_code_change_no_correction(quirks):
    """Labels one place late and erased EOS are of the rows that are trained on; what is corrected is the text."""

    def write(**more):
        writer = student_writer(teacher=tiny_gpt2(hidden=24, seed=9), tokens=12, **more)
        samples = build_sampler("on_policy", scrg={"corrections": 2}).next(ROWS, Step(4, 9, 1, 12), writer)
        return samples, writer.taken_corrections()

    (plain, corrections), (quirky, same) = write(), write(**quirks)
    assert corrections == same and any(any(of_text) for of_text in corrections)
    for a, b in zip(plain, quirky, strict=True):
        assert a.ended == b.ended
        assert [t for t in a.row.response if t != EOS] == [t for t in b.row.response if t != EOS]


def test_texts_are_read_in_parts(monkeypatch):
    def write():
        writer = student_writer(teacher=tiny_gpt2(hidden=24, seed=9), tokens=12)
        return build_sampler("on_policy", scrg={"corrections": 1}).next(ROWS, Step(4, 9, 1, 12), writer)

    whole = write()
    monkeypatch.setattr(known, "ROWS", 3)
    assert write() == whole


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama, tiny_opt])
def test_the_teacher_has_read_corrected_texts_when_they_are_trained_on(make):
    """Its hidden states of the corrected texts, and of those that it left, are those of a pass over the new text."""
    teacher = make(seed=9)
    for greedy, numbers in ((False, [1]), (True, [1]), (False, [1, 2, 3])):
        writer = student_writer(student=make(), teacher=teacher, tokens=12)
        samples = writer.correct(ROWS, writer.write(ROWS, "s", 1), "s", numbers, greedy)
        batch = Collator(EOS)([sample.row for sample in samples])
        valid = batch["labels"] != IGNORE
        at = batch["input_ids"], batch["attention_mask"], valid, batch["example_ids"]
        expected = LiveTeacher(teacher)(*at)
        writer.teacher.live = None  # it does not run again
        torch.testing.assert_close(writer.teacher(*at), expected, atol=1e-5, rtol=1e-5)


def test_each_model_reads_a_token_once(monkeypatch):
    """A whole text when it is new, then what a correction changed; the student only what will be corrected again."""
    tokens = {"student": 0, "teacher": 0}

    def counted(model, texts, pad, before=None):
        tokens["student" if model is writer.student else "teacher"] += sum(map(len, texts))
        return known.read(model, texts, pad, before)

    monkeypatch.setattr(scrg, "read", counted)
    read = {}
    for count in (1, 2, 3):
        writer = student_writer(teacher=tiny_gpt2(hidden=24, seed=9), tokens=12)
        tokens.update(student=0, teacher=0)
        build_sampler("on_policy", scrg={"corrections": count}).next(ROWS, Step(4, 9, 1, 12), writer)
        assert [len(of_text) for of_text in writer.taken_corrections()] == [count] * len(ROWS)
        read[count] = dict(tokens)
    written = student_writer(tokens=12).write(ROWS, "step 4", 4)
    whole = sum(len(s.row.prompt) + len(s.row.response) - 1 for s in written)
    assert read[1]["student"] == whole < read[1]["teacher"] < 2 * whole
    assert [read[n + 1]["student"] for n in (1, 2)] == [read[n]["teacher"] for n in (1, 2)]


def test_what_the_teacher_read_is_not_used_where_the_rows_are_other_ones():
    writer = student_writer(teacher=tiny_gpt2(hidden=24, seed=9), tokens=12, late=True)
    writer.correct(ROWS, writer.write(ROWS, "s", 1), "s", [1], greedy=False)
    assert not writer.teacher.computed


def test_two_corrections_are_one_and_another_one():
    def sampler(count):
        return build_sampler("on_policy", scrg={"corrections": count})

    def writer():
        return student_writer(teacher=tiny_gpt2(hidden=24, seed=9), tokens=12)

    step, one = Step(4, 9, 1, 12), writer()
    once = sampler(1).next(ROWS, step, one)
    again = one.correct(ROWS, once, "step 4", [2], greedy=False)
    assert sampler(2).next(ROWS, step, writer()) == again != once
    assert sampler(0).next(ROWS, step, writer()) == writer().write(ROWS, "step 4", 4)


@pytest.mark.parametrize(
    ("response", "error", "expected"),
    [
        ([5, 6, 7, EOS], Error(1, EOS, 1.0), ([5, EOS], True)),  # the teacher ends the text
        ([5, 6, 7, EOS], Error(0, EOS, 1.0), ([EOS], True)),
        ([5, 6, EOS], Error(2, 9, 1.0), ([5, 6, 9], None)),  # the student's EOS is corrected away
        ([5, 6, 7], Error(2, 9, 1.0), ([5, 6, 9], False)),  # no room is left
        ([5, 6, 7], Error(1, 9, 1.0), ([5, 9], None)),
        ([5, 6, 7], None, ([5, 6, 7], False)),
    ],
)
def test_eos_and_room(monkeypatch, response, error, expected):
    """Texts of at most three tokens; with None the student writes on, within them."""
    monkeypatch.setattr(scrg, "errors", lambda *_: [error])
    writer = student_writer(tokens=3)
    (sample,) = writer.write(ROWS[:1], "s", 1)
    given = replace(sample, row=replace(sample.row, response=response), ended=response[-1] == EOS)
    rows = [ROWS[0], FILLER]
    (new, filler) = writer.correct(rows, [given, replace(sample, row=FILLER)], "s", [1], greedy=True)
    tokens, ended = expected
    assert filler.row == FILLER and new.row.response[: len(tokens)] == tokens
    assert ended is None or (new.row.response, new.ended) == (tokens, ended)
    assert len(new.row.response) - new.ended <= 3
    if error is not None and error.token != EOS and len(tokens) < 3:
        assert len(new.row.response) > len(tokens)  # it was written on


def test_what_a_correction_changed():
    assert Correction.of(Error(1, 9, 0.5), [5, 6, 7, 8], [5, 9, 7]) == Correction(0.25, 0.5, pytest.approx(1 / 3))
    assert Correction.of(Error(0, 9, 0.5), [5], [9, 4]).changed == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sampler=on_policy", "sampler.scrg.corrections=-1"], "scrg.corrections=-1 must be 0 (off) or more"),
        (["sampler=mixed", "sampler.scrg.teacher=best"], "teacher=best is none of sample, greedy"),
        (["sampler=fixed", "sampler.scrg.corrections=1"], "sampler.scrg.corrections=1: no such key"),
    ],
)
def test_bad_settings(words, message):
    with pytest.raises(UserError) as error:
        load(["model=micro", "loss=fkl", *words])
    assert any(message in problem for problem in error.value.problems)


def test_the_vocabulary_of_these_tests_has_the_token():
    assert VOCAB > 9
