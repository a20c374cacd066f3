"""A training step of the smollm2 pair with a stored teacher: every loss against SFT, and SFT against stock Trainer.

`python -m bench.step order` times what the order of rows costs: global batches drawn at random, with rows of similar
length in one micro-batch, against the order of before, global batches of similar length. `python -m bench.step weights`
computes what a response's length weighs in each order.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainingArguments

from bench.measure import interleaved, made, met, report
from distill.config import load
from distill.data.encode import Collator
from distill.data.gpt2_tokens import token_counts
from distill.data.templates import render
from distill.losses import build, names
from distill.models.load import load_model, load_tokenizer
from distill.models.tokenizers import pad_id
from distill.pipeline.plan import Plan
from distill.teacher.signal import StoredTeacher, write_store
from distill.training.batches import RandomOrder, length_groups, micro_batch_size
from distill.training.distiller import Distiller
from distill.training.encoding import training_encoder
from distill.training.objective import objective_terms

BATCH = 8
LIGHT = ("fkl", "rkl", "jsd", "ab")
WORDS = ["model=smollm2", "data.train.limit=40", "train.precision=fp32"]


def main() -> None:
    config = load(WORDS)
    plan = Plan(config)
    teacher, student = made(plan, plan.base("teacher"), "teacher"), made(plan, plan.base("student"))
    tokenizer = load_tokenizer(student)
    encoded = training_encoder(config, tokenizer).pairs(plan.data[0].examples, config.train.max_length).rows
    rows = sorted(encoded, key=lambda r: len(r.prompt) + len(r.response))[12 : 12 + BATCH]  # of middling length
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = _on(device, Collator(pad_id(tokenizer))(rows))
    model = load_model(student).to(device).train()
    with tempfile.TemporaryDirectory() as scratch:
        write_store(teacher, rows, pad_id(tokenizer), torch.float32, Path(scratch))
        signal = StoredTeacher(Path(scratch)).to(device)
        runs: dict[str, Callable[[], object]] = {"stock Trainer": _stock(model, batch, scratch)}
        runs["sft"] = _ours(Distiller(model).train(), batch)
        for name in names():
            partner = ["sampler=rollout"] if name == "minillm" else []  # minillm reads a rollout's rewards
            loss = load([*WORDS, f"loss={name}", *partner]).loss
            divergence = build(name, **loss.parameters)
            terms = objective_terms(divergence, loss.w_ce, loss.w_kd, loss.temperature)
            runs[name] = _ours(Distiller(model, signal, terms).train(), batch)
        seconds = interleaved(runs, 3)
    asked = {name: 1.15 if name in LIGHT else 1.3 for name in names()} | {"stock Trainer": 1.0}
    lines: list[dict[str, object]] = []
    for name, taken in seconds.items():
        ratio = taken / seconds["sft"]
        reached = ratio >= 1.0 if name == "stock Trainer" else ratio <= asked.get(name, 1.0)
        lines.append({
            "loss": name, "seconds a sample": taken / BATCH, "over SFT": ratio,
            "asked": f"at least {asked[name]}" if name == "stock Trainer" else str(asked.get(name, "")),
            "met": met(reached) if name in asked else "",
        })  # fmt: skip
    report("step", f"A step's forward and backward, smollm2, {BATCH} rows of Dolly, stored teacher, fp32", lines)


def _on(device: torch.device, batch: dict[str, Any]) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def _ours(distiller: Distiller, batch: dict[str, Any]) -> Callable[[], object]:
    def run() -> None:
        distiller.student.zero_grad()
        distiller(**batch)["loss"].backward()

    return run


def _stock(model: Any, batch: dict[str, Any], folder: str) -> Callable[[], object]:
    """Stock Trainer's own step of fine-tuning: logits everywhere, the model's own loss."""
    args = TrainingArguments(output_dir=folder, report_to=[], use_cpu=not torch.cuda.is_available())
    trainer = Trainer(model=model, args=args)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1  # what train() would set
    labels = torch.nn.functional.pad(batch["labels"], (1, 0), value=-100)[:, :-1]  # the model shifts them itself
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}

    def run() -> None:
        model.zero_grad()
        trainer.training_step(model, inputs)

    return run


# Of each pair: how many rows are trained on, and the micro-batch size for the order of before. micro has the same size
# for both; smollm2 read 4 rows at a time before and reads 2 now, which pads less.
ORDERS = {"smollm2": (64, 4), "micro": (1024, 16)}
POOL = 16  # the order of before sorted this many global batches by length together


def order() -> None:
    """Forward and backward passes of fine-tuning over the same rows in both orders, pair by pair."""
    lines: list[dict[str, object]] = []
    for name, (count, size_before) in ORDERS.items():
        config = load([f"model={name}", "train.precision=fp32"])
        plan = Plan(config)
        student = made(plan, plan.base("student"))
        tokenizer = load_tokenizer(student)
        rows = training_encoder(config, tokenizer).pairs(plan.data[0].examples, config.train.max_length).rows[:count]
        lengths = [len(row.prompt) + len(row.response) for row in rows]
        size = config.train.student.global_batch_size
        micro = micro_batch_size(size, config.train.micro_batch_size, 1)
        orders = {
            "similar length": _pooled(lengths, size, size_before),
            "random": _random(lengths, size, micro, micro * config.train.max_length),
        }
        collate = Collator(pad_id(tokenizer))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        distiller = Distiller(load_model(student).to(device).train())
        batches = {k: [_on(device, collate([rows[i] for i in part])) for part in parts] for k, parts in orders.items()}
        seconds = interleaved({key: _passes(distiller, of_order) for key, of_order in batches.items()}, 2)
        for key, parts in orders.items():
            ratio = seconds[key] / seconds["similar length"]
            lines.append({
                "pair": name, "order": key, "rows of a global batch": size, "micro-batches": len(parts),
                "tokens over unpadded": _over_unpadded(parts, lengths),
                "seconds a row": seconds[key] / count, "ratio": ratio,
                "asked": "1.05" if key == "random" else "", "met": met(ratio <= 1.05) if key == "random" else "",
            })  # fmt: skip
    lines += _padding()
    report("step_order", "Forward and backward of fine-tuning by the order of rows, fp32", lines)


# Trainings that are too large to be timed here: rows of a global batch, and `micro_batch_size`
OF_GPT2 = {"gpt2 student": (32, 4), "gpt2 teacher": (8, 2)}


def _padding() -> list[dict[str, object]]:
    """The padding of both orders for GPT-2's own tokens, rows of `data=dolly_dev`; nothing is timed."""
    config = load(["model=smollm2"])
    examples = Plan(config).data[0].examples
    texts = [render(config.data.template, e.instruction, e.input) + e.response for e in examples]
    lengths = [min(512, n + 1) for n in token_counts(texts)]
    lines: list[dict[str, object]] = []
    for name, (size, micro) in OF_GPT2.items():
        orders = {
            "similar length": _pooled(lengths, size, micro), "random": _random(lengths, size, micro, micro * 512),
        }  # fmt: skip
        for key, parts in orders.items():
            lines.append({
                "pair": name, "order": key, "rows of a global batch": size, "micro-batches": len(parts),
                "tokens over unpadded": _over_unpadded(parts, lengths),
                "seconds a row": "", "ratio": "", "asked": "", "met": "",
            })  # fmt: skip
    return lines


def _over_unpadded(parts: list[list[int]], lengths: list[int]) -> float:
    """Tokens of the micro-batches with padding, over those without."""
    return sum(len(part) * max(lengths[i] for i in part) for part in parts) / sum(lengths)


def weights() -> None:
    """The weight of short and long responses of dolly_dev, in batches of 32 rows, over 200 epochs."""
    examples = Plan(load(["model=smollm2"])).data[0].examples
    sizes = np.array(token_counts([e.response for e in examples])) + 1  # with EOS
    whole = sizes + np.array(token_counts([f"{e.instruction} {e.input}" for e in examples]))
    lines: list[dict[str, object]] = []
    for name, split in {
        "random, mean over the global batch (now)": lambda epoch: _cut(_shuffled(len(sizes), epoch), 32),
        "similar length in pools of 16 batches (before)": lambda epoch: _pooled(whole.tolist(), 32, 32, epoch),
        "random, means of 8 rows (published)": lambda epoch: _cut(_shuffled(len(sizes), epoch), 8),
    }.items():
        of_token = np.zeros(len(sizes))  # the weight of a row's token, summed over epochs
        for epoch in range(200):
            for part in split(epoch):
                of_token[part] += len(part) / sizes[part].sum()
        share = of_token * sizes / (of_token * sizes).sum()
        short, long = sizes <= 16, sizes > 128
        lines.append({
            "order": name, "share of responses over 128 tokens": share[long].sum(),
            "share of responses up to 16": share[short].sum(),
            "a short response's token over a long one's": of_token[short].mean() / of_token[long].mean(),
        })  # fmt: skip
    report("step_weights", "What the loss weighs by length, dolly_dev, GPT-2 tokens", lines)


def _shuffled(rows: int, epoch: int) -> list[int]:
    order = RandomOrder(rows, 0)
    order.set_epoch(epoch)
    return list(order)


def _cut(rows: list[int], size: int) -> list[list[int]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _pooled(lengths: list[int], size: int, micro: int, seed: int = 0) -> list[list[int]]:
    """Micro-batches of the order of before."""
    rows, parts = np.random.default_rng(seed).permutation(len(lengths)), []
    for start in range(0, len(rows), POOL * size):
        pool = rows[start : start + POOL * size]
        pool = pool[np.argsort(np.asarray(lengths)[pool], kind="stable")]
        parts += [pool[i : i + micro].tolist() for i in range(0, len(pool), micro)]
    return parts


def _random(lengths: list[int], size: int, micro: int, tokens: int) -> list[list[int]]:
    """Micro-batches of random global batches."""
    parts: list[list[int]] = []
    for batch in _cut(_shuffled(len(lengths), 0), size):
        groups = length_groups([lengths[i] for i in batch], -(-len(batch) // micro), tokens)
        parts += [[batch[i] for i in group] for group in groups]
    return parts


def _passes(distiller: Distiller, batches: list[dict[str, Any]]) -> Callable[[], object]:
    def run() -> None:
        distiller.student.zero_grad()
        for batch in batches:
            distiller(**batch)["loss"].backward()

    return run


if __name__ == "__main__":
    {"order": order, "weights": weights}.get("".join(sys.argv[1:]), main)()
