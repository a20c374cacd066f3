"""transformers' Trainer with this project's objective, batches, validation, and a stop if the loss is not finite."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.utils.data import Sampler
from transformers import Trainer, TrainingArguments

from distill.base.errors import UserError
from distill.base.processes import gathered, world_size
from distill.config.objective import AS_STUDENT, LossOptimizerConfig
from distill.data.encode import FILLER, STUDENT_TEXT, Collator, Encoded
from distill.losses.trainable import TrainableDivergence
from distill.models.load import without_adapter
from distill.samplers import Step
from distill.training.batches import RandomOrder, length_groups
from distill.training.corpus import Corpus
from distill.training.distiller import Distiller
from distill.training.objective import Term
from distill.training.sampling import Sampling

SAMPLER = "sampler.pt"  # the sampler's state, in a checkpoint
DIVERGENCE = "divergence.pt"  # what training changes in the divergence, such as its parameters, in a checkpoint


def raise_together(problem: str | None, device: torch.device) -> None:
    """Raise an error in every process of a distributed run if one of them has a problem.

    Otherwise the other processes would wait for the failed one forever. All processes must call this together.

    Args:
        problem: the message of this process's problem; None if it has none.
        device: the device for the collective operation.

    Raises:
        UserError: a process has a problem; with the problems of all processes.
    """
    if world_size() == 1:
        if problem is not None:
            raise UserError(problem, shared=True)
        return
    failed = torch.tensor(float(problem is not None), device=device)
    torch.distributed.all_reduce(failed)
    if failed > 0:
        raise UserError([message for message in gathered(problem) if message is not None], shared=True)


class DistillTrainer(Trainer):
    """Trains a `Distiller` on encoded rows.

    Args:
        train_rows, valid_rows: the encoded rows.
        pad_id: the token that fills shorter rows of a micro-batch.
        global_batch_size: rows of an optimizer step, over all processes.
        generate_score: gives the mean ROUGE-L of a student's responses to the validation prompts.
        sampling: chooses the responses of each step; None if the rows' own responses are used.
        corpus: plain text whose cross-entropy is part of each step.
        loss_optimizer: the learning rate, weight decay and gradient clipping of a trainable divergence's parameters,
            if they differ from the student's.
        micro_batch_tokens: how many tokens a micro-batch may have, padding included, when the rows of a global batch
            are put into micro-batches by length. None leaves them in the order in which they were drawn.

    Raises:
        UserError: `sampling` or `loss_optimizer` does not work with FSDP or DeepSpeed.
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
        loss_optimizer: LossOptimizerConfig = AS_STUDENT,
        micro_batch_tokens: int | None = None,
        **kwargs: Any,
    ):
        self.global_batch_size, self.generate_score = global_batch_size, generate_score
        self.sampling, self.corpus, self.loss_optimizer = sampling, corpus, loss_optimizer
        self.collator, self.micro_batch_tokens = Collator(pad_id), micro_batch_tokens
        if sampling is not None:
            sampling.sampler.prepare(train_rows, global_batch_size)
        sharded = args.fsdp or args.deepspeed
        if sharded and sampling is not None:
            raise UserError(
                "FSDP and DeepSpeed: the student that writes in training is whole; use sampler=fixed or teacher, or"
                " several processes without sharding (torchrun)"
            )
        if sharded and loss_optimizer != AS_STUDENT:
            raise UserError(
                "FSDP and DeepSpeed clip and step all parameters alike; leave loss.optimizer at null, or use several"
                " processes without sharding (torchrun)"
            )
        self.row_count = len(train_rows)
        super().__init__(
            model=model,
            args=args,
            train_dataset=[*train_rows, FILLER],
            eval_dataset=valid_rows,
            data_collator=list,  # type: ignore[arg-type]  # micro-batches are made of a whole step (`_micro_batches`)
            processing_class=tokenizer,
            **kwargs,
        )

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As in Trainer, but a trainable divergence's parameters are moved to parameter groups of their own.

        This happens only if `loss_optimizer` sets their learning rate or weight decay. The schedule multiplies the
        learning rates of all groups by the same factor.
        """
        if self.optimizer is not None:
            return self.optimizer
        optimizer, divergence, settings = super().create_optimizer(model), self.model.divergence, self.loss_optimizer
        if not isinstance(divergence, TrainableDivergence) or (settings.lr is None and settings.weight_decay is None):
            return optimizer
        parameters = dict(divergence.named_parameters())
        moved = {id(parameter) for parameter in parameters.values()}
        for group in optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in moved]
        lr = self.args.learning_rate if settings.lr is None else settings.lr
        decay = self.args.weight_decay if settings.weight_decay is None else settings.weight_decay
        decayed = set(self.get_decay_parameter_names(divergence))
        for is_decayed, weight_decay in ((True, decay), (False, 0.0)):
            chosen = [parameter for name, parameter in parameters.items() if (name in decayed) == is_decayed]
            if chosen:
                optimizer.add_param_group({"params": chosen, "lr": lr, "weight_decay": weight_decay})
        return optimizer

    def _clip_grad_norm(self, model: Any) -> Any:
        """As in Trainer, but a trainable divergence's parameters are clipped separately if `loss_optimizer` says so.

        The norm that is returned, and logged, is then that of the student's gradients.
        """
        divergence, limit = self.model.divergence, self.loss_optimizer.max_grad_norm
        if limit is None or not isinstance(divergence, TrainableDivergence):
            return super()._clip_grad_norm(model)
        of_divergence = list(divergence.parameters())
        divergence_ids = {id(parameter) for parameter in of_divergence}
        self.accelerator.clip_grad_norm_(of_divergence, limit)
        others = [parameter for parameter in model.parameters() if id(parameter) not in divergence_ids]
        return self.accelerator.clip_grad_norm_(others, self.args.max_grad_norm)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        together = self.args.per_device_train_batch_size * self.args.world_size
        fill_to = together if self.args.world_size > 1 else 1
        return RandomOrder(self.row_count, self.args.seed, fill_to)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """As in Trainer, with the responses that the sampler chooses and the terms' counts over the global batch.

        A divergence that depends on the whole global batch makes its choice here, before the first micro-batch is
        differentiated (`Distiller.settle`).
        """
        if isinstance(self.model.divergence, TrainableDivergence):
            self.model.divergence.at(self.state.global_step / max(1, self.state.max_steps))
        epoch_iterator = iter(self._micro_batches(list(islice(epoch_iterator, num_batches))))
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.corpus is not None:
            self._add_corpus(batches, self.corpus)
        if self.model.accepts_loss_kwargs and (counts := self._counts(batches)):
            for batch in batches:
                batch["counts"] = counts
        if self.model.settles:
            prepared = [self._prepare_inputs(batch) for batch in batches]
            self.model.settle(prepared, lambda x: torch.cat([y.to(x.device) for y in gathered(x.cpu())]), training=True)
        return batches, items

    def _micro_batches(self, drawn: list[list[Encoded]]) -> list[dict[str, Any]]:
        """The step's micro-batches of this process, with the sampler's responses; as many as were drawn."""
        rows = [row for micro_batch in drawn for row in micro_batch]
        if rows and self.sampling is not None:
            rows = [sample.row for sample in self.sampling.next(rows, self._step())]
        if self.model.objective.span is not None:
            self.model.objective.span.spans.start_finding(rows)
        if self.micro_batch_tokens is not None and len(drawn) > 1:
            lengths = [len(row.prompt) + len(row.response) for row in rows]
            parts = length_groups(lengths, len(drawn), self.micro_batch_tokens)
        else:
            ends = [0, *accumulate(len(micro_batch) for micro_batch in drawn)]
            parts = [list(range(start, end)) for start, end in pairwise(ends)]
        batches = [self.collator([rows[i] for i in part]) for part in parts]
        if self.model.objective.reads_data_rows:
            own = [self._data_rows[row.example_id] for row in rows if row.extras.get(STUDENT_TEXT)]
            for batch, of_batch in zip(batches, self._by_length(own, len(batches)), strict=False):
                batch["data_rows"] = self.collator(of_batch)
        return batches

    def _by_length(self, rows: list[Encoded], count: int) -> list[list[Encoded]]:
        """At most `count` groups of the data set's rows for the cross-entropy, of like length if micro-batches are."""
        count = min(count, len(rows))
        if not count:
            return []
        if self.micro_batch_tokens is None:
            return [rows[i::count] for i in range(count)]
        lengths = [len(row.prompt) + len(row.response) for row in rows]
        return [[rows[i] for i in part] for part in length_groups(lengths, count, self.micro_batch_tokens)]

    @cached_property
    def _data_rows(self) -> dict[str, Encoded]:
        """The training set's rows by example id."""
        return {row.id: row for row in self.train_dataset}  # type: ignore[union-attr]

    def _counts(self, batches: list[dict[str, Any]]) -> dict[str, int]:
        """The counts over the global batch of the terms that do not count response tokens, summed over processes."""
        counts = self.model.objective.counts(batches)
        if not counts or self.args.world_size == 1:
            return counts
        every = torch.tensor(list(counts.values()), device=self.args.device)
        return dict(zip(counts, self.accelerator.reduce(every, "sum").tolist(), strict=True))

    def _step(self) -> Step:
        """The step that comes now."""
        count, size = self.row_count, self.global_batch_size
        done = self.state.global_step % -(-count // size) * size  # of this epoch's rows
        rows = min(size, count - done)
        return Step(self.state.global_step, self.state.max_steps, self.args.seed, rows)

    def _add_corpus(self, batches: list[dict[str, Any]], corpus: Corpus) -> None:
        """Give each micro-batch its share of the step's plain text."""
        blocks = corpus.blocks(self._step(), self.global_batch_size)
        share = blocks[self.args.process_index :: self.args.world_size]
        for i, batch in enumerate(batches):
            if len(part := share[i :: len(batches)]):
                batch["corpus"] = part

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As in Trainer; a training step's line has the values of the sampler and of a trainable divergence too."""
        if self.sampling is not None and "loss" in logs:
            logs = {**logs, **self.sampling.log_values()}
        if isinstance(self.model.divergence, TrainableDivergence) and "loss" in logs:
            logs = {**logs, **{f"kd_{name}": value for name, value in self.model.divergence.seen().items()}}
        super().log(logs, *args, **kwargs)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """As in Trainer, but if the loss is not finite, the run ends before the optimizer's step.

        Raises:
            UserError: in every process, with the ids of the examples.
        """
        example_ids = inputs["example_ids"]
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        problem = None
        if not torch.isfinite(loss):
            terms = {k: v.item() for k, v in outputs.items() if k == "tokens" or k.endswith("_sum")}
            problem = (
                f"the loss is {loss.item()} at step {self.state.global_step + 1}, in the batch of examples"
                f" {', '.join(example_ids)} ({terms}); the optimizer has not stepped. Lower the learning rate, or"
                " look at these examples"
            )
        raise_together(problem, loss.device)
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validation metrics.

        Returns:
            `eval_<name>`: the mean of each term of the objective; `eval_loss`: the sum over terms of weight times mean;
            `eval_rouge_l`: the mean ROUGE-L of sampled responses, 0 to 100; `eval_seconds`: the time.

        Raises:
            UserError: the validation loss is not finite.
        """
        started = time.perf_counter()
        self.model.eval()
        means = self._term_means()
        metrics = {f"eval_{term.name}": mean for term, mean in means.items()}
        metrics["eval_loss"] = sum(term.weight * mean for term, mean in means.items())
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

    def _term_means(self) -> dict[Term, float]:
        """The mean of each term over the validation set. A term whose count is 0 is left out."""
        sums: dict[str, float] = {}
        with torch.inference_mode():
            if self.model.settles:
                self.model.settle(list(self._valid_batches()))
            for batch in self._valid_batches():
                outputs = self.model(**batch)
                for name in (name for name in outputs if name.endswith(("_sum", "_count"))):
                    sums[name] = sums.get(name, 0.0) + float(outputs[name])
        counted = [term for term in self.model.objective.terms if sums.get(f"{term.name}_count")]
        return {term: sums[f"{term.name}_sum"] / sums[f"{term.name}_count"] for term in counted}

    def _valid_batches(self) -> Any:
        """Validation batches, sorted by length. The means do not depend on the split, since sums are added up."""
        rows = sorted(self.eval_dataset, key=lambda row: len(row.prompt) + len(row.response))  # type: ignore
        size = self.args.per_device_eval_batch_size
        for start in range(0, len(rows), size):
            batch = self.collator(rows[start : start + size])
            yield self._prepare_inputs(batch)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As in Trainer, after a trainable divergence has taken over what the finished step left for the next one.

        So the checkpoint holds it. All processes come here, since it is gathered from all of them.
        """
        if isinstance(self.model.divergence, TrainableDivergence):
            self.model.divergence.at(self.state.global_step / max(1, self.state.max_steps))
        super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the student without the teacher, which does not change.

        The `Distiller` as a whole could not be saved if the student's embedding and output head are tied.
        """
        if not self.args.should_save:
            return
        folder = output_dir or self.args.output_dir
        assert folder is not None
        if state_dict is not None:  # FSDP and DeepSpeed gather it under the `Distiller`'s parameter names
            state_dict = {k.removeprefix("student."): v for k, v in state_dict.items() if k.startswith("student.")}
        self.model.student.save_pretrained(folder, state_dict=state_dict)
        self.processing_class.save_pretrained(folder)  # type: ignore[union-attr]
        if self.model.divergence is not None and (state := self.model.divergence.state()):
            torch.save(state, Path(folder) / DIVERGENCE)
        if self.sampling is not None:
            span = self.model.objective.span
            counts = {} if span is None else span.spans.counts
            torch.save({**self.sampling.state(), "spans": counts}, Path(folder) / SAMPLER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the student's weights, and the states of divergence and sampler, from a checkpoint."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        student, folder = self.model.student, Path(resume_from_checkpoint)
        if self.sampling is not None:
            of_sampler = torch.load(folder / SAMPLER, weights_only=True)
            self.sampling.restore(of_sampler)
            if self.model.objective.span is not None:
                self.model.objective.span.spans.counts = dict(of_sampler["spans"])
        if self.model.divergence is not None and self.model.divergence.state():
            self.model.divergence.restore(torch.load(folder / DIVERGENCE, weights_only=True))
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
