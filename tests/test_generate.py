"""Responses that depend on model, prefix, stream and room alone."""

from __future__ import annotations

import hashlib
import itertools
import random
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import VOCAB, tiny_gpt2, tiny_llama, tiny_opt

from distill.base.errors import UserError
from distill.config import load
from distill.config.template import named
from distill.data.encode import Encoded, Encoder
from distill.data.examples import make_examples
from distill.generation import known
from distill.generation.cache import SPARE, RowCache
from distill.generation.decode import Chooser, NgramBan, RowStream
from distill.generation.engine import generate
from distill.generation.requests import Decoding, Request, groups, stream_name
from distill.generation.vllm import VllmEngine
from distill.models.load import Weights, last_hidden
from distill.models.tokenizers import train_tokenizer

DECODE = load(["model=micro"]).eval.model_copy(update={"max_new_tokens": 12})
PROMPTS = [Encoded(f"p{n}", [1 + (7 * i + n) % (VOCAB - 1) for i in range(n)], []) for n in (1, 3, 9, 4, 6, 2, 5)]


def requests_of(prompts=PROMPTS, seeds=(10, 20), room=12):
    """One for each prompt and seed, as an evaluation has them."""
    return [Request(p.id, p.prompt, stream_name(s, "set", p.id), room) for p in prompts for s in seeds]


def answer(model, requests, eos=0, **settings):
    return generate(model, requests, Decoding(DECODE.model_copy(update=settings), eos, 0))


def write(model, prompts=PROMPTS, seeds=(10, 20), eos=0, max_new_tokens=12, **settings):
    return answer(model, requests_of(prompts, seeds, max_new_tokens), eos, **settings)


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama, tiny_opt])
def test_batch_size_order_and_company_do_not_matter(make):
    model = make()
    whole, requests = write(model), requests_of()
    assert write(model, batch_tokens=1) == whole
    assert answer(model, requests[::-1]) == whole[::-1]
    assert [answer(model, [request])[0] for request in requests] == whole
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


@pytest.mark.parametrize("warp", [{}, {"top_k": 1}, {"top_p": 0.9}])
def test_a_token_that_cannot_win_never_does(warp):
    """Of 50,257 tokens one stands 200 above all: numpy's exponentials hold a 0 in one of two hundred such draws."""
    choose, stream = Chooser(DECODE.model_copy(update=warp)), RowStream("1/set/x")
    logits = torch.zeros(1, 50257)
    logits[0, 7] = 200.0
    assert {int(choose(logits.clone(), [stream], [None])[0]) for _ in range(3000)} == {7}


def test_a_zero_among_the_exponentials_is_a_small_one():
    class Zero:
        def fill(self, numbers):
            numbers.fill_(1.0)
            numbers[3] = 0.0

    choose = Chooser(DECODE)
    near, far = torch.zeros(1, 9), torch.zeros(1, 9)
    far[0, 5] = 20.0  # more than -log(2**-25) = 17.3
    assert int(choose(near, [Zero()], [None])[0]) == 3 and int(choose(far, [Zero()], [None])[0]) == 5


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


def test_a_streams_numbers_stay_those_of_kept_texts():
    assert stream_name(10, "dolly", "ab12") == "10/dolly/ab12"
    bits = np.random.Philox(key=int.from_bytes(hashlib.sha256(b"10/dolly/ab12").digest()[:16], "little"))
    numbers = torch.empty(5)
    RowStream("10/dolly/ab12").fill(numbers)
    assert numbers.tolist() == np.random.Generator(bits).standard_exponential(5, np.float32).tolist()


def test_streams_are_their_own():
    def drawn(seed=10, set_name="set", example="x", times=1):
        stream, numbers = RowStream(stream_name(seed, set_name, example)), torch.empty(5)
        for _ in range(times):
            stream.fill(numbers)
        return numbers

    assert drawn().equal(drawn()) and (drawn() > 0).all()
    for other in (drawn(times=2), drawn(seed=20), drawn(set_name="other"), drawn(example="y")):
        assert not drawn().eq(other).any()


class Spy:
    """Notes what a model is given while it generates.

    Attributes:
        prefilled: rows of each forward pass that read prefixes.
        decoded: rows of each forward pass that read one token a row.
        columns: of the KV cache, allocated ones included, after each of the latter.
        appended: for each time that prefixes were added to others, whether their rows were appended.
    """

    def __init__(self, monkeypatch, model):
        self.prefilled, self.decoded, self.columns, self.appended = [], [], [], []
        forward, join = type(model).forward, RowCache.join

        def watched(model, *args, input_ids, past_key_values, **more):
            output = forward(model, *args, input_ids=input_ids, past_key_values=past_key_values, **more)
            if isinstance(past_key_values, RowCache):
                layer = past_key_values.layers[0]
                self.columns.append(sum(x[:, 0, :, 0].numel() for x in (layer._buffers[0], layer.prefix_keys)))
            rows = self.decoded if isinstance(past_key_values, RowCache) else self.prefilled
            rows.append(len(input_ids))
            return output

        def joins(cache, prefixes, mask, rows, *more):
            self.appended.append(rows is None)
            join(cache, prefixes, mask, rows, *more)

        monkeypatch.setattr(type(model), "forward", watched)
        monkeypatch.setattr(RowCache, "join", joins)


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama, tiny_opt])
def test_rows_leave_and_prompts_join_within_the_bound(make, monkeypatch):
    """Few rows fit: every text is that of a prompt alone, and no more is ever held than `batch_tokens`."""
    model = make()
    spy = Spy(monkeypatch, model)
    prompts = [Encoded(f"q{n}", [1 + (5 * i + n) % (VOCAB - 1) for i in range(1 + n % 9)], []) for n in range(30)]
    eos = write(model, PROMPTS[:1], [10], eos=-1)[0].tokens[3]  # an id that is drawn now and then
    bound = 6 * (9 + 12 + SPARE)
    together = write(model, prompts, eos=eos, batch_tokens=bound)
    assert max(spy.columns) <= bound and set(spy.appended) == {True, False}
    assert {g.ended for g in together} == {True, False}
    for got, (prompt, seed) in zip(together, [(p, s) for p in prompts for s in (10, 20)], strict=True):
        assert [got] == write(model, [prompt], [seed], eos=eos)


@pytest.mark.parametrize("case", range(12))
def test_no_course_of_joining_and_leaving_changes_a_text(case):
    """Prompts of any lengths in any order, one to five seeds, bounds of one to sixteen rows, ends early and late."""
    draw = random.Random(case)
    model = (tiny_gpt2, tiny_llama, tiny_opt)[case % 3]()
    prompts = [
        Encoded(f"r{n}", [draw.randrange(1, VOCAB) for _ in range(draw.choice([1, 2, 5, 9, 30]))], [])
        for n in range(draw.choice([1, 4, 17]))
    ]
    seeds = list(range(draw.choice([1, 2, 5])))
    eos = draw.choice(write(model, prompts[:1], [7], eos=-1)[0].tokens[1:])
    for rows in (1, 3, 16):
        batch = write(model, prompts, seeds, eos=eos, batch_tokens=rows * (draw.choice([0, 9, 30]) + 12 + SPARE))
        for got, (prompt, seed) in zip(batch, [(p, s) for p in prompts for s in seeds], strict=True):
            assert [got] == write(model, [prompt], [seed], eos=eos), (rows, prompt.id, seed)


@pytest.mark.parametrize("case", range(12))
def test_requests_of_every_kind_in_one_batch_are_answered_as_alone(case, monkeypatch):
    """Numbers of rows a prefix, rooms and beginnings differ; some prefixes are equal; bounds from none to all rows."""
    draw = random.Random(case)
    model = (tiny_gpt2, tiny_llama, tiny_opt)[case % 3]()
    requests = []
    for n in range(draw.choice([3, 12])):
        prompt = [draw.randrange(1, VOCAB) for _ in range(draw.choice([1, 2, 5, 9, 30]))]
        beginnings = [[], [draw.randrange(1, VOCAB) for _ in range(draw.choice([1, 4, 20]))]]
        requests += [
            Request(f"r{n}", prompt, f"{n}/{row}", draw.choice([0, 1, 3, 12, 40]), draw.choice(beginnings))
            for row in range(draw.choice([1, 1, 2, 9]))
        ]
    draw.shuffle(requests)
    requests.append(Request("equal", requests[0].prefix, "equal", 7))
    free = answer(model, [Request("r", [5, 6, 7], "r", 12)], eos=-1)[0].tokens
    eos, ngrams = draw.choice(free[1:]), {"no_repeat_ngram_size": draw.choice([0, 2])}
    alone = [answer(model, [request], eos, **ngrams)[0] for request in requests]
    spy = Spy(monkeypatch, model)
    largest = max(
        len(request.prefix) + sum(other.prefix == request.prefix for other in requests) * (40 + SPARE)
        for request in requests
    )
    for bound in (1, largest, 3 * largest, 16384):
        spy.columns.clear()
        assert answer(model, requests, eos, batch_tokens=bound, **ngrams) == alone, bound
        assert bound == 1 or max(spy.columns) <= bound


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama, tiny_opt])
def test_buffers_that_a_long_response_widened_count_after_its_end(make, monkeypatch):
    """Until they are copied: eight short rows of one prefix are replaced in place, then those of eight prefixes."""
    model = make()
    spy = Spy(monkeypatch, model)
    prompts = [[1 + (3 * i + n) % (VOCAB - 1) for i in range(59)] + [n + 1] for n in range(40)]
    requests = [Request("0", prompts[0], "0", 59)]
    requests += [Request(f"1 {n:02}", prompts[n], f"{n} {row}", 3) for n in range(1, 21) for row in range(8)]
    requests += [Request(f"2 {n:02}", prompts[n], f"{n}", 3) for n in range(21, 40)]
    bound = 2 * 60 + 9 * (59 + SPARE)
    together = answer(model, requests, eos=-1, batch_tokens=bound)
    assert [len(response.tokens) for response in together] == [request.room for request in requests]
    assert max(spy.columns) <= bound and spy.appended.count(False) >= 20


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama, tiny_opt])
def test_a_beginning_is_read_with_the_prompt(make, monkeypatch):
    """It continues as transformers does behind the same tokens, and as a longer prompt does under the same stream."""
    model = make()
    beginning = [9, 8, 7, 6]
    begun = [Request(r.id, r.prompt, r.stream, 10, beginning) for r in requests_of()]
    longer = [Request(r.id, [*r.prompt, *beginning], r.stream, 10) for r in requests_of()]
    spy = Spy(monkeypatch, model)
    sampled = answer(model, begun, eos=-1)
    assert len(spy.decoded) == 9  # the beginning is never read token by token
    assert sampled == answer(model, longer, eos=-1) != write(model, eos=-1, max_new_tokens=10)
    monkeypatch.undo()
    for settings in ({}, {"no_repeat_ngram_size": 2}, {"num_beams": 3}):
        greedy = answer(model, begun[::2], eos=-1, do_sample=False, **settings)
        for response, request in zip(greedy, begun[::2], strict=True):
            ids = torch.tensor([[*request.prompt, *beginning]])
            expected = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False, eos_token_id=None,
                pad_token_id=0, **settings,
            )  # fmt: skip
            assert response.tokens == expected[0, ids.shape[1] :].tolist() and not response.ended


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama, tiny_opt])
def test_what_a_model_has_read_need_not_be_read_again(make, monkeypatch):
    """Texts go on behind any of their tokens from the keys and values of an earlier pass, in batches of any size."""
    model, requests = make(), requests_of()
    begun = [replace(r, beginning=r.prompt[: i % 4]) for i, r in enumerate(requests)]
    expected = answer(model, begun)
    texts = [[*r.prefix, 1, 2, 3] for r in begun]  # more than the prefix was read
    for rows in (16, 3):
        monkeypatch.setattr(known, "ROWS", rows)
        found = known.read(model, texts, 0)
        for (hidden, _), text in zip(found, texts, strict=True):
            alone = last_hidden(model, torch.tensor([text]), torch.ones(1, len(text)))[0]
            torch.testing.assert_close(hidden, alone, atol=1e-5, rtol=1e-5)
        pairs = [
            (replace(r, known=of_text.first(len(r.prefix) - 1)), response)
            for r, (_, of_text), response in zip(begun, found, expected, strict=True)
            if len(r.prefix) > 1
        ]
        with_cache, answers = [r for r, _ in pairs], [response for _, response in pairs]
        assert len(answers) > 10 and answer(model, with_cache) == answers
        assert answer(model, with_cache[::-1], batch_tokens=1) == answers[::-1]


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama, tiny_opt])
def test_reading_on_equals_reading_at_once(make):
    model = make()
    first, second = [[3, 4, 5, 6], [7, 8]], [[9, 1], [2, 3, 4]]
    before = [of_text.first(len(ids) - 1) for (_, of_text), ids in zip(known.read(model, first, 0), first, strict=True)]
    results = known.read(model, [[f[-1], *s] for f, s in zip(first, second, strict=True)], 0, before)
    for (hidden, of_text), f, s in zip(results, first, second, strict=True):
        whole = last_hidden(model, torch.tensor([[*f, *s]]), torch.ones(1, len(f) + len(s)))[0]
        torch.testing.assert_close(hidden, whole[len(f) - 1 :], atol=1e-5, rtol=1e-5)
        assert len(of_text) == len(f) + len(s)


@pytest.mark.parametrize("size", [0, 2])
def test_a_greedy_response_goes_on_behind_any_of_its_beginnings(size):
    """Also where an n-gram may not come twice: those of the beginning, and those that cross its ends, count."""
    model, (prompt,) = tiny_gpt2(), PROMPTS[4:5]
    settings = {"eos": -1, "do_sample": False, "no_repeat_ngram_size": size}
    (whole,) = answer(model, [Request("w", prompt.prompt, "", 40)], **settings)
    parts = [Request("p", prompt.prompt, "", 40 - n, whole.tokens[:n]) for n in range(41)]
    assert [response.tokens for response in answer(model, parts, **settings)] == [whole.tokens[n:] for n in range(41)]


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama, tiny_opt])
def test_room_cuts_a_response_and_changes_nothing_before(make):
    model, free = make(), write(make(), eos=-1)
    eos = free[0].tokens[4]
    whole = write(model, eos=eos)
    for room in range(12):
        for cut, response in zip(write(model, eos=eos, max_new_tokens=room), whole, strict=True):
            assert cut.tokens == response.tokens[:room]
            assert cut.ended == (response.ended and len(response.tokens) < room)  # EOS takes a place of its own


@pytest.mark.parametrize("settings", [{}, {"do_sample": False}, {"do_sample": False, "num_beams": 2}])
def test_no_room_asks_the_model_nothing_and_every_response_is_reported(settings, monkeypatch):
    model = tiny_gpt2()
    spy, reported = Spy(monkeypatch, model), []
    none = requests_of(room=0)
    assert [(r.tokens, r.ended) for r in answer(model, none, **settings)] == [([], False)] * len(none)
    assert not spy.prefilled and answer(model, [], **settings) == []
    requests = [*none[:3], *requests_of(room=4), *requests_of(room=9)]
    decoding = Decoding(DECODE.model_copy(update=settings), 0, 0)
    responses = generate(model, requests, decoding, reported.append)
    assert sum(reported) == len(responses) == len(requests) and all(count > 0 for count in reported)
    for bad, message in (
        (Request("none", [], "s", 3), "prompt none has no token"),
        (Request("b", [1], "s", -1), "request b has room for -1"),
    ):
        with pytest.raises(ValueError, match=message):
            generate(model, [*requests, bad], decoding)


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama, tiny_opt])
def test_equal_prefixes_are_read_once(make, monkeypatch):
    """Whatever their ids, and whether a token stands in the prompt or in the beginning."""
    model = make()
    spy = Spy(monkeypatch, model)
    requests = [
        Request("a", [5, 6, 7, 8], "a", 12), Request("z", [9], "z", 12), Request("b", [5, 6], "b", 3, [7, 8]),
        Request("c", [5, 6, 7, 8], "c", 12), Request("d", [], "d", 12, [9]),
    ]  # fmt: skip
    answer(model, requests, eos=-1)
    assert sum(spy.prefilled) == 2 and spy.decoded[0] == 5
    spy.prefilled.clear(), spy.decoded.clear()
    a, z, b, c, d = answer(model, requests, eos=-1, do_sample=False)
    assert sum(spy.prefilled) == 2 and spy.decoded[0] == 3  # nothing is drawn: one row for each prefix and room
    assert a == c and z == d and b.tokens == a.tokens[:3]


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama, tiny_opt])
def test_a_prompt_at_the_length_limit(make):
    """Prompt and answer fill all 128 positions; beside a short prompt, and one token at a time."""
    model = make()
    long = Encoded("long", [1 + i % (VOCAB - 1) for i in range(116)], [])
    ids = torch.tensor([long.prompt])
    expected = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0, 116:].tolist()
    written = write(model, [PROMPTS[0], long], [1], do_sample=False, eos=-1)
    assert written[1].tokens == expected
    (one,) = write(model, [long], [1], do_sample=False, eos=-1, max_new_tokens=1)
    assert one.tokens == expected[:1] and not one.ended


def test_an_empty_instruction_is_a_prompt_and_no_tokens_are_none():
    tokenizer = train_tokenizer("gpt2", ["### Instruction: do ### Response: done"], 300)
    (row,) = Encoder(tokenizer, named("alpaca"), 256, "cut").prompts(make_examples([("", "", ["x"], "")])).rows
    assert row.prompt
    (written,) = write(tiny_gpt2(vocab=400), [row], [10], eos=-1)
    assert len(written.tokens) == 12
    with pytest.raises(ValueError, match="prompt none has no token"):
        write(tiny_gpt2(), [Encoded("none", [], [])])


def test_groups_are_fixed_by_prompts_alone():
    settings, requests = DECODE.model_copy(update={"batch_tokens": 10}), requests_of()
    cut = groups(requests, settings)
    assert len(cut) > 1 and sorted(i for group in cut for i in group) == list(range(len(requests)))
    lengths = [len(requests[i].prompt) for group in cut for i in group]
    assert lengths == sorted(lengths, reverse=True)
    turned = requests_of(PROMPTS[::-1])
    streams = [[turned[i].stream for i in group] for group in groups(turned, settings)]
    assert streams == [[requests[i].stream for i in group] for group in cut]


def test_groups_hold_all_requests_of_a_prefix():
    """Also when their ids stand far apart; a group is closed by its columns, own rooms counted, or by its prefixes."""
    requests = [Request(f"{n:03}", [n % 70 + 1, 5], str(n), 1) for n in range(140)]
    cut = groups(requests, DECODE)
    assert [len({requests[i].prompt[0] for i in group}) for group in cut] == [64, 6]
    assert [requests[i].id for i in cut[0][:4]] == ["000", "070", "001", "071"]
    settings = DECODE.model_copy(update={"batch_tokens": 100})  # a group is closed at 800
    rooms = [Request(f"{n}", [1, n + 1], "s", room) for n, room in enumerate([798, 5, 5, 790, 2])]
    assert groups(rooms, settings) == [[0], [1, 2, 3], [4]]


@pytest.mark.parametrize("size", [2, 3])
def test_ngrams_that_may_not_repeat_are_transformers_own(size):
    from transformers import NoRepeatNGramLogitsProcessor

    tokens = torch.randint(0, 4, (60,), generator=torch.Generator().manual_seed(size)).tolist()
    processor = NoRepeatNGramLogitsProcessor(size)
    for cut in range(1, 60):
        ban = NgramBan(size, tokens[: cut // 2])
        for token in tokens[cut // 2 : cut]:
            ban.add(token)
        scores = processor(torch.tensor([tokens[:cut]]), torch.zeros(1, 4))
        assert ban.banned() == scores[0].isneginf().nonzero().squeeze(-1).tolist()


def test_a_text_without_repeats():
    model = tiny_gpt2()
    free = write(model, PROMPTS, do_sample=False, eos=-1, max_new_tokens=40)
    bound = write(model, PROMPTS, do_sample=False, eos=-1, max_new_tokens=40, no_repeat_ngram_size=2)

    def repeats(request, response):
        tokens = [*request.prompt, *response.tokens]
        pairs = list(itertools.pairwise(tokens))
        return len(pairs) - len(set(pairs))

    assert sum(map(repeats, requests_of(), free)) > 0 and sum(map(repeats, requests_of(), bound)) == 0


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama, tiny_opt])
def test_beam_search_is_transformers_own_and_the_same_for_all_seeds(make):
    model = make()
    written = write(model, do_sample=False, num_beams=3, no_repeat_ngram_size=2)
    for first, second, prompt in zip(written[::2], written[1::2], PROMPTS, strict=True):
        ids = torch.tensor([prompt.prompt])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, num_beams=3,
            no_repeat_ngram_size=2, eos_token_id=0, pad_token_id=0,
        )[0, len(prompt.prompt) :].tolist()  # fmt: skip
        assert first.tokens == second.tokens == [t for t in expected if t]
        assert first.ended == (0 in expected)


def test_draws_that_nearly_tie_are_counted():
    """Of two tokens with one embedding row each is as good as the other wherever either is first."""
    model = tiny_gpt2()
    (before,) = write(model, PROMPTS[2:3], [10], eos=-1, do_sample=False)
    assert before.ties == 0
    weight = model.get_output_embeddings().weight
    twin = next(t for t in range(1, VOCAB) if t not in [*before.tokens, *PROMPTS[2].prompt])
    with torch.no_grad():
        weight[twin] = weight[before.tokens[0]]
    (after,) = write(model, PROMPTS[2:3], [10], eos=-1, do_sample=False)
    assert after.ties >= 1


def test_vllm_is_asked_with_a_seed_for_each_request(monkeypatch, tmp_path):
    """Against a stand-in for the package: what it is given, and what is made of what it gives."""
    asked = {}

    class Llm:
        def __init__(self, **settings):
            asked["model"] = settings

        def generate(self, inputs, settings, use_tqdm):
            asked["inputs"], asked["settings"] = inputs, settings
            output = lambda ids: type("R", (), {"outputs": [type("O", (), {"token_ids": ids})]})  # noqa: E731
            return [output([5, 6, 0] if n % 2 else [7, 8]) for n in range(len(inputs))]

    fake = type("Vllm", (), {"LLM": Llm, "SamplingParams": dict})
    monkeypatch.setitem(sys.modules, "vllm", fake)
    config = load(["model=gpt2", "eval.engine=vllm", "eval.top_k=5"])
    engine = VllmEngine(config, Weights(str(tmp_path)))
    finished = []
    none, begun = Request("none", [3], "none", 0), Request("begun", [3, 4], "begun", 2, beginning=[5, 6])
    requests = [*requests_of(PROMPTS[:2])[:3], none, begun]
    written = engine.write(requests, Decoding(config.eval, 0, 0), finished.append)
    assert [(r.tokens, r.ended) for r in written] == [
        ([7, 8], False), ([5, 6], True), ([7, 8], False), ([], False), ([5, 6], True),
    ]  # fmt: skip
    assert len({s["seed"] for s in asked["settings"]}) == 4 and asked["settings"][0]["top_k"] == 5
    assert asked["settings"][0]["seed"] == int.from_bytes(hashlib.sha256(b"10/set/p1").digest()[:4], "little")
    assert [s["max_tokens"] for s in asked["settings"]] == [12, 12, 12, 2]
    assert asked["inputs"][2:] == [{"prompt_token_ids": PROMPTS[1].prompt}, {"prompt_token_ids": [3, 4, 5, 6]}]
    assert finished == [5]
    assert asked["model"]["max_model_len"] == config.train.max_prompt_length + config.eval.max_new_tokens
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match="pip install vllm"):
        VllmEngine(config, Weights(str(tmp_path)))


def test_engines_and_searches_that_do_not_go_together():
    for words, message in (
        (["eval.num_beams=4"], "set do_sample=false"),
        (["eval.engine=vllm", "eval=reference"], "no no_repeat_ngram_size"),
        (["eval.engine=vllm", "eval.num_beams=2", "eval.do_sample=false"], "no num_beams"),
    ):
        with pytest.raises(UserError, match=message):
            load(["model=gpt2", *words])
