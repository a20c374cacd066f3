"""transformers' Trainer with our objective, our batches, our validation, and a stop on a loss that is not finite."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments

from distill.base.console import bar
from distill.base.errors import UserError
from distill.data.encode import FILLER, Collator, Encoded
from distill.losses.trainable import TrainableDivergence
from distill.models.load import without_adapter
from distill.samplers import Step
from distill.training.batches import BucketSampler
from distill.training.corpus import Corpus
from distill.training.distiller import Distiller
from distill.training.sampling import OWN, Sampling

STEP_TIME = "step_time.json"
SAMPLER = "sampler.pt"  # the sampler's state, in a checkpoint
DIVERGENCE = "divergence.pt"  # parameters of a divergence that has its own, beside the student's in a checkpoint


class DistillTrainer(Trainer):
    """Trains a `Distiller` on encoded rows.

    Args:
        generate_score: gives mean ROUGE-L of the student's own responses on the validation set.
        sampling: where responses come from if not all are the rows' own.
        corpus: plain text whose cross-entropy is part of each step.
    """

    model: Distiller

    def __init__(
        self,
        model: Distiller,
        args: TrainingArguments,
        train_rows: Sequence[Encoded],
        valid_rows: Sequence[Encoded],
        tokenizer: Any,
        pad_id: int,
        global_batch_size: int,
        generate_score: Callable[[Any], float],
        sampling: Sampling | None = None,
        corpus: Corpus | None = None,
        **kwargs: Any,
    ):
        self.global_batch_size, self.generate_score = global_batch_size, generate_score
        self.sampling, self.corpus = sampling, corpus
        self.rows = {row.id: row for row in [*train_rows, FILLER]}
        if sampling is not None:
            sampling.sampler.prepare(train_rows, global_batch_size)
        sharded = args.fsdp or args.deepspeed
        if sharded and sampling is not None:
            raise UserError(
                "FSDP and DeepSpeed: the student that writes in training is whole; use sampler=fixed or teacher, or"
                " several processes without sharding (torchrun)"
            )
        self.lengths = [len(row.prompt) + len(row.response) for row in train_rows]
        super().__init__(
            model=model,
            args=args,
            train_dataset=[*train_rows, FILLER],
            eval_dataset=valid_rows,
            data_collator=Collator(pad_id),
            processing_class=tokenizer,
            **kwargs,
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        together = self.args.per_device_train_batch_size * self.args.world_size
        fill_to = together if self.args.world_size > 1 else 1
        return BucketSampler(self.lengths, self.global_batch_size, self.args.seed, fill_to)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """As in Trainer, with the responses that the sampler chooses; a divergence that depends on the whole global
        batch settles on what counts for it."""
        if self.sampling is not None:
            epoch_iterator = iter(self._sampled(list(islice(epoch_iterator, num_batches)), self.sampling))
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.corpus is not None:
            self._add_corpus(batches, self.corpus)
        if self.model.settling:
            settling = [self._prepare_inputs(batch) for batch in batches]
            self.model.settle(settling, lambda x: self.accelerator.reduce(x, "sum"))
        return batches, items

    def _sampled(self, batches: list[dict[str, Any]], sampling: Sampling) -> list[dict[str, Any]]:
        """The step's micro-batches with the sampler's responses, rows of like length together."""
        rows = [self.rows[name] for batch in batches for name in batch["example_ids"]]
        if not rows:
            return batches
        samples = sorted(sampling.next(rows, self._step()), key=lambda s: len(s.row.prompt) + len(s.row.response))
        sizes = [len(batch["example_ids"]) for batch in batches]
        cut: list[dict[str, Any]] = []
        for end in accumulate(sizes):
            part = samples[end - sizes[len(cut)] : end]
            figures = [s.figures for s in part if s.figures is not None]
            cut.append(
                {
                    **self.data_collator([s.row for s in part]),  # type: ignore[misc]
                    "own_text": torch.tensor([s.origin in OWN or not s.row.response for s in part]),
                    **({"figures": torch.cat(figures)} if figures else {}),
                }
            )
        return cut

    def _step(self) -> Step:
        """The step that comes now."""
        count, size = len(self.lengths), self.global_batch_size
        done = self.state.global_step % -(-count // size) * size  # of this epoch's rows
        rows = min(size, count - done)
        return Step(self.state.global_step, self.state.max_steps, self.args.seed, rows)

    def _add_corpus(self, batches: list[dict[str, Any]], corpus: Corpus) -> None:
        """Give each micro-batch its share of the step's plain text."""
        blocks = corpus.blocks(self._step(), self.global_batch_size)
        mine = blocks[self.args.process_index :: self.args.world_size]
        for i, batch in enumerate(batches):
            if len(part := mine[i :: len(batches)]):
                batch["corpus"], batch["corpus_tokens"] = part, blocks[:, 1:].numel()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As in Trainer; a training step's line tells what the sampler did."""
        if self.sampling is not None and "loss" in logs:
            logs = {**logs, **self.sampling.told()}
        super().log(logs, *args, **kwargs)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """As in Trainer, but a loss that is not finite ends the run before the optimizer steps."""
        example_ids = inputs["example_ids"]
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if not torch.isfinite(loss):
            terms = {k: v.item() for k, v in outputs.items() if k != "loss"}
            raise UserError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}, in the batch of examples"
                f" {', '.join(example_ids)} ({terms}); the optimizer has not stepped. Lower the learning rate, or"
                " look at these examples"
            )
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validation: token means of the objective and its parts, and ROUGE-L of sampled responses."""
        started = time.perf_counter()
        self.model.eval()
        sums: dict[str, float] = {}
        with torch.inference_mode():
            if self.model.settling:
                self.model.settle(list(self._valid_batches()))
            for batch in self._valid_batches():
                outputs = self.model(**batch)
                for key in ("ce_sum", "kd_sum", "tokens"):
                    if key in outputs:
                        sums[key] = sums.get(key, 0.0) + float(outputs[key])
        metrics = {f"eval_{k.removesuffix('_sum')}": v / sums["tokens"] for k, v in sums.items() if k != "tokens"}
        metrics["eval_loss"] = self.model.w_ce * metrics["eval_ce"] + self.model.w_kd * metrics.get("eval_kd", 0.0)
        if not math.isfinite(metrics["eval_loss"]):
            raise UserError(
                f"the validation loss is {metrics['eval_loss']} after step {self.state.global_step} ({metrics});"
                " lower the learning rate"
            )
        metrics["eval_rouge_l"] = self.generate_score(self.model.student)
        metrics["eval_seconds"] = time.perf_counter() - started
        if self.sampling is not None:
            self.sampling.observe(metrics)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _valid_batches(self) -> Any:
        """Validation batches of like length; their split changes nothing, since sums are taken."""
        rows = sorted(self.eval_dataset, key=lambda row: len(row.prompt) + len(row.response))  # type: ignore
        size = self.args.per_device_eval_batch_size
        for start in range(0, len(rows), size):
            batch = self.data_collator(rows[start : start + size])
            yield self._prepare_inputs(batch)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the student alone: the teacher does not change, and tied heads would not save from the wrapper."""
        if not self.args.should_save:
            return
        folder = output_dir or self.args.output_dir
        assert folder is not None
        if state_dict is not None:  # gathered by FSDP or DeepSpeed under the wrapper's names
            state_dict = {k.removeprefix("student."): v for k, v in state_dict.items() if k.startswith("student.")}
        self.model.student.save_pretrained(folder, state_dict=state_dict)
        self.processing_class.save_pretrained(folder)  # type: ignore[union-attr]
        if isinstance(self.model.divergence, TrainableDivergence):
            torch.save(self.model.divergence.state_dict(), Path(folder) / DIVERGENCE)
        if self.sampling is not None:
            torch.save(self.sampling.state(), Path(folder) / SAMPLER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the student's weights of a checkpoint."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        student, folder = self.model.student, Path(resume_from_checkpoint)
        if self.sampling is not None:
            self.sampling.restore(torch.load(folder / SAMPLER, weights_only=True))
        if isinstance(self.model.divergence, TrainableDivergence):
            self.model.divergence.load_state_dict(torch.load(folder / DIVERGENCE, weights_only=True))
        if hasattr(student, "peft_config"):
            from peft import load_peft_weights, set_peft_model_state_dict

            set_peft_model_state_dict(student, load_peft_weights(str(folder)))
            return
        state: dict[str, Any] = {}
        for file in sorted(folder.glob("*.safetensors")):
            state |= load_file(file)
        missing = set(without_adapter(student).load_state_dict(state, strict=False).missing_keys)
        student.tie_weights()
        tied = set(getattr(student, "_tied_weights_keys", None) or ())
        if missing - tied:
            raise UserError(f"{folder}: the checkpoint lacks {sorted(missing - tied)[:3]}; remove the folder")


class Progress(TrainerCallback):
    """A progress bar with loss, speed and time left, and a line for each validation."""

    def __init__(self, label: str, say: Callable[[str], None]):
        self.label, self.say = label, say
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar, at the step that a resumed run goes on from."""
        self.bar = bar(state.max_steps, self.label, "step")
        self.bar.update(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the bar."""
        self.bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Show the training loss, or tell a validation's result."""
        if self.bar is not None and logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)
        if logs and "eval_loss" in logs:
            self.say(
                f"  {self.label}, epoch {state.epoch:.3g} of {args.num_train_epochs}:"
                f" validation loss {logs['eval_loss']:.4f}, ROUGE-L {logs['eval_rouge_l']:.2f}"
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        self.bar.close()


class StepTime(TrainerCallback):
    """Seconds that the steps take, their batches and the optimizer's part included, validation and saving not; a run
    that goes on counts on from its checkpoint."""

    def __init__(self) -> None:
        self.seconds, self.steps = 0.0, 0
        self._mark = 0.0

    def restore(self, checkpoint: Path) -> None:
        """Go on from what a checkpoint tells; one of an earlier version tells nothing."""
        if (checkpoint / STEP_TIME).is_file():
            self.seconds, self.steps = json.loads((checkpoint / STEP_TIME).read_text())

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Time runs from here."""
        self._mark = time.perf_counter()

    on_evaluate = on_train_begin  # and again from behind each validation and checkpoint

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep the count in the checkpoint."""
        if state.is_world_process_zero:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (checkpoint / STEP_TIME).write_text(json.dumps([self.seconds, self.steps]))
        self._mark = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A step's time ends here, and the next one's begins."""
        now = time.perf_counter()
        self.seconds, self.steps, self._mark = self.seconds + now - self._mark, self.steps + 1, now


class SaveEvery(TrainerCallback):
    """A checkpoint every so many steps, beside those that Trainer makes each epoch."""

    def __init__(self, steps: int):
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Ask for a checkpoint when its step has come."""
        # The step that ends an epoch is saved by Trainer after its validation; saved before it, a run that is stopped
        # during the validation would go on without it.
        epoch = state.max_steps // int(args.num_train_epochs)
        if state.global_step % self.steps == 0 and state.global_step % epoch:
            control.should_save = True
        return control
