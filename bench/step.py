"""A training step of the smollm2 pair with a stored teacher: every loss against SFT, and SFT against stock Trainer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from bench.measure import interleaved, made, met, report
from distill.config import load
from distill.data.encode import Collator
from distill.losses import build, names
from distill.models.load import load_model, load_tokenizer
from distill.models.tokenizers import pad_id
from distill.pipeline.plan import Plan
from distill.teacher.signal import StoredTeacher, write_store
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
    batch = Collator(pad_id(tokenizer))(rows)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
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
    rows: list[dict[str, object]] = []
    for name, taken in seconds.items():
        ratio = taken / seconds["sft"]
        reached = ratio >= 1.0 if name == "stock Trainer" else ratio <= asked.get(name, 1.0)
        rows.append({
            "loss": name, "seconds a sample": taken / BATCH, "over SFT": ratio,
            "asked": f"at least {asked[name]}" if name == "stock Trainer" else str(asked.get(name, "")),
            "met": met(reached) if name in asked else "",
        })  # fmt: skip
    report("step", f"A step's forward and backward, smollm2, {BATCH} rows of Dolly, stored teacher, fp32", rows)


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


if __name__ == "__main__":
    main()
