"""The arguments of transformers' Trainer for a config, and the experiment tracker that it reports to."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import TrainingArguments

from distill.base.console import say
from distill.base.hub import reachable
from distill.base.processes import world_size
from distill.config.schema import Config
from distill.config.train import StageTrainConfig
from distill.training.batches import micro_batch_size


def training_arguments(
    config: Config,
    schedule: StageTrainConfig,
    label: str,
    seed: int,
    rows: int,
    folder: Path,
    log_each_step: bool,
    validate_first: bool,
) -> TrainingArguments:
    """Trainer's arguments for one training stage.

    Args:
        label: the name of the run in the tracker.
        seed: the seed of the order of rows and of dropout.
        rows: the number of rows of the training set.
        folder: checkpoints go to `folder/checkpoints`.
        log_each_step: whether every step is logged. Otherwise a training is logged about 50 times, and at least every
            10 steps.
        validate_first: whether there is a validation before the first step.

    Raises:
        UserError: the global batch size is not a multiple of the number of processes.
    """
    settings, world = config.train, world_size()
    micro = micro_batch_size(schedule.global_batch_size, settings.rows_per_pass(schedule), world)
    betas = schedule.betas or (0.9, 0.999)
    shape = schedule.schedule or settings.schedule
    warmup = settings.warmup_steps if schedule.warmup_steps is None else schedule.warmup_steps
    steps = -(-rows // schedule.global_batch_size) * schedule.epochs
    args = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=schedule.global_batch_size // (micro * world),
        num_train_epochs=schedule.epochs,
        learning_rate=schedule.lr,
        lr_scheduler_type="constant_with_warmup" if shape == "constant" else shape,
        warmup_steps=warmup,
        weight_decay=settings.weight_decay if schedule.weight_decay is None else schedule.weight_decay,
        adam_beta1=betas[0],
        adam_beta2=betas[1],
        max_grad_norm=settings.max_grad_norm,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        metric_for_best_model=schedule.select,
        greater_is_better=schedule.select == "rouge_l",
        eval_on_start=validate_first,
        logging_steps=1 if log_each_step else max(1, min(10, steps // 50)),
        logging_nan_inf_filter=False,  # filtering would hide the values that `compute_loss` stops on
        remove_unused_columns=False,
        label_names=["labels"],
        seed=seed,
        data_seed=seed,
        bf16=settings.precision == "bf16",
        use_cpu=not torch.accelerator.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        ddp_broadcast_buffers=False,  # the only buffer is a stored teacher's head, equal in every process
        report_to=_tracker(config),
        run_name=label,
    )
    # One process drives one device. Several devices need several processes (torchrun, accelerate launch).
    args._n_gpu = min(1, torch.cuda.device_count())
    return args


def _tracker(config: Config) -> list[str]:
    """The names of Trainer's integrations to report to.

    wandb works offline if no user is logged in or its server cannot be reached.
    """
    if config.tracker.name == "csv":
        return []
    import os

    import wandb

    os.environ["WANDB_PROJECT"] = config.tracker.project
    os.environ.setdefault("WANDB_DIR", config.paths.store)
    given = os.environ.get("WANDB_BASE_URL")
    if os.environ.get("WANDB_MODE", "online") not in ("offline", "dryrun", "disabled"):
        server = given or str(wandb.Settings().base_url)
        reason = f"{server} cannot be reached" if not reachable(server) else None
        if reason is None and not wandb.login(prompt=False):
            reason = "no user is logged in"
        if reason is not None:
            say(f"tracker=wandb works offline: {reason}; send its runs later with wandb sync")
            os.environ["WANDB_MODE"] = "offline"
            wandb.teardown()  # wandb reads its environment once, and must read it again
    return ["wandb"]


def finish_tracker(config: Config) -> None:
    """End the tracker's run of this stage, so that the next stage starts a new one."""
    if config.tracker.name == "wandb":
        import wandb

        wandb.finish()
