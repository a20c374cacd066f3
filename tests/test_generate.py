"""Texts that depend on model, prompt and seed alone."""

from __future__ import annotations

import pytest
import torch
from conftest import VOCAB, tiny_gpt2, tiny_llama, tiny_opt

from distill.config import load
from distill.data.encode import Encoded
from distill.evaluation.generate import RowStream, generate

DECODE = load(["model=micro"]).eval.model_copy(update={"max_new_tokens": 12})
PROMPTS = [Encoded(f"p{n}", [1 + (7 * i + n) % (VOCAB - 1) for i in range(n)], []) for n in (1, 3, 9, 4, 6, 2, 5)]


def write(model, prompts=PROMPTS, seeds=(10, 20), eos=0, **decode):
    return generate(model, prompts, "set", list(seeds), DECODE.model_copy(update=decode), eos, 0)


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama, tiny_opt])
def test_batch_size_order_and_company_do_not_matter(make):
    model = make()
    whole = write(model)
    assert [(g.id, g.seed) for g in whole] == [(p.id, s) for p in PROMPTS for s in (10, 20)]
    one_by_one = write(model, batch_tokens=1)
    shuffled = {(g.id, g.seed): g for g in write(model, PROMPTS[::-1])}
    alone = {(g.id, g.seed): g for s in (10, 20) for p in PROMPTS for g in write(model, [p], [s])}
    for ours, single in zip(whole, one_by_one, strict=True):
        assert ours == single == shuffled[ours.id, ours.seed] == alone[ours.id, ours.seed]
    assert len({tuple(g.tokens) for g in whole}) > len(PROMPTS)  # seeds differ


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama, tiny_opt])
def test_greedy_equals_transformers(make):
    """The cache, positions and left padding against the library's own loop."""
    model = make()
    for got, prompt in zip(write(model, seeds=[1], do_sample=False, eos=-1), PROMPTS, strict=True):
        ids = torch.tensor([prompt.prompt])
        expected = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert got.tokens == expected[0, len(prompt.prompt) :].tolist() and not got.ended


def test_draws_follow_the_models_distribution():
    """First tokens over many seeds against the model's probabilities."""
    model, count = tiny_gpt2(), 3000
    drawn = [g.tokens[0] for g in write(model, PROMPTS[2:3], range(count), eos=-1, max_new_tokens=1)]
    probs = model(torch.tensor([PROMPTS[2].prompt])).logits[0, -1].softmax(-1)
    frequency = torch.bincount(torch.tensor(drawn), minlength=VOCAB) / count
    assert (frequency - probs).abs().max() < 4 * (0.25 / count) ** 0.5


def test_temperature_top_k_and_top_p():
    model = tiny_gpt2()
    probs = model(torch.tensor([PROMPTS[2].prompt])).logits[0, -1].softmax(-1)
    best = set(probs.topk(3).indices.tolist())
    some = {"prompts": PROMPTS[2:3], "seeds": range(200), "eos": -1, "max_new_tokens": 1}
    assert {g.tokens[0] for g in write(model, top_k=3, **some)} == best
    assert {g.tokens[0] for g in write(model, top_p=1e-6, **some)} == {int(probs.argmax())}
    assert {g.tokens[0] for g in write(model, temperature=1e-4, **some)} == {int(probs.argmax())}


def test_eos_ends_a_row_and_is_not_part_of_it():
    model = tiny_gpt2()
    free = write(model, eos=-1)
    eos = free[0].tokens[2]
    for ended, whole in zip(write(model, eos=eos), free, strict=True):
        expected = whole.tokens[: whole.tokens.index(eos)] if eos in whole.tokens else whole.tokens
        assert ended.tokens == expected and ended.ended == (eos in whole.tokens)


def test_an_answer_that_starts_with_eos_is_empty():
    model = tiny_gpt2()
    first = write(model, PROMPTS[:1], [10], eos=-1)[0].tokens[0]
    (only,) = write(model, PROMPTS[:1], [10], eos=first)
    assert only.tokens == [] and only.ended


def test_streams_are_their_own():
    a, b = RowStream(10, "set", "x"), RowStream(10, "set", "x")
    assert (a.exponentials(5) == b.exponentials(5)).all()
    assert not (a.exponentials(5) == RowStream(10, "set", "x").exponentials(5)).all()  # it goes on
    for other in (RowStream(20, "set", "x"), RowStream(10, "other", "x"), RowStream(10, "set", "y")):
        assert not (RowStream(10, "set", "x").exponentials(5) == other.exponentials(5)).any()
