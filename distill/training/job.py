"""The training stage: trains a model on encoded rows and leaves its best checkpoint and its training curve."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import get_last_checkpoint

from distill.base.console import bar, say
from distill.base.files import read_object
from distill.base.processes import from_main_process, is_main_process, wait_for_everyone, world_size
from distill.config.model import LoraConfig
from distill.config.objective import LossConfig, SamplerConfig
from distill.config.schema import Config
from distill.config.train import StageTrainConfig
from distill.data.encode import EncodedSet, Encoder
from distill.data.examples import Example
from distill.evaluation.rouge import rouge_l
from distill.generation.engine import generate
from distill.generation.requests import Decoding, Request, stream_name
from distill.losses import build
from distill.losses.trainable import TrainableDivergence
from distill.models.damage import damage_of
from distill.models.load import (
    Weights,
    add_lora,
    check_head,
    check_positions,
    load_model,
    load_tokenizer,
    output_head,
    without_adapter,
)
from distill.models.tokenizers import check_same_tokenizer, common_vocabulary, pad_id
from distill.samplers import Sampler
from distill.samplers import build as build_sampler
from distill.teacher.signal import LiveTeacher, NewTextTeacher, StoredTeacher
from distill.training.arguments import finish_tracker, training_arguments
from distill.training.callbacks import STEP_TIME, Progress, SaveEvery, StepTime
from distill.training.corpus import Corpus
from distill.training.distiller import Distiller
from distill.training.encoding import plain_sampling, training_encoder
from distill.training.objective import CorpusLoss, SpanRelation, objective_terms
from distill.training.sampling import CORRECTION_COLUMNS, LOG_COLUMNS, Sampling
from distill.training.spans import RowSpans, read_spans, tell_unaligned
from distill.training.trainer import DIVERGENCE, SAMPLER, DistillTrainer
from distill.training.writer import StudentWriter

STATE = "trainer_state.json"  # the last file of a checkpoint that Trainer writes
CURVE = [
    "step",
    "epoch",
    "loss",
    "learning_rate",
    "grad_norm",
    "eval_loss",
    "eval_ce",
    "eval_kd",
    "eval_rouge_l",
    *LOG_COLUMNS,
]


@dataclass(frozen=True)
class TrainingJob:
    """The inputs of one training.

    Attributes:
        label: the training's name in progress lines.
        student: the weights that the training starts from.
        teacher: the weights of the teacher; None without a divergence.
        signal: the folder of the teacher's stored hidden states. Without it the teacher runs on every batch.
        loss: the divergence and the weights of the objective's terms.
        schedule: epochs, global batch size, learning rate, and the metric that selects the best checkpoint.
        config: the whole config.
        seed: the training seed.
        train: the encoded training rows. Their responses may be the teacher's.
        valid: the encoded validation rows.
        valid_examples: the validation set. At each validation the student answers its prompts, and ROUGE-L is computed.
        sampler: the sampler's name and parameters.
        pretraining: plain texts for the corpus loss.
        spans: the folder of the stored spans of training and validation rows, for a span loss with a chunker.
    """

    label: str
    student: Weights
    teacher: Weights | None
    signal: Path | None
    loss: LossConfig
    schedule: StageTrainConfig
    config: Config
    seed: int
    train: EncodedSet
    valid: EncodedSet
    valid_examples: Sequence[Example]
    sampler: SamplerConfig
    pretraining: Sequence[str] = ()
    spans: Path | None = None

    @property
    def lora(self) -> LoraConfig | None:
        """The adapters that are trained in place of all weights, if any."""
        return self.config.model.lora


def teacher_dtype(config: Config) -> torch.dtype:
    """The dtype that the frozen teacher runs in."""
    return torch.bfloat16 if config.train.precision == "bf16" else torch.float32


def train(job: TrainingJob, folder: Path) -> dict[str, Any]:
    """Train the student and write the best checkpoint to `folder/model` and the curve to `folder/curve.csv`.

    A run that was stopped continues from the last checkpoint under `folder/checkpoints` and ends in the same weights.
    The checkpoints are not removed here: the store removes them when the artifact is in place.

    Returns:
        Entries for the manifest: the best validation metric and its step, numbers of steps, rows, samples, processes
        and over-long rows, the time of a step, what the student wrote, and the special token ids.

    Raises:
        UserError: the tokenizers of student and teacher differ, a model has too few positions, or the loss is not
            finite.
    """
    tokenizer = load_tokenizer(job.student)
    settings, encoder = job.config.train, training_encoder(job.config, tokenizer)
    for name, rows in {"training": job.train, "validation": job.valid}.items():
        if overlong := rows.describe():
            say(f"  {name} set: {overlong} (limits {settings.max_prompt_length} and {settings.max_length} tokens)")
    checkpoints = folder / "checkpoints"
    last = _last_checkpoint(checkpoints)
    sampler = build_sampler(job.sampler.name, **job.sampler.parameters)
    # Later validations are compared with the first one. A resumed run has its result in the sampler's state.
    validate_first = sampler.needs_reference and last is None
    args = training_arguments(
        job.config, job.schedule, job.label, job.seed, len(job.train.rows), folder, sampler.writes, validate_first
    )
    step_time, model = StepTime(), _distiller(job, tokenizer)
    if last:
        step_time.restore(Path(last))
    sampling = _sampling(job, sampler, model, tokenizer) if sampler.writes else None
    by_length = job.config.preset.micro_batches == "by_length"
    trainer = DistillTrainer(
        model=model,
        args=args,
        train_rows=job.train.rows,
        valid_rows=job.valid.rows,
        tokenizer=tokenizer,
        pad_id=pad_id(tokenizer),
        global_batch_size=job.schedule.global_batch_size,
        generate_score=_scorer(job, tokenizer, encoder),
        sampling=sampling,
        corpus=Corpus(job.pretraining, tokenizer, settings.max_length) if job.pretraining else None,
        loss_optimizer=job.loss.optimizer,
        micro_batch_tokens=settings.max_length * args.per_device_train_batch_size if by_length else None,
        callbacks=[
            Progress(job.label, say),
            step_time,
            *([SaveEvery(settings.save_steps)] if settings.save_steps else []),
        ],
    )
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    if last:
        say(f"  {job.label}: going on from {Path(last).name}")
    try:
        trainer.train(resume_from_checkpoint=last)
    finally:
        finish_tracker(job.config)
        if model.objective.span is not None:
            model.objective.span.spans.close()
    if (span := model.objective.span) is not None:
        tell_unaligned(span.spans.counts)
    if trainer.args.should_save:
        _keep_best(trainer, model, folder)
    return _manifest_entries(job, trainer, step_time, sampling, tokenizer)


def _keep_best(trainer: DistillTrainer, model: Distiller, folder: Path) -> None:
    """Copy the best checkpoint's model to `folder/model`, and write the curve of the training."""
    best = trainer.state.best_model_checkpoint
    assert best is not None
    _copy_model(Path(best), folder / "model")
    if isinstance(model.divergence, TrainableDivergence):  # its network at the end, for `distill.evaluation.density`
        shutil.copy2(Path(best) / DIVERGENCE, folder / DIVERGENCE)
    terms = [f"eval_{term.name}" for term in model.objective.terms]
    _write_curve(trainer.state.log_history, terms, folder / "curve.csv")


def _manifest_entries(
    job: TrainingJob, trainer: DistillTrainer, step_time: StepTime, sampling: Sampling | None, tokenizer: Any
) -> dict[str, Any]:
    """What the artifact's manifest says of a finished training."""
    return {
        "best_metric": {
            job.schedule.select: trainer.state.best_metric,
            "step": trainer.state.best_global_step,
        },
        "steps": trainer.state.global_step,
        "seconds_per_step": step_time.seconds / step_time.steps if step_time.steps else None,
        "samples": len(job.train.rows) * job.schedule.epochs,
        "rows": {"train": len(job.train.rows), "valid": len(job.valid.rows)},
        "micro_batch_size": trainer.args.per_device_train_batch_size,
        "processes": world_size(),
        "written": sampling.written if sampling else None,
        **({"spans": span.spans.counts} if (span := trainer.model.objective.span) is not None else {}),
        "overlong": {"train": dict(job.train.counts), "valid": dict(job.valid.counts)},
        "tokens": {"eos": tokenizer.eos_token_id, "pad": pad_id(tokenizer), "bos": tokenizer.bos_token_id},
    }


def _distiller(job: TrainingJob, tokenizer: Any) -> Distiller:
    torch.manual_seed(job.seed)  # the random weights of new adapters depend on the training seed
    settings = job.config.train
    teacher: LiveTeacher | StoredTeacher | NewTextTeacher | None = None
    divergence = None
    if job.teacher is not None:
        check_same_tokenizer(load_tokenizer(job.teacher), tokenizer)
        stored = StoredTeacher(job.signal) if job.signal is not None else None
        teacher = stored
        if stored is None or job.sampler.kind.writes:
            teacher = live = LiveTeacher(load_model(job.teacher, teacher_dtype(job.config)))
            check_head(live.model)
            if job.sampler.kind.writes:
                teacher = NewTextTeacher(live, stored, remember=settings.teacher_signal == "stored")
        divergence = build(job.loss.name, **job.loss.parameters)
    student = load_model(job.student, torch.float32, merge=job.lora is None)
    if job.lora is not None and job.student.adapter is None:
        student = add_lora(student, job.lora)
    check_head(student)
    check_positions(without_adapter(student).config, settings.max_length, "train.max_length")
    generated = settings.max_prompt_length + job.config.eval.max_new_tokens
    check_positions(without_adapter(student).config, generated, "train.max_prompt_length and eval.max_new_tokens")
    if teacher is not None:
        of_teacher, of_student = (h.weight.shape[0] for h in (teacher.head, output_head(student)))
        if of_teacher != of_student:
            width = min(of_teacher, of_student)
            say(f"  vocabulary widths {of_teacher} (teacher) and {of_student} (student): cut to {width}")
        if isinstance(divergence, TrainableDivergence):
            divergence.prepare(min(of_teacher, of_student), torch.device("cpu"))
    loss, corpus = job.loss, None
    if job.pretraining:
        reader = teacher.live if isinstance(teacher, NewTextTeacher) else teacher
        corpus = CorpusLoss(loss.corpus_weight, loss.w_lm_kd, reader if isinstance(reader, LiveTeacher) else None)
    span, on_data = _span_loss(job, tokenizer), loss.ce_on == "data" and job.sampler.kind.writes
    terms = objective_terms(divergence, loss.w_ce, loss.w_kd, loss.temperature, corpus, span, on_data)
    return Distiller(student, teacher, terms, job.config.preset.loss_mean)


def _span_loss(job: TrainingJob, tokenizer: Any) -> SpanRelation | None:
    """The span loss with the spans of the training's rows, if it is a term of the objective."""
    loss, chunker = job.loss, job.config.chunker
    if not loss.has_spans:
        return None
    stored = read_spans(job.spans) if job.spans is not None else {}
    return SpanRelation(loss.w_span, RowSpans(loss.span, chunker, stored, tokenizer), loss.span.per)


def _sampling(job: TrainingJob, sampler: Sampler, model: Distiller, tokenizer: Any) -> Sampling:
    """The sampler, with a writer that generates the student's responses."""
    assert isinstance(model.teacher, NewTextTeacher) and model.divergence is not None
    limit = "train.max_prompt_length and sampler.max_new_tokens"
    decode = plain_sampling(job.config.eval, sampler)
    for causal_lm in (model.student, model.teacher.live.model):
        longest = job.config.train.max_prompt_length + decode.max_new_tokens
        check_positions(without_adapter(causal_lm).config, longest, limit)
    eos, pad, quirks = tokenizer.eos_token_id, pad_id(tokenizer), job.sampler.parameters
    writer = StudentWriter(
        model.student,
        model.teacher,
        model.divergence,
        decode,
        job.seed,
        eos,
        pad,
        job.config.train.max_length,
        common_vocabulary(tokenizer, load_tokenizer(job.teacher)) if job.teacher is not None else None,
        late=quirks.get("labels") == "late",
        erased=eos if quirks.get("eos") == "erased" and eos == pad else None,
        dtype=teacher_dtype(job.config),
    )
    return Sampling(sampler, writer)


def _scorer(job: TrainingJob, tokenizer: Any, encoder: Encoder) -> Any:
    """A function that gives a model's mean ROUGE-L on the first `valid_rows` validation examples.

    Responses are sampled plainly, with one seed.
    """
    settings, evaluation = job.config.train, job.config.eval
    examples = list(job.valid_examples)[: settings.valid_rows]
    prompts = encoder.prompts(examples).rows
    by_id = {e.id: e for e in examples}
    decoding = Decoding(
        plain_sampling(evaluation), tokenizer.eos_token_id, pad_id(tokenizer), common_vocabulary(tokenizer)
    )
    requests = [
        Request(p.id, p.prompt, stream_name(job.seed, "valid", p.id), evaluation.max_new_tokens) for p in prompts
    ]

    def score(model: Any) -> float:
        with bar(len(requests), "  validation ROUGE-L", "row") as progress_bar:
            responses = generate(model, requests, decoding, progress_bar.update)
        texts = [tokenizer.decode(response.tokens, skip_special_tokens=True) for response in responses]
        references = [by_id[request.id].references for request in requests]
        scores = rouge_l(texts, references, tokenizer=evaluation.rouge_tokenizer)
        return sum(scores) / len(scores)

    return score


def _last_checkpoint(checkpoints: Path) -> str | None:
    """The last sound checkpoint.

    Incomplete ones, which lack the last file (trainer_state.json), are removed. Damaged ones are set aside, with a
    line.
    """
    for folder in checkpoints.glob("checkpoint-*"):
        if not (folder / STATE).is_file() and is_main_process():
            shutil.rmtree(folder)
    while (last := get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None) is not None:
        damage = from_main_process(_damage_with_best(Path(last)))
        if damage is None:
            return last
        aside = Path(last).with_name(f"damaged-{Path(last).name}")
        say(f"  {damage}; the checkpoint is set aside as {aside.name}, and the one before it is used")
        if is_main_process():
            shutil.rmtree(aside, ignore_errors=True)
            Path(last).rename(aside)
        wait_for_everyone()
    return None


def _damage_with_best(checkpoint: Path) -> str | None:
    """What is damaged in a checkpoint, or in the best one before it, which it names; None if nothing."""
    damage = damage_of(checkpoint)
    if damage is None and (best := read_object(checkpoint / STATE).get("best_model_checkpoint")):
        damage = damage_of(checkpoint.with_name(Path(best).name))
    return damage


def _copy_model(best: Path, target: Path) -> None:
    """Copy a checkpoint's model and tokenizer to `target`, without the state of the training."""
    drop = {
        DIVERGENCE,
        SAMPLER,
        STEP_TIME,
        "optimizer.pt",
        "scheduler.pt",
        "scaler.pt",
        STATE,
        "training_args.bin",
    }
    shutil.rmtree(target, ignore_errors=True)
    ignore = shutil.ignore_patterns("rng_state*", *drop)
    shutil.copytree(best, target, ignore=ignore)


def _write_curve(history: list[dict[str, Any]], terms: Sequence[str], path: Path) -> None:
    """Write a CSV file with one line for each logged training step and each validation.

    Args:
        history: Trainer's log.
        terms: the columns of the objective's terms. Those that `CURVE` lacks come last, if they have values, with those
            of corrections and of a trainable divergence (`kd_*`).
    """
    lines = [line for line in history if "loss" in line or "eval_loss" in line]
    logged = dict.fromkeys(name for line in lines for name in line)
    own = [name for name in logged if name.startswith("kd_")]
    more = [name for name in (*terms, *CORRECTION_COLUMNS, *own) if name not in CURVE and name in logged]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*CURVE, *more], extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(lines)
