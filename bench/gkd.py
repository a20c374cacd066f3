"""The whole fixed-data training loop against TRL's GKDTrainer (lmbda=0): seconds a sample and peak memory.

The same pair, rows, batches in the same order, and precision. Each run is a process of its own, and they take turns.
Ours pays for its teacher signal apart: the store is written once, whatever the epochs, and its time is told.
`python -m bench.gkd ours|live|trl|store` prints what one run took.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from bench.measure import in_own_process, made, met, peak_mb, report
from distill.config import load
from distill.data.encode import IGNORE, Collator, Encoded
from distill.losses import build
from distill.models.load import load_model, load_tokenizer
from distill.models.tokenizers import pad_id
from distill.pipeline.plan import Plan
from distill.teacher.signal import LiveTeacher, StoredTeacher, write_store
from distill.training.batches import RandomOrder
from distill.training.distiller import Distiller
from distill.training.encoding import training_encoder
from distill.training.objective import objective_terms
from distill.training.trainer import DistillTrainer

BATCH, STEPS, ROUNDS = 4, 5, 2  # an epoch is STEPS batches; the first epoch warms up, the second is timed
WORDS = ["model=smollm2", "data.train.limit=60", "train.precision=fp32"]
SHARED: dict[str, Any] = {
    "per_device_train_batch_size": BATCH, "max_steps": 2 * STEPS, "learning_rate": 1e-4, "report_to": [],
    "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no", "remove_unused_columns": False, "seed": 1,
    "use_cpu": not torch.cuda.is_available(),
}  # fmt: skip


class Pair:
    """Weights, tokenizer and rows that both sides get."""

    def __init__(self, rows: int = BATCH * STEPS) -> None:
        config = load(WORDS)
        plan = Plan(config)
        self.teacher = made(plan, plan.base("teacher"), "teacher")
        self.student = made(plan, plan.base("student"))
        self.tokenizer = load_tokenizer(self.student)
        encoder = training_encoder(config, self.tokenizer)
        self.rows = encoder.pairs(plan.data[0].examples, config.train.max_length).rows[:rows]


class Clock(TrainerCallback):
    """When each step ended: the second epoch is timed whole, with data, clipping and optimizer."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def timed(trainer: Any) -> float:
    """Seconds a sample of the second epoch."""
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    return (clock.ends[-1] - clock.ends[STEPS - 1]) / STEPS / BATCH


def ours(pair: Pair) -> float:
    """The teacher's hidden states stored beforehand."""
    with tempfile.TemporaryDirectory() as folder:
        write_store(pair.teacher, pair.rows, pad_id(pair.tokenizer), torch.float32, Path(folder))
        return _trained(pair, StoredTeacher(Path(folder)), folder)


def live(pair: Pair) -> float:
    """The teacher run on every batch."""
    with tempfile.TemporaryDirectory() as folder:
        return _trained(pair, LiveTeacher(load_model(pair.teacher)), folder)


def _trained(pair: Pair, teacher: LiveTeacher | StoredTeacher, folder: str) -> float:
    distiller = Distiller(load_model(pair.student), teacher, objective_terms(build("jsd"), 0.0, 1.0))
    args = TrainingArguments(output_dir=f"{folder}/out", label_names=["labels"], **SHARED)
    trainer = DistillTrainer(
        distiller, args, pair.rows, pair.rows[:1], pair.tokenizer, pad_id(pair.tokenizer), BATCH, lambda model: 0.0
    )
    return timed(trainer)


def trl(pair: Pair) -> float:
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    collate = Collator(pad_id(pair.tokenizer))

    def collator(items: list[dict[str, int]]) -> dict[str, Any]:
        rows: list[Encoded] = [pair.rows[item["index"]] for item in items]
        batch = collate(rows)
        # GKDTrainer shifts labels itself, and wants the prompts beside them
        labels = torch.nn.functional.pad(batch["labels"], (1, 0), value=IGNORE)[:, :-1]
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels,
                "prompts": batch["input_ids"], "prompt_attention_mask": batch["attention_mask"]}  # fmt: skip

    with tempfile.TemporaryDirectory() as folder:
        args = GKDConfig(output_dir=folder, lmbda=0.0, beta=0.5, gradient_checkpointing=False, bf16=False, **SHARED)

        class SameBatches(GKDTrainer):  # type: ignore[misc]
            """Rows in the same order as ours."""

            def _get_train_sampler(self, *_: Any) -> RandomOrder:
                return RandomOrder(len(pair.rows), self.args.seed)

        trainer = SameBatches(
            load_model(pair.student), load_model(pair.teacher), args, collator,
            Dataset.from_dict({"index": list(range(len(pair.rows)))}), processing_class=pair.tokenizer,
        )  # fmt: skip
        return timed(trainer)


def store(pair: Pair) -> float:
    """Seconds a sample that the stored signal costs, once."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        write_store(pair.teacher, pair.rows, pad_id(pair.tokenizer), torch.float32, Path(folder))
        return (time.perf_counter() - started) / len(pair.rows)


RUNS = {"ours": ours, "live": live, "trl": trl, "store": store}


def main() -> None:
    Pair()  # makes the base weights, so that no run is timed or weighed with them
    measured: dict[str, list[list[float]]] = {name: [] for name in RUNS}
    for _ in range(ROUNDS):
        for name in RUNS:
            measured[name].append(in_own_process("bench.gkd", name))
    seconds = {name: min(f[0] for f in found) for name, found in measured.items()}
    peaks = {name: min(f[1] for f in found) for name, found in measured.items()}
    saved = seconds["live"] - seconds["ours"]  # a sample and epoch
    pays = seconds["store"] / saved if saved > 0 else float("inf")  # epochs until the store has paid for itself
    faster, smaller = seconds["trl"] / seconds["ours"], peaks["ours"] / peaks["trl"]
    told = {
        "ours": ("3x, 0.4x", met(faster >= 3 and smaller <= 0.4)),
        "store": (f"once; pays after {pays:.2f} epochs (asked: 2)", met(pays <= 2)),
    }
    rows: list[dict[str, object]] = []
    for name in RUNS:
        asked, reached = told.get(name, ("", ""))
        rows.append({
            "run": name, "seconds a sample": seconds[name], "peak MiB": peaks[name],
            "TRL's time over it": seconds["trl"] / seconds[name], "its peak over TRL's": peaks[name] / peaks["trl"],
            "asked": asked, "met": reached,
        })  # fmt: skip
    report("gkd", f"Fixed-data training, smollm2, JSD, Dolly, batch {BATCH}, fp32", rows)


if __name__ == "__main__":
    if sys.argv[1:]:
        figure = RUNS[sys.argv[1]](Pair())
        print(figure, peak_mb())
    else:
        main()
