"""Order, splitting, and gradients that do not depend on how a global batch is cut."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from conftest import VOCAB, tiny_gpt2, tiny_llama
from transformers import TrainerCallback, TrainingArguments

from distill.base.errors import UserError
from distill.data.encode import Collator, Encoded
from distill.generation import known
from distill.losses import build
from distill.samplers import build as build_sampler
from distill.teacher.signal import LiveTeacher
from distill.training.batches import RandomOrder, length_groups, micro_batch_size
from distill.training.distiller import Distiller
from distill.training.objective import objective_terms
from distill.training.trainer import DistillTrainer


def rows(count, seed=0, longest=12):
    rng = np.random.default_rng(seed)
    draw = lambda n: [int(x) for x in rng.integers(1, VOCAB, size=n)]  # noqa: E731
    return [
        Encoded(f"row{i}", draw(int(rng.integers(1, longest))), [*draw(int(rng.integers(1, longest))), 0])
        for i in range(count)
    ]


def distiller(seed=0, w_ce=0.5, divergence=None, **more):
    teacher = LiveTeacher(tiny_gpt2(hidden=24, seed=9))
    return Distiller(tiny_gpt2(seed=seed), teacher, objective_terms(divergence or build("ab"), w_ce, 1.0), **more)


class Gradients(TrainerCallback):
    """Keeps what the optimizer is about to see, step by step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.steps.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


def gradients(tmp_path, micro, accumulation, train_rows, micro_batch_tokens=None, **more):
    seen = Gradients()
    args = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation,
        num_train_epochs=1, learning_rate=0.0, max_grad_norm=1e9, save_strategy="no", report_to=[],
        disable_tqdm=True, remove_unused_columns=False, label_names=["labels"], use_cpu=True, seed=3,
    )  # fmt: skip

    class Tokenizer:
        def save_pretrained(self, folder):
            pass

    trainer = DistillTrainer(
        distiller(**more), args, train_rows, train_rows, Tokenizer(), 0, 8, lambda model: 0.0,
        micro_batch_tokens=micro_batch_tokens, callbacks=[seen],
    )  # fmt: skip
    trainer.train()
    return seen.steps


@pytest.mark.parametrize("divergence", [build("ab"), build("alphanet", per="batch")], ids=["ab", "alphanet per batch"])
def test_8x1_is_2x4_is_1x8(tmp_path, divergence):
    """Gradients, not logged losses: Adam and logs hide an error of scale. 20 rows: the last batch is smaller. Rows may
    be put into micro-batches by length."""
    train_rows = rows(20)
    whole = gradients(tmp_path, 8, 1, train_rows, divergence=divergence)
    assert len(whole) == 3
    for micro, accumulation, tokens in [(2, 4, None), (1, 8, None), (2, 4, 1000), (2, 4, 1), (1, 8, 1000)]:
        split = gradients(tmp_path, micro, accumulation, train_rows, tokens, divergence=divergence)
        for ours, theirs in zip(whole, split, strict=True):
            assert ours.keys() == theirs.keys()
            for name in ours:
                torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-7, msg=name)


def test_the_gradient_is_the_token_mean_of_the_global_batch(tmp_path):
    """Against a loop over single rows, written out."""
    train_rows = rows(8)
    model = distiller().train()
    total, tokens = 0.0, 0
    for row in train_rows:
        out = model(**Collator(0)([row]), num_items_in_batch=1)
        total, tokens = total + out["loss"], tokens + int(out["tokens"])
    (total / tokens).backward()
    (step,) = gradients(tmp_path, 4, 2, train_rows)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(step[name], parameter.grad, rtol=1e-4, atol=1e-7)


def test_the_published_mean_is_over_micro_batches(tmp_path):
    """Token means of single rows, averaged: a short row's tokens count more than a long one's."""
    train_rows = rows(8)
    model = distiller().train()
    for row in train_rows:
        (model(**Collator(0)([row]))["loss"] / len(train_rows)).backward()
    (step,) = gradients(tmp_path, 1, 8, train_rows, mean="micro_batches")
    (by_tokens,) = gradients(tmp_path, 1, 8, train_rows)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(step[name], parameter.grad, rtol=1e-4, atol=1e-7)
    assert max((step[name] - by_tokens[name]).abs().max() for name in step) > 1e-3


def test_padding_and_order_change_nothing():
    model, pair = distiller().eval(), rows(2, seed=5)
    batch = Collator(0)(pair)
    loss = model(**batch)["loss"]
    torch.testing.assert_close(model(**Collator(0)(pair[::-1]))["loss"], loss)
    wide = {k: torch.nn.functional.pad(v, (0, 7), value=-100 if k == "labels" else 0)
            for k, v in batch.items() if k not in ("example_ids", "extras")}  # fmt: skip
    torch.testing.assert_close(model(**wide)["loss"], loss)


def test_prompt_tokens_do_not_enter_the_loss_but_their_text_does():
    model = distiller().eval()
    batch = Collator(0)([Encoded("a", [5, 6, 7], [8, 0])])
    out = model(**batch)
    assert int(out["tokens"]) == 2
    logits = model.student(batch["input_ids"]).logits[0]
    expected = torch.nn.functional.cross_entropy(logits[2:4], torch.tensor([8, 0]), reduction="sum")
    torch.testing.assert_close(out["ce_sum"], expected)


def test_the_teacher_stays_in_eval_mode_and_gets_no_gradient():
    teacher = tiny_gpt2(seed=9)
    model = Distiller(tiny_gpt2(), LiveTeacher(teacher), objective_terms(build("fkl"), 0.0, 1.0))
    model.train()
    assert model.student.training and not any(m.training for m in teacher.modules())
    model(**Collator(0)(rows(2)))["loss"].backward()
    assert all(p.grad is None for p in teacher.parameters())


def test_vocabularies_that_differ_by_padding_are_cut():
    wide = tiny_gpt2(vocab=VOCAB + 3, seed=9)
    model = Distiller(tiny_gpt2(), LiveTeacher(wide), objective_terms(build("fkl"), 0.0, 1.0)).eval()
    batch = Collator(0)(rows(2))
    value = model(**batch)["loss"]
    valid = batch["labels"] != -100
    q = model.student(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[valid]
    p = wide(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[valid][:, :VOCAB]
    torch.testing.assert_close(value, build("fkl")(q, p).mean())


def test_temperature_divides_both_logits():
    batch = Collator(0)(rows(2))
    valid = batch["labels"] != -100
    student, teacher = tiny_gpt2(), tiny_gpt2(seed=9)
    model = Distiller(student, LiveTeacher(teacher), objective_terms(build("rkl"), 0.0, 1.0, 2.0)).eval()
    q, p = (m(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[valid] for m in (student, teacher))
    torch.testing.assert_close(model(**batch)["loss"], build("rkl")(q / 2, p / 2).mean())


def test_a_loss_that_is_not_finite_stops_before_the_step(tmp_path):
    class Spoilt(Distiller):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            return out | {"loss": out["loss"] * float("nan")}

    args = TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=2, report_to=[], use_cpu=True,
                             save_strategy="no", disable_tqdm=True, remove_unused_columns=False)  # fmt: skip
    model = Spoilt(tiny_llama())
    before = {n: p.clone() for n, p in model.named_parameters()}
    trainer = DistillTrainer(model, args, rows(4), rows(4), None, 0, 2, lambda model: 0.0)
    with pytest.raises(UserError, match=r"nan at step 1, in the batch of examples row\d, row\d"):
        trainer.train()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_order_is_a_function_of_seed_and_epoch():
    order = RandomOrder(203, seed=1, fill_to=8)
    first = list(order)
    assert sorted(first) == sorted([*range(203), *[203] * 5]) and first[203:] == [203] * 5 and len(order) == 208
    assert list(RandomOrder(203, seed=1))[:203] == first[:203]
    order.set_epoch(1)
    assert list(order) != first and list(RandomOrder(203, seed=2)) != first[:203]


def test_a_responses_weight_does_not_depend_on_its_length():
    """A token's weight in a step is one over the tokens of its global batch; by length of response it is what a draw of
    the other rows at random gives, where batches of like length would give short responses many times as much."""
    lengths = np.random.default_rng(0).lognormal(3.5, 1.0, 1000).astype(int) + 1
    weights = np.zeros(len(lengths))
    order, size, epochs = RandomOrder(len(lengths), seed=0), 8, 60
    for epoch in range(epochs):
        order.set_epoch(epoch)
        for batch in np.array(list(order)).reshape(-1, size):
            weights[batch] += 1 / lengths[batch].sum() / epochs
    rng = np.random.default_rng(1)
    others = rng.choice(lengths, (4000, size - 1)).sum(1)
    quarters = np.array_split(np.argsort(lengths), 4)
    for rows in quarters:
        expected = np.mean([(1 / (lengths[row] + others)).mean() for row in rows])
        assert weights[rows].mean() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("seed", range(20))
def test_groups_by_length_have_the_least_padding(seed):
    """Against a search over all splits of the sorted rows; with a limit that equal groups keep, and a tight one."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 40, size=rng.integers(4, 9)).tolist()
    groups = int(rng.integers(1, 5))
    tight = -(-len(lengths) // groups) * max(lengths)
    for tokens in (10**6, tight):
        found = length_groups(lengths, groups, tokens)
        assert sorted(i for group in found for i in group) == list(range(len(lengths))) and all(found)
        sizes = [len(group) * max(lengths[i] for i in group) for group in found]
        assert len(sizes) == groups and max(sizes) <= max(tokens, tight)
        ordered = sorted(lengths, reverse=True)
        splits = [[0, *ends, len(ordered)] for ends in combinations(range(1, len(ordered)), groups - 1)]
        sums = [[(e - s) * ordered[s] for s, e in pairwise(split)] for split in splits]
        assert sum(sizes) == min(sum(x) for x in sums if max(x) <= max(tokens, tight))


@pytest.mark.parametrize(
    ("size", "at_most", "processes", "expected"),
    [(32, 8, 1, 8), (60, 8, 1, 6), (8, 3, 1, 2), (32, 8, 4, 8), (7, 3, 1, 1)],
)
def test_micro_batch(size, at_most, processes, expected):
    assert micro_batch_size(size, at_most, processes) == expected


def test_a_global_batch_that_does_not_split_over_processes():
    with pytest.raises(UserError, match="no multiple of the 3 processes"):
        micro_batch_size(8, 8, 3)


@pytest.mark.parametrize("build_model", [tiny_gpt2, tiny_llama])
def test_the_estimate_of_memory_and_sizes(build_model, tmp_path):
    """Sizes from the config alone are the model's, and activations are within a factor of what autograd keeps."""
    from distill.config.model import LoraConfig
    from distill.models.load import Weights, add_lora, shape_of
    from distill.training.estimate import estimate_training

    model = build_model(hidden=64).train()
    model.save_pretrained(tmp_path)
    weights, lora = Weights(str(tmp_path)), LoraConfig(r=4, alpha=8, dropout=0.0, targets=["q_proj", "v_proj"])
    shape = shape_of(weights)
    assert shape.parameters == model.num_parameters()
    long_rows = [Encoded(f"r{i}", [1] * 20, [2] * 12) for i in range(8)]
    told = estimate_training(shape, None, long_rows, 4, "fp32", None, live=False)
    assert told.parts["optimizer"] == 8 * model.num_parameters()
    for corrections in (0, 1):  # the keys and values of four texts, which their model keeps
        sampler = build_sampler("on_policy", scrg={"corrections": corrections}, max_new_tokens=12)
        more, less = (
            estimate_training(
                shape, None, long_rows, 4, "fp32", shape, True, sampler=sampler, step_rows=4, cached_tokens=tokens
            )
            for tokens in (1000, 64)
        )
        read = known.read(model, [[1] * 32] * 4, 0)
        kept_bytes = sum(x.nbytes for _, of_text in read for layer in of_text.layers for x in layer)
        told_bytes, of_half = (e.parts.get("texts to correct", 0.0) for e in (more, less))
        # Two models, before and after a correction; a model may have fewer key heads than heads
        assert (4 * kept_bytes <= told_bytes <= 8 * kept_bytes) if corrections else told_bytes == 0
        assert of_half == told_bytes / 2
    kept: dict[int, int] = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    batch = Collator(0)(long_rows[:4])
    distiller_ = Distiller(model)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        distiller_(**batch)["loss"].backward()
    measured = sum(size for at, size in kept.items() if at not in own)
    assert 0.5 < told.parts["activations"] / measured < 2
    if build_model is tiny_llama:
        adapted = add_lora(model, lora)
        trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        assert shape.lora_parameters(4, lora.targets) == trained
