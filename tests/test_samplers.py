"""Where responses come from: each sampler's rule, what is written, and what is learned from it."""

from __future__ import annotations

import io
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import VOCAB, tiny_gpt2, tiny_llama
from transformers import TrainerCallback, TrainingArguments

from distill.base.errors import UserError
from distill.config import load
from distill.data.encode import FILLER, IGNORE, LATE, ROLLOUT, STUDENT_TEXT, Collator, Encoded, shift
from distill.generation.engine import generate
from distill.generation.reader import Mixture
from distill.generation.requests import Decoding, Request
from distill.losses import build
from distill.samplers import Sample, Step, names
from distill.samplers import build as build_sampler
from distill.samplers.base import StudentText
from distill.teacher.signal import LiveTeacher, NewTextTeacher
from distill.training.corpus import Corpus
from distill.training.distiller import Distiller
from distill.training.objective import CorpusLoss, objective_terms
from distill.training.sampling import Sampling
from distill.training.trainer import DistillTrainer
from distill.training.writer import StudentWriter

EOS = 0
ROWS = [Encoded(f"r{n}", [1 + (5 * i + n) % (VOCAB - 1) for i in range(n % 7 + 1)], [3, 4, EOS]) for n in range(12)]
STEP = Step(3, 10, 1, len(ROWS))
DECODE = load(["model=micro"]).eval


class FakeWriter:
    """Writes `[step, 9, EOS]` to every row; alone, or as one of several processes."""

    rank, processes = 0, 1

    def __init__(self):
        self.calls = []

    def write(self, rows, stream, step, teacher_share=0.0):
        self.calls.append((stream, [row.id for row in rows], teacher_share))
        origin = "mixed" if teacher_share else "student"
        return [
            Sample(Encoded(f"{row.id}@{stream}", row.prompt, [step % VOCAB, 9, EOS]), True, step, teacher_share, origin)
            for row in rows
        ]

    def with_rollout_data(self, samples):
        drawn = {ROLLOUT: torch.arange(9.0).view(3, 3), "mark": [(0, 2)]}
        return [replace(sample, row=replace(sample.row, extras=drawn)) for sample in samples]

    def for_step(self, samples):
        return list(samples)

    def gather(self, samples):
        return list(samples)


def test_every_sampler_is_known():
    assert names() == ["adaptive", "fixed", "mixed", "on_policy", "rollout", "teacher"]


@pytest.mark.parametrize("name", ["fixed", "teacher"])
def test_text_that_does_not_change_stays(name):
    samples = build_sampler(name).next(ROWS, STEP, FakeWriter())
    assert [s.row for s in samples] == ROWS and {s.origin for s in samples} == {"dataset" if name == "fixed" else name}


def test_on_policy_trains_on_what_was_just_written():
    sampler, fake = build_sampler("on_policy"), FakeWriter()
    samples = sampler.next(ROWS, STEP, fake)
    assert fake.calls == [("step 3", [r.id for r in ROWS], 0.0)] and {s.origin for s in samples} == {"student"}
    assert [s.row.prompt for s in samples] == [r.prompt for r in ROWS] and not sampler.held()


def test_mixed_writes_with_its_probability():
    sampler, fake = build_sampler("mixed", probability=0.3), FakeWriter()
    kinds = Counter(sampler.next(ROWS, Step(n, 2000, 4, len(ROWS)), fake)[0].origin for n in range(2000))
    assert abs(kinds["student"] / 2000 - 0.3) < 3 * (0.21 / 2000) ** 0.5 and kinds.keys() == {"student", "dataset"}


@pytest.mark.parametrize(("name", "writes"), [("mixed", 0.5), ("on_policy", 1.0)])
def test_the_published_draw_goes_through_a_buffer(name, writes):
    """ImitKD and GKD of DistiLLM's code: what is trained on was mostly written at other steps."""
    sampler, fake = build_sampler(name, draw="buffer", capacity=30), FakeWriter()
    ages = []
    for n in range(40):
        samples = sampler.next(ROWS, Step(n, 40, 4, len(ROWS)), fake)
        ages += [n - s.step for s in samples if s.origin == "replay"]
        assert {s.origin for s in samples} <= {"replay", "dataset"} and len(samples) == len(ROWS)
    assert max(ages) >= 1 and len(sampler.held()) == 30  # the newest, of whole and half batches
    assert [s.step for s in sampler.held()] == sorted(s.step for s in sampler.held())


def test_the_adaptive_rule_against_a_sequence_worked_by_hand():
    """eps 0.1, start 0.2. Compared with the last rise's loss, not with the last one."""
    sampler = build_sampler("adaptive", threshold=0.2, eps=0.1)
    losses = [2.00, 1.50, 2.05, 2.10, 2.11, 2.15, 2.21, 2.22, 1.0, 2.33]
    after = [0.2, 0.2, 0.2, 0.2, 0.3, 0.3, 0.3, 0.4, 0.4, 0.5]  # rises at 2.11 > 2.10, 2.22 > 2.21, 2.33 > 2.32
    for loss, threshold in zip(losses, after, strict=True):
        sampler.observe({"eval_loss": loss, "eval_ce": 0.0})
        assert sampler.log_values()["threshold"] == pytest.approx(threshold), loss
    for n in range(30):
        sampler.observe({"eval_loss": 10.0 + n, "eval_ce": 0.0})
    assert sampler.current == 1.0
    published = build_sampler("adaptive", watched="ce")
    for ce in (1.0, 2.0):
        published.observe({"eval_loss": 0.0, "eval_ce": ce})
    assert published.current == pytest.approx(0.1)


@pytest.mark.parametrize(("share", "early", "late"), [("decreasing", 0.9, 0.1), ("constant", 0.5, 0.5),
                                                      ("increasing", 0.1, 0.9)])  # fmt: skip
def test_adaptive_batches_come_in_their_shares(share, early, late):
    sampler, steps = build_sampler("adaptive", threshold=0.6, fresh_share=share, capacity=24), 4000
    for n in range(8):  # a buffer that is not full is filled first
        sampler.next(ROWS, Step(n, steps, 2, len(ROWS)), FakeWriter())
    kinds = {True: Counter(), False: Counter()}
    for n in [*range(steps // 5), *range(steps * 4 // 5, steps)]:
        (kind,) = {s.origin for s in sampler.next(ROWS, Step(n, steps, 3, len(ROWS)), FakeWriter())}
        kinds[n < steps // 2][kind] += 1
    for first, expected in ((True, early), (False, late)):
        counts = kinds[first]
        assert counts["dataset"] / counts.total() == pytest.approx(0.4, abs=0.06)
        assert counts["student"] / (counts["student"] + counts["replay"]) == pytest.approx(expected, abs=0.06)


def test_while_the_buffer_is_not_full_all_is_written():
    sampler, fake = build_sampler("adaptive", threshold=1.0, fresh_share="increasing", capacity=36), FakeWriter()
    kinds = [sampler.next(ROWS, Step(n, 1000, 2, len(ROWS)), fake)[0].origin for n in range(5)]
    assert kinds == ["student"] * 3 + ["replay"] * 2


def test_rollouts_are_written_once_and_read_in_passes():
    sampler, fake = build_sampler("rollout", rollouts=8, passes=3, teacher_share=0.2), FakeWriter()
    sampler.prepare(ROWS, 4)
    steps = [sampler.next(ROWS[:4], Step(n, 100, 1, 4), fake) for n in range(18)]
    assert len(fake.calls) == 4  # three cycles of two batches, three times; the second goes round
    assert {share for _, _, share in fake.calls} == {0.2}
    asked = [name for _, names_, _ in fake.calls for name in names_]
    assert len(asked) == 24 and Counter(asked) == dict.fromkeys((r.id for r in ROWS), 2)  # 24 prompts of 12
    for cycle in range(3):
        of_cycle = steps[6 * cycle : 6 * cycle + 6]
        read = Counter(s.row.id for step in of_cycle for s in step)
        assert len(read) == 8 and set(read.values()) == {3}
        orders = {tuple(s.row.id for step in of_cycle[2 * i : 2 * i + 2] for s in step) for i in range(3)}
        assert len(orders) == 3 and all(ROLLOUT in s.row.extras for s in of_cycle[0])
    assert len(sampler.next(ROWS[:3], Step(18, 100, 1, 3), fake)) == 3  # an epoch's last batch may be smaller
    with pytest.raises(ValueError, match="8 rollouts are no whole number of batches of 5"):
        sampler.prepare(ROWS, 5)


@pytest.mark.parametrize("name", ["mixed", "adaptive", "rollout"])
def test_a_state_comes_back_to_the_bit(name):
    params = {"mixed": {"draw": "buffer"}, "adaptive": {"threshold": 0.8, "capacity": 30}, "rollout": {"rollouts": 12}}
    whole, fake = build_sampler(name, **params[name]), FakeWriter()
    whole.prepare(ROWS, 12)
    for n in range(6):
        whole.next(ROWS, Step(n, 40, 5, len(ROWS)), fake)
        whole.observe({"eval_loss": 1.0 + n, "eval_ce": 0.0})
    file = io.BytesIO()
    torch.save(whole.state(), file)
    file.seek(0)
    again = build_sampler(name, **params[name])
    again.prepare(ROWS, 12)
    again.restore(torch.load(file, weights_only=True))
    for n in range(6, 12):
        ours, theirs = (s.next(ROWS, Step(n, 40, 5, len(ROWS)), fake) for s in (whole, again))
        assert [s.state().keys() for s in ours] == [s.state().keys() for s in theirs]
        for a, b in zip(ours, theirs, strict=True):
            assert a == b and a.row.extras.keys() == b.row.extras.keys()
            if name == "rollout":
                assert torch.equal(a.row.extras[ROLLOUT], b.row.extras[ROLLOUT])
                assert a.row.extras["mark"] == b.row.extras["mark"] == [(0, 2)]
        assert whole.log_values() == again.log_values()


def student_writer(student=None, teacher=None, tokens=8, **more):
    student = student or tiny_gpt2()
    taught = NewTextTeacher(LiveTeacher(teacher or tiny_gpt2(hidden=24, seed=9)), None, remember=True)
    decode = DECODE.model_copy(update={"max_new_tokens": tokens})
    more = {"max_length": 100, **more}
    return StudentWriter(student, taught, more.pop("divergence", build("rkl")), decode, 7, EOS, EOS, **more)


def test_what_is_written_does_not_depend_on_batch_or_order():
    whole = {s.row.id: s for s in student_writer().write(ROWS, "step 4", 4)}
    turned = student_writer().write(ROWS[::-1], "step 4", 4)
    alone = [s for row in ROWS for s in student_writer().write([row], "step 4", 4)]
    assert all(whole[s.row.id] == s for s in [*turned, *alone]) and len(whole) == len(ROWS)
    other = student_writer().write(ROWS, "step 5", 5)
    assert [s.row.response for s in other] != [s.row.response for s in whole.values()]
    small = student_writer()
    small.decode = small.decode.model_copy(update={"batch_tokens": 1})
    assert {s.row.id: s for s in small.write(ROWS, "step 4", 4)} == whole


def test_eos_is_kept_where_pad_is_eos_and_what_never_ends_is_marked():
    writer = student_writer(tokens=40)
    samples = writer.write([*ROWS, FILLER], "s", 1)
    assert samples[-1].row == FILLER and len(writer.taken()) == len(ROWS) and writer.taken() == []
    ended, cut = ([s for s in samples[:-1] if s.ended is is_] for is_ in (True, False))
    assert ended and cut and all(EOS not in s.row.response for s in cut)
    assert all(s.row.response[-1] == EOS and EOS not in s.row.response[:-1] for s in ended)
    batch = Collator(EOS)([s.row for s in ended])
    for s, labels in zip(ended, batch["labels"], strict=True):
        assert labels[labels != IGNORE].tolist() == s.row.response  # EOS is a target, padding is none


def test_max_length_cuts_what_would_be_written_without_it():
    """One text ends exactly at the limit, one is cut just before its EOS, and one prompt leaves no room at all."""
    free = student_writer(tokens=40).write(ROWS, "s", 1)
    lengths = [len(s.row.prompt) + len(s.row.response) for s in free if s.ended]
    for limit in {12, max(lengths), max(lengths) - 1, max(len(row.prompt) for row in ROWS)}:
        for whole, cut in zip(free, student_writer(tokens=40, max_length=limit).write(ROWS, "s", 1), strict=True):
            room = limit - len(whole.row.prompt)
            assert cut.row == replace(whole.row, response=whole.row.response[:room])
            assert cut.ended == (whole.ended and len(whole.row.response) <= room)


def test_a_text_is_drawn_from_the_stream_of_seed_step_and_example():
    requests = [Request(row.id, row.prompt, f"7/train step 4/{row.id}", 8) for row in ROWS]
    responses = generate(tiny_gpt2(), requests, Decoding(DECODE, EOS, EOS))
    tokens = [[*r.tokens, *([EOS] if r.ended else [])] for r in responses]
    assert [s.row.response for s in student_writer().write(ROWS, "step 4", 4)] == tokens


def test_the_published_labels_are_late_and_lack_eos():
    samples = student_writer(tokens=40, late=True, erased=EOS).write(ROWS, "s", 1)
    assert any(s.ended for s in samples)
    for s in samples:
        assert s.row.extras == {STUDENT_TEXT: True, LATE: True} and EOS not in s.row.response
        ids, targets = shift(s.row.prompt, s.row.response, late=True)
        assert ids == [*s.row.prompt, *s.row.response] and targets[: len(s.row.prompt)] == [IGNORE] * len(s.row.prompt)
        assert targets[len(s.row.prompt) :] == s.row.response  # each at its own position, so the first is not predicted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_written_with_dropout(dtype):
    """Whether the student is training when its first text is written, as it is where the first batches are the data's,
    or not; and it goes on training, also after an error."""

    def student(training):
        model = tiny_gpt2().train(training)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.5
        return model

    texts = {}
    for training in (False, True):
        writer = student_writer(student(training), dtype=dtype)
        texts[training] = [s.row.response for step in (1, 2) for s in writer.write(ROWS, f"s {step}", step)]
        corrected = writer.correct(ROWS, writer.write(ROWS, "s", 3), "s", [1, 2], greedy=False)
        texts[training] += [s.row.response for s in corrected]
        assert writer.student.training is training and not writer.teacher.live.model.training
    assert texts[True] == texts[False]
    writer.pad_id = None
    with pytest.raises(TypeError):
        writer.write(ROWS, "s", 4)
    assert writer.student.training


def test_rounded_weights_write_as_loaded_ones_do(tmp_path):
    """Rotary positions' frequencies stay fp32, as they do when a model is loaded in bf16."""
    student = tiny_llama(scale=0.2)
    student.save_pretrained(tmp_path)
    loaded = type(student).from_pretrained(tmp_path, dtype=torch.bfloat16)
    rounded = student_writer(student, dtype=torch.bfloat16).generating_model()
    ours, theirs = dict(rounded.named_buffers()), dict(loaded.named_buffers())
    assert ours.keys() == theirs.keys() and ours
    assert all(torch.equal(ours[n], theirs[n]) and ours[n].dtype == theirs[n].dtype for n in ours)
    ids = torch.arange(1, 60)[None]
    assert torch.equal(rounded(ids).logits, loaded(ids).logits)


def test_a_policy_gradients_ratios_have_no_dropout():
    """On the first pass they are the importance weights, also where the student has dropout."""
    student = tiny_gpt2()
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    loss = build("minillm", whiten=False)
    model = Distiller(student, LiveTeacher(tiny_gpt2(hidden=24, seed=9)), objective_terms(loss, 0.0, 1.0)).train()
    assert not student.training
    own = student_writer(student, divergence=loss)
    samples = own.with_rollout_data(own.write(ROWS, "s", 1, 0.3))
    batch = Collator(EOS)([s.row for s in samples])
    drawn = batch["extras"][ROLLOUT]
    valid = batch["labels"] != IGNORE
    logits = student(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[valid].log_softmax(-1)
    log_probs = logits.gather(-1, batch["labels"][valid][:, None])[:, 0]
    torch.testing.assert_close((log_probs - drawn[:, 0]).exp(), drawn[:, 1], rtol=1e-4, atol=1e-5)
    assert Distiller(student, model.teacher, objective_terms(build("rkl"), 0.0, 1.0)).train().student.training


def test_a_students_mode_comes_back():
    student = tiny_gpt2().train()
    student_writer(student).write(ROWS[:2], "s", 1)
    assert student.training and student.config._attn_implementation == "sdpa"


def test_under_bf16_rounded_weights_write_and_follow_the_student():
    student = tiny_gpt2()
    writer = student_writer(student, dtype=torch.bfloat16)
    first = [s.row for s in writer.write(ROWS, "s", 1)]
    expected = student_writer(tiny_gpt2().to(torch.bfloat16)).write(ROWS, "s", 1)
    assert first == [s.row for s in expected] and student.dtype == torch.float32
    with torch.no_grad():
        for p in student.parameters():
            p.add_(0.3 * torch.randn_like(p))
    assert [s.row for s in writer.write(ROWS, "s", 1)] != first


def test_a_mixture_draws_from_both():
    """First tokens over many seeds against the mixed probabilities."""
    student, teacher, count, share = tiny_gpt2(), tiny_gpt2(hidden=24, seed=9), 3000, 0.4
    requests = [Request("r", ROWS[5].prompt, str(number), 1) for number in range(count)]
    written = generate(Mixture(student, teacher, share), requests, Decoding(DECODE, -1, 0))
    q, p = (m(torch.tensor([ROWS[5].prompt])).logits[0, -1].softmax(-1) for m in (student, teacher))
    frequency = torch.bincount(torch.tensor([g.tokens[0] for g in written]), minlength=VOCAB) / count
    mixed = (1 - share) * q + share * p
    assert (frequency - mixed).abs().max() < 4 * (0.25 / count) ** 0.5 < (q - mixed).abs().max()


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_rollout_data_is_of_the_texts_tokens(share):
    """Log-probabilities along each text, in float64 and token by token."""
    student, teacher = tiny_gpt2(), tiny_gpt2(hidden=24, seed=9)
    loss = build("minillm", whiten=False, reward_scale=1.0)
    writer = student_writer(student, teacher, divergence=loss)
    samples = writer.with_rollout_data(writer.write(ROWS, "s", 1, share))
    for s in samples:
        ids = torch.tensor([[*s.row.prompt, *s.row.response]])
        q, p = (m.double()(ids).logits[0].detach().softmax(-1) for m in (student, teacher))
        student.float(), teacher.float()
        start = len(s.row.prompt) - 1
        at = [(start + i, t) for i, t in enumerate(s.row.response)]
        ours, theirs = (np.array([float(x[i, t]) for i, t in at]) for x in (q, p))
        mixed = (1 - share) * ours + share * theirs
        rewards = np.log(theirs / ours)
        advantage = [rewards[i + 1 :].mean() if i + 1 < len(rewards) else 0.0 for i in range(len(rewards))]
        expected = np.stack([np.log(mixed), ours / mixed, advantage], 1)
        np.testing.assert_allclose(s.row.extras[ROLLOUT].numpy(), expected, rtol=2e-4, atol=2e-4)


def test_texts_that_come_again_are_read_by_the_teacher_once():
    live = LiveTeacher(tiny_gpt2(hidden=24, seed=9))
    calls = []
    live.register_forward_hook(lambda _, args, out: calls.append(len(args[0])))
    teacher = NewTextTeacher(live, None, remember=True)
    batch = Collator(EOS)(ROWS[:5])
    inputs = (batch["input_ids"], batch["attention_mask"], batch["labels"] != IGNORE, batch["example_ids"])
    plain = live(*inputs)
    calls.clear()
    teacher.hold({"r1", "r3"})
    torch.testing.assert_close(teacher(*inputs), plain)
    assert calls == [5] and set(teacher.remembered) == {"r1", "r3"}
    torch.testing.assert_close(teacher(*inputs), plain)
    assert calls == [5, 3]
    teacher.hold({"r3"})
    assert set(teacher.remembered) == {"r3"}
    forgetful = NewTextTeacher(live, None, remember=False)
    forgetful.hold({"r1"})
    forgetful(*inputs)
    assert not forgetful.remembered


class Tokenizer:
    eos_token_id = EOS
    all_special_tokens = ()

    def save_pretrained(self, folder):
        pass

    def __call__(self, text, **_):
        return type("Encoding", (), {"input_ids": [1 + ord(c) % (VOCAB - 1) for c in text]})


def first_step(tmp_path, rows, sampler=None, corpus=None, term=None, micro=4, mean="tokens", **objective):
    """Gradients and loss of the first step over all rows, and what was sampled."""
    terms = objective_terms(**{"divergence": build("ab"), "w_ce": 0.0, "w_kd": 1.0, "corpus": term, **objective})
    student, teacher = tiny_gpt2(), LiveTeacher(tiny_gpt2(hidden=24, seed=9))
    model = Distiller(student, NewTextTeacher(teacher, None, True), terms, mean)
    seen, sampled = {}, []

    class Stop(DistillTrainer):
        def _micro_batches(self, drawn):
            cut = super()._micro_batches(drawn)
            sampled.extend(cut)
            return cut

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            seen.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

    args = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=micro, gradient_accumulation_steps=len(rows) // micro,
        max_steps=1, learning_rate=0.0, max_grad_norm=1e9, save_strategy="no", report_to=[], disable_tqdm=True,
        remove_unused_columns=False, label_names=["labels"], use_cpu=True, seed=7, logging_steps=1,
    )  # fmt: skip
    writer = student_writer(student, divergence=model.divergence)
    writer.teacher = model.teacher
    sampling = Sampling(build_sampler(sampler), writer) if sampler else None
    trainer = Stop(model, args, rows, rows, Tokenizer(), EOS, len(rows), lambda _: 0.0, sampling, corpus,
                   callbacks=[Keep()])  # fmt: skip
    trainer.train()
    return seen, sampled, trainer


def rows_of(batches):
    found = []
    for batch in batches:
        for ids, mask, labels, name in zip(*(batch[k] for k in ("input_ids", "attention_mask", "labels")),
                                           batch["example_ids"], strict=True):  # fmt: skip
            response = labels[labels != IGNORE].tolist()
            length = int(mask.sum()) + 1 - len(response)
            found.append(Encoded(name, ids[:length].tolist(), response))
    return found


@pytest.mark.parametrize("micro", [2, 4])
def test_on_policy_gradients_are_those_of_the_same_texts_in_a_data_set(tmp_path, micro):
    own, batches, trainer = first_step(tmp_path, ROWS, "on_policy", micro=micro)
    texts = rows_of(batches)
    assert len(texts) == len(ROWS) and {t.id for t in texts} == {f"{r.id}@step 0" for r in ROWS}
    fixed, _, _ = first_step(tmp_path, texts)
    assert own.keys() == fixed.keys() and own
    for name in own:
        torch.testing.assert_close(own[name], fixed[name], rtol=1e-4, atol=1e-7)
    logged = next(line for line in trainer.state.log_history if "loss" in line)
    assert logged["student_share"] == 1.0 and logged["seconds_writing"] > 0 < logged["seconds_learning"]
    lengths = [len(t.response) for t in texts]
    assert logged["response_length"] == pytest.approx(sum(lengths) / len(lengths))
    ended = sum(t.response[-1] == EOS for t in texts)
    assert logged["eos_rate"] == pytest.approx(100 * ended / len(texts))
    assert trainer.sampling.written == {"texts": 12, "tokens": sum(lengths), "cut": 12 - ended}


def test_cross_entropy_leaves_out_what_the_student_wrote(tmp_path):
    alone, _, _ = first_step(tmp_path, ROWS, "on_policy")
    with_ce, _, _ = first_step(tmp_path, ROWS, "on_policy", w_ce=0.7)
    for name in alone:
        torch.testing.assert_close(alone[name], with_ce[name])
    model = Distiller(tiny_gpt2(), LiveTeacher(tiny_gpt2(hidden=24, seed=9)), objective_terms(build("ab"), 0.7, 1.0))
    own = [i % 3 == 0 for i in range(len(ROWS))]
    rows = [replace(row, extras={STUDENT_TEXT: True}) if o else row for row, o in zip(ROWS, own, strict=True)]
    mixed = model(**Collator(EOS)(rows), num_items_in_batch=1)
    parts = [
        Distiller(model.student, model.teacher, objective_terms(build("ab"), w, 1.0))(
            **Collator(EOS)([r for r, o in zip(ROWS, own, strict=True) if o == (w == 0)]), num_items_in_batch=1
        )
        for w in (0.0, 0.7)
    ]
    torch.testing.assert_close(mixed["loss"], sum(part["loss"] for part in parts))
    torch.testing.assert_close(mixed["kd_sum"], sum(part["kd_sum"] for part in parts))
    torch.testing.assert_close(mixed["ce_sum"], parts[1]["ce_sum"])


@pytest.mark.parametrize(
    ("mean", "micro", "share"),
    [("tokens", 4, 0.0), ("tokens", 12, 0.0), ("micro_batches", 4, 0.0), ("tokens", 4, 0.5), ("micro_batches", 4, 1.0)],
)
def test_plain_text_joins_the_loss(tmp_path, mean, micro, share):
    texts = ["the quick brown fox", "jumps over the lazy dog " * 3]
    corpus = Corpus(texts, Tokenizer(), 6)
    assert len(corpus) == (len("".join(texts)) + 2) // 6
    blocks = torch.cat([corpus.blocks(Step(n, 9, 1, 5), 5) for n in range(3)])
    assert {tuple(b.tolist()) for b in blocks[: len(corpus)]} == {tuple(b.tolist()) for b in corpus._blocks}
    rounds = [corpus.blocks(Step(n, 9, 1, len(corpus)), len(corpus)) for n in range(2)]
    assert not torch.equal(*rounds) and sorted(rounds[0].tolist()) == sorted(rounds[1].tolist())
    without, _, _ = first_step(tmp_path, ROWS, micro=micro, mean=mean)
    student, teacher = tiny_gpt2(), tiny_gpt2(hidden=24, seed=9)
    term = CorpusLoss(0.5, share, LiveTeacher(teacher))
    joined, _, _ = first_step(tmp_path, ROWS, corpus=corpus, term=term, micro=micro, mean=mean)
    chosen = corpus.blocks(Step(0, 1, 7, len(ROWS)), len(ROWS))
    logits = student(chosen[:, :-1]).logits
    ce = torch.nn.functional.cross_entropy(logits.flatten(0, 1), chosen[:, 1:].flatten())
    p = teacher(chosen[:, :-1]).logits.softmax(-1)
    kl = (p * (p.log() - logits.log_softmax(-1))).sum(-1).mean()
    (0.5 * ((1 - share) * ce + share * kl)).backward()
    for name, p in student.named_parameters():
        key = f"student.{name}"
        torch.testing.assert_close(joined[key] - without[key], p.grad, rtol=1e-3, atol=2e-6)
    with pytest.raises(ValueError, match="needs a teacher"):
        CorpusLoss(1.0, 0.5)
    with pytest.raises(UserError, match="less than one block"):
        Corpus(["short"], Tokenizer(), 60)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["loss=sft", "sampler=rollout"], "mixes in the teacher's text"),
        (["loss=sft", "sampler=on_policy"], "trains on the student's own text"),
        (["loss=minillm"], "reads the rewards of a rollout"),
        (["method=minillm", "loss.temperature=2"], "plain samples"),
        (["sampler=rollout", "sampler.temperature=2"], "no such key"),
        (["sampler=mixed", "sampler.probability=0"], "sampler=fixed"),
        (["sampler=on_policy", "loss=ab", "loss.w_ce=0.5"], "trains on none of them; set it to 0"),
        (["method=minillm", "train.student.global_batch_size=60"], "take 300 or 240"),
        (["sampler=adaptive", "sampler.fresh_share=up"], "none of decreasing, constant, increasing"),
        (["sampler=adaptive", "sampler.capacity=0"], "must be at least 1"),
        (["sampler=on_policy", "sampler.top_p=1.5"], "top_p=1.5"),
        (["sampler=on_policy", "++sampler.probability=0.5"], "has no parameter probability"),
    ],
)
def test_what_does_not_go_together_is_refused(words, why):
    with pytest.raises(UserError, match=why):
        load(["model=micro", *words])


def test_methods_come_apart_on_the_command_line():
    config = load(["model=micro", "method=gkd", "loss=ab"])
    assert (config.loss.name, config.sampler.name, config.sampler.parameters["probability"]) == ("ab", "mixed", 0.5)
    reference = load(["model=gpt2", "method=gkd", "preset=reference"]).sampler
    assert reference.switches == {"labels": "shifted", "eos": "kept", "draw": "fresh"}
    assert {k: reference.parameters[k] for k in reference.switches} == {"labels": "late", "eos": "erased",
                                                                        "draw": "buffer"}  # fmt: skip
    assert (
        load(["model=gpt2", "method=distillm", "preset=reference", "data.pretrain=off"]).sampler.parameters["watched"]
        == "ce"
    )


def test_the_page_tells_a_sampler_of_ones_own():
    page = (Path(__file__).parents[1] / "docs" / "samplers.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    space = {
        "register": lambda _: lambda cls: cls,
        "dataclass": dataclass,
        "StudentText": StudentText,
        "Sample": Sample,
    }
    exec(code, space)
    sampler = space["EverySecond"](temperature=0.5)
    kinds = [sampler.next(ROWS, Step(n, 4, 1, len(ROWS)), FakeWriter())[0].origin for n in range(4)]
    assert kinds == ["dataset", "student"] * 2
    for name in names():
        assert f"| `{name}` |" in page
