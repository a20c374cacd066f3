"""Training on text that the student writes: seconds a sample of each method over plain KD's, and of TRL's trainers.

`methods` runs the pipeline's own training stage, a process each, and reads the time of its steps, writing included,
from the manifest; what is done once (the teacher's stored hidden states) is not in it. The teacher is the pair's own
base weights, and the student starts from a short fine-tuning, as in the papers, so that its texts end. `loops` sets the
training loop against TRL's GKDTrainer (lmbda=1) and DistillationTrainer on the same pair, prompts, lengths, batches and
precision: all train on what the student has just written.
`python -m bench.on_policy method NAME` prints what one method took, `python -m bench.on_policy ours|gkd|distillation`
one loop's.
"""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any

import pandas as pd
import torch
from transformers import TrainingArguments

from bench.gkd import SHARED, Clock, Pair
from bench.measure import in_own_process, made, met, peak_mb, report
from distill.config import load
from distill.config.template import named
from distill.data.templates import render
from distill.losses import build
from distill.models.load import load_model
from distill.models.tokenizers import pad_id
from distill.pipeline.plan import Plan
from distill.pipeline.store import MANIFEST
from distill.samplers import Step
from distill.samplers import build as build_sampler
from distill.teacher.signal import LiveTeacher, NewTextTeacher
from distill.training.distiller import Distiller
from distill.training.encoding import plain_sampling
from distill.training.objective import objective_terms
from distill.training.sampling import Sampling
from distill.training.trainer import DistillTrainer
from distill.training.writer import StudentWriter

# An epoch is 2 batches of 16; MiniLLM's rollouts are one batch's texts and are read four times, as published (256 texts
# there). The seeds are the first whose draws come out as the method's probabilities say: half of GKD's batches the
# student's, half of DistiLLM's at a threshold of 0.5, half of those written now and half replayed.
BATCH, EPOCHS, NEW, ROUNDS, LOOP_ROUNDS = 16, 2, 128, 2, 1
PIPELINE = [
    "model=smollm2", f"data.train.limit={2 * BATCH}", "data.valid.limit=2", f"train.student.epochs={EPOCHS}",
    f"train.student.global_batch_size={BATCH}", "train.start.epochs=0", "train.student.select=loss",
    f"eval.max_new_tokens={NEW}", "train.valid_rows=1",
]  # fmt: skip
START = ["model=smollm2", "loss=sft", "data.train.limit=256", "data.valid.limit=8", "train.valid_rows=1",
         "train.student.epochs=1", "train.student.select=loss",
         "train.precision=fp32"]  # which every processor can train in  # fmt: skip
LOOP_STEPS = 3
LOOP = SHARED | {"max_steps": LOOP_STEPS, "gradient_accumulation_steps": BATCH // SHARED["per_device_train_batch_size"]}
METHODS: dict[str, tuple[list[str], float | None, float | None]] = {  # overrides, asked and published ratio over KD
    "sft": (["method=sft"], None, 0.344 / 0.649),
    "kd": (["method=kd"], None, 1.0),
    "distillm": (["method=distillm", "sampler.threshold=0.5", "sampler.eps=100", "sampler.fresh_share=constant",
                  f"sampler.capacity={BATCH}"], 1.4, 1.331 / 0.649),
    "gkd": (["method=gkd"], 2.0, 2.078 / 0.649),
    "imitkd": (["method=imitkd"], 3.0, None),
    "minillm": (["method=minillm", f"sampler.rollouts={BATCH}"], 4.5, 4.452 / 0.649),
}  # fmt: skip


def method(name: str) -> tuple[float, float, float]:
    """Seconds a sample, the share of rows that the student wrote, and tokens a written text."""
    return trained([*METHODS[name][0], f"train.seed={seed(name)}"], name != "sft")


def trained(words: list[str], from_start: bool = True) -> tuple[float, float, float]:
    """Train by the pipeline and tell seconds a sample, the share of the student's rows, and tokens a written text.

    Args:
        words: the overrides of the row.
        from_start: whether the student starts from the short fine-tuning; if not, from its base weights.
    """
    start = Plan(load(START))  # in the store that stays
    given = [f"model.teacher.path={made(start, start.base('teacher'), 'teacher').base}"]
    given += [f"model.student.path={made(start, start.student).base}"] if from_start else []
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(load([*PIPELINE, *words, *given, f"paths.store={folder}"]))
        made(plan, plan.student)
        manifest = json.loads((plan.store.folder(plan.student) / MANIFEST).read_text())
        curve = pd.read_csv(plan.store.folder(plan.student) / "curve.csv")
    written = manifest["written"] or {"texts": 0, "tokens": 0}
    share = float(curve["student_share"].mean()) if written["texts"] else 0.0
    tokens = written["tokens"] / max(1, written["texts"])
    return manifest["seconds_per_step"] * manifest["steps"] / manifest["samples"], share, tokens


def seed(name: str) -> int:
    """The first training seed whose draws are the method's probabilities."""
    steps = 2 * EPOCHS
    for found in range(1, 10_000):
        if name == "gkd":
            own = [Step(n, steps, found, BATCH).rng("mixed").random() < 0.5 for n in range(steps)]
            if sum(own) == steps // 2:
                return found
        elif name == "distillm":
            drawn = [Step(n, steps, found, BATCH).rng("adaptive").random() for n in range(steps)]
            own = [x for x in drawn if x < 0.5]
            if len(own) == steps // 2 and sum(x < 0.25 for x in own) == steps // 4 and own[0] < 0.25:
                return found
        else:
            return found
    raise AssertionError(name)


def methods() -> None:
    start = Plan(load(START))
    made(start, start.student)
    measured: dict[str, list[list[float]]] = {name: [] for name in METHODS}
    for _ in range(ROUNDS):
        for name in METHODS:
            measured[name].append(in_own_process("bench.on_policy", "method", name))
            print(name, *(f"{x:.3g}" for x in measured[name][-1]), flush=True)
    best = {name: min(found) for name, found in measured.items()}
    rows: list[dict[str, object]] = []
    for name, (_, asked, published) in METHODS.items():
        seconds, share, tokens, peak = best[name]
        over = seconds / best["kd"][0]
        rows.append({
            "method": name, "seconds a sample": seconds, "over KD": over, "published": published or "",
            "asked": "" if asked is None else str(asked), "met": "" if asked is None else met(over <= asked),
            "student's rows": share, "tokens a text": tokens, "peak MiB": peak,
        })  # fmt: skip
    report("on_policy_methods", f"Methods, smollm2, Dolly, batch {BATCH}, {NEW} new tokens, bf16", rows)


def started() -> Pair:
    """The pair with the student that has been fine-tuned for a while."""
    pair = Pair(BATCH * LOOP_STEPS)
    start = Plan(load(START))
    pair.student = made(start, start.student)
    return pair


def ours(pair: Pair) -> float:
    """The engine writes the global batch; the teacher reads it as it is trained on."""
    config = load(["model=smollm2", f"eval.max_new_tokens={NEW}"])
    student, taught = load_model(pair.student), NewTextTeacher(LiveTeacher(load_model(pair.teacher)), None, False)
    divergence, pad = build("jsd"), pad_id(pair.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        distiller = Distiller(student, taught, objective_terms(divergence, 0.0, 1.0))
        args = TrainingArguments(output_dir=f"{folder}/out", label_names=["labels"], **LOOP)
        sampler = build_sampler("on_policy", max_new_tokens=NEW)
        decode = plain_sampling(config.eval, sampler)
        writer = StudentWriter(
            student, taught, divergence, decode, 1, pair.tokenizer.eos_token_id, pad, config.train.max_length
        )
        trainer = DistillTrainer(
            distiller, args, pair.rows, pair.rows[:1], pair.tokenizer, pad, BATCH,
            lambda model: 0.0, sampling=Sampling(sampler, writer),
        )  # fmt: skip
        return timed(trainer)


def gkd(pair: Pair) -> float:
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    pad = pad_id(pair.tokenizer)

    def collator(items: list[dict[str, int]]) -> dict[str, Any]:
        rows = [pair.rows[item["index"]] for item in items]
        longest = max(len(row.prompt) for row in rows)
        ids = torch.full((len(rows), longest), pad)
        for line, row in zip(ids, rows, strict=True):
            line[longest - len(row.prompt) :] = torch.tensor(row.prompt)
        mask = torch.stack([(torch.arange(longest) >= longest - len(row.prompt)).long() for row in rows])
        return {"input_ids": ids, "attention_mask": mask, "labels": ids, "prompts": ids, "prompt_attention_mask": mask}

    with tempfile.TemporaryDirectory() as folder:
        args = GKDConfig(output_dir=folder, lmbda=1.0, beta=0.5, temperature=1.0, max_new_tokens=NEW,
                         gradient_checkpointing=False, bf16=False, **LOOP)  # fmt: skip
        trainer = GKDTrainer(
            load_model(pair.student), load_model(pair.teacher), args, collator,
            Dataset.from_dict({"index": list(range(len(pair.rows)))}), processing_class=pair.tokenizer,
        )  # fmt: skip
        return timed(trainer)


def distillation(pair: Pair) -> float:
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    known = {row.id for row in pair.rows}
    examples = [e for e in Plan(load(["model=smollm2"])).data[0].examples if e.id in known]
    prompts = [render(named("alpaca"), e.instruction, e.input) for e in examples]
    with tempfile.TemporaryDirectory() as folder:
        args = DistillationConfig(output_dir=folder, beta=0.5, temperature=1.0, max_completion_length=NEW,
                                  gradient_checkpointing=False, bf16=False, **LOOP)  # fmt: skip
        tokenizer = pair.tokenizer
        tokenizer.chat_template = None
        trainer = DistillationTrainer(
            model=load_model(pair.student), teacher_model=load_model(pair.teacher), args=args,
            train_dataset=Dataset.from_dict({"prompt": prompts}), processing_class=tokenizer,
        )  # fmt: skip
        return timed(trainer)


def timed(trainer: Any) -> float:
    """Seconds a sample of the steps after the first, which warms up."""
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    return (clock.ends[-1] - clock.ends[0]) / (len(clock.ends) - 1) / BATCH


RUNS = {"ours": ours, "gkd": gkd, "distillation": distillation}


def loops() -> None:
    started()  # so that no run is timed with it
    measured: dict[str, list[list[float]]] = {name: [] for name in RUNS}
    for _ in range(LOOP_ROUNDS):  # of minutes each
        for name in RUNS:
            measured[name].append(in_own_process("bench.on_policy", name))
            print(name, *(f"{x:.3g}" for x in measured[name][-1]), flush=True)
    best = {name: min(found) for name, found in measured.items()}
    rows: list[dict[str, object]] = []
    for name, (seconds, peak) in best.items():
        over = seconds / best["ours"][0]
        rows.append({
            "run": {"gkd": "TRL GKDTrainer, lmbda=1", "distillation": "TRL DistillationTrainer"}.get(name, name),
            "seconds a sample": seconds, "its time over ours": over, "asked": "" if name == "ours" else "2",
            "met": "" if name == "ours" else met(over >= 2), "peak MiB": peak,
        })  # fmt: skip
    title = f"On-policy training, smollm2, JSD, Dolly, batch {BATCH} in fours, {NEW} new tokens, fp32"
    report("on_policy", title, rows)


def main(words: list[str]) -> None:
    if words[:1] == ["method"]:
        print(*method(words[1]), peak_mb())
    elif words:
        print(RUNS[words[0]](started()), peak_mb())
    else:
        methods()
        loops()


if __name__ == "__main__":
    main(sys.argv[1:])
