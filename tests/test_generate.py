"""Texts that depend on model, prompt and seed alone."""

from __future__ import annotations

import random
import sys

import pytest
import torch
from conftest import VOCAB, tiny_gpt2, tiny_llama, tiny_opt

from distill.base.errors import UserError
from distill.config import load
from distill.config.template import named
from distill.data.encode import Encoded, Encoder
from distill.data.examples import make_examples
from distill.generation.cache import ROOM, RowCache
from distill.generation.decode import Chooser, NgramBan, RowStream
from distill.generation.engine import Writing, generate, groups
from distill.generation.vllm import VllmEngine
from distill.models.load import Weights
from distill.models.tokenizers import train_tokenizer

DECODE = load(["model=micro"]).eval.model_copy(update={"max_new_tokens": 12})
PROMPTS = [Encoded(f"p{n}", [1 + (7 * i + n) % (VOCAB - 1) for i in range(n)], []) for n in (1, 3, 9, 4, 6, 2, 5)]


def write(model, prompts=PROMPTS, seeds=(10, 20), eos=0, **decode):
    return generate(model, prompts, Writing("set", list(seeds), DECODE.model_copy(update=decode), eos, 0))


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


@pytest.mark.parametrize("warp", [{}, {"top_k": 1}, {"top_p": 0.9}])
def test_a_token_that_cannot_win_never_does(warp):
    """Of 50,257 tokens one stands 200 above all: numpy's exponentials hold a 0 in one of two hundred such draws."""
    choose, stream = Chooser(DECODE.model_copy(update=warp)), RowStream(1, "set", "x")
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


def test_streams_are_their_own():
    def drawn(seed=10, set_name="set", example="x", times=1):
        stream, numbers = RowStream(seed, set_name, example), torch.empty(5)
        for _ in range(times):
            stream.fill(numbers)
        return numbers

    assert drawn().equal(drawn()) and (drawn() > 0).all()
    for other in (drawn(times=2), drawn(seed=20), drawn(set_name="other"), drawn(example="y")):
        assert not drawn().eq(other).any()


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama, tiny_opt])
def test_rows_leave_and_prompts_join_within_the_bound(make, monkeypatch):
    """Few rows fit: every text is that of a prompt alone, and no more is ever held than `batch_tokens`."""
    model, held, joined = make(), [], []
    forward, join = type(model).forward, RowCache.join

    def counted(self, *args, past_key_values, **more):
        output = forward(self, *args, past_key_values=past_key_values, **more)
        if isinstance(past_key_values, RowCache):
            layer = past_key_values.layers[0]
            held.append(sum(x[:, 0, :, 0].numel() for x in (layer._buffers[0], layer.prompt_keys)))
        return output

    def joins(self, prompts, mask, rows, *more):
        joined.append(rows is None)
        join(self, prompts, mask, rows, *more)

    monkeypatch.setattr(type(model), "forward", counted)
    monkeypatch.setattr(RowCache, "join", joins)
    prompts = [Encoded(f"q{n}", [1 + (5 * i + n) % (VOCAB - 1) for i in range(1 + n % 9)], []) for n in range(30)]
    eos = write(model, PROMPTS[:1], [10], eos=-1)[0].tokens[3]  # an id that is drawn now and then
    bound = 6 * (9 + 12 + ROOM)
    together = write(model, prompts, eos=eos, batch_tokens=bound)
    assert max(held) <= bound and set(joined) == {True, False}  # below, and in the places of finished rows
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
        batch = write(model, prompts, seeds, eos=eos, batch_tokens=rows * (draw.choice([0, 9, 30]) + 12 + ROOM))
        for got, (prompt, seed) in zip(batch, [(p, s) for p in prompts for s in seeds], strict=True):
            assert [got] == write(model, [prompt], [seed], eos=eos), (rows, prompt.id, seed)


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
    decode = DECODE.model_copy(update={"batch_tokens": 10})
    writing = Writing("set", [10, 20], decode, 0, 0)
    cut = groups(PROMPTS, writing)
    assert len(cut) > 1 and sorted(i for group in cut for i in group) == list(range(len(PROMPTS)))
    lengths = [len(PROMPTS[i].prompt) for group in cut for i in group]
    assert lengths == sorted(lengths, reverse=True)
    turned = groups(PROMPTS[::-1], writing)
    ids = [[[ps[i].id for i in group] for group in gs] for ps, gs in ((PROMPTS, cut), (PROMPTS[::-1], turned))]
    assert ids[0] == ids[1]


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

    def repeats(g):
        prompt = next(p.prompt for p in PROMPTS if p.id == g.id)
        pairs = list(zip([*prompt, *g.tokens], [*prompt, *g.tokens][1:], strict=False))
        return len(pairs) - len(set(pairs))

    assert sum(map(repeats, free)) > 0 and sum(map(repeats, bound)) == 0


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
        assert first.tokens == second.tokens == [t for t in expected if t] and (first.seed, second.seed) == (10, 20)
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
            row = lambda ids: type("R", (), {"outputs": [type("O", (), {"token_ids": ids})]})  # noqa: E731
            return [row([5, 6, 0] if n % 2 else [7, 8]) for n in range(len(inputs))]

    fake = type("Vllm", (), {"LLM": Llm, "SamplingParams": dict})
    monkeypatch.setitem(sys.modules, "vllm", fake)
    config = load(["model=gpt2", "eval.engine=vllm", "eval.top_k=5"])
    engine = VllmEngine(config, Weights(str(tmp_path)))
    finished = []
    written = engine.write(PROMPTS[:2], Writing("set", [10, 20], config.eval, 0, 0), finished.append)
    assert [(g.id, g.seed, g.tokens, g.ended) for g in written] == [
        ("p1", 10, [7, 8], False), ("p1", 20, [5, 6], True), ("p3", 10, [7, 8], False), ("p3", 20, [5, 6], True),
    ]  # fmt: skip
    assert len({s["seed"] for s in asked["settings"]}) == 4 and asked["settings"][0]["top_k"] == 5
    assert asked["inputs"][2] == {"prompt_token_ids": PROMPTS[1].prompt} and finished == [4]
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
