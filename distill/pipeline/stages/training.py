"""Makers of trainings, and of the teacher's responses and hidden states that several trainings share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill.base.console import say, say_once
from distill.base.processes import is_main_process, world_size
from distill.config.objective import LossConfig, SamplerConfig
from distill.config.train import StageTrainConfig
from distill.data.chunkers import STOP_WORDS, finds_noun_phrases, share_of_stop_words
from distill.data.encode import Encoded
from distill.losses import build
from distill.models.load import load_model, load_tokenizer
from distill.models.tokenizers import check_same_tokenizer, pad_id
from distill.pipeline import inputs
from distill.pipeline.nodes import Maker, Node, Source
from distill.pipeline.store import Spec, digest
from distill.samplers import Sampler
from distill.samplers import build as build_sampler
from distill.teacher.signal import damage, write_store
from distill.training.answers import read_answers, write_answers
from distill.training.batches import micro_batch_size
from distill.training.estimate import Estimate, estimate_answers, estimate_signal, estimate_training
from distill.training.job import TrainingJob, teacher_dtype, train
from distill.training.pruning import ids_to_keep, mean_nll, read_nll, write_nll
from distill.training.spans import tell_unaligned, write_spans

if TYPE_CHECKING:
    from distill.pipeline.plan import Plan, Role


LANGUAGE_ROWS = 200  # of these training rows it is checked whether their language is the pipeline's


def sampler_of(plan: Plan) -> Sampler:
    """The config's sampler."""
    return build_sampler(plan.config.sampler.name, **plan.config.sampler.parameters)


@dataclass(frozen=True, eq=False)
class Training(Maker):
    """Trains a model.

    Attributes:
        plan: the plan that the training is part of.
        role: the role of the trained model.
        label: the training's name in progress lines.
        start: the weights that it starts from.
        teacher: the model that it learns from or that answered its prompts; None for fine-tuning.
        signal: the teacher's stored hidden states; None if the teacher runs on every batch or there is no divergence.
        answers: the teacher's responses that replace those of the data set, if any.
        spans: the spans of the rows; None without a span loss, or if it needs no chunker.
        probe: how much each row tells a probe model; None if no rows are pruned.
        loss: the divergence and the weights of the objective's terms.
        schedule: epochs, global batch size, learning rate, and the metric that selects the best checkpoint.
        sampler: the sampler's name and parameters.
        seed: the training seed.
    """

    plan: Plan
    role: Role
    label: str
    start: Source
    teacher: Source | None
    signal: Node | None
    answers: Node | None
    spans: Node | None
    probe: Node | None
    loss: LossConfig
    schedule: StageTrainConfig
    sampler: SamplerConfig
    seed: int

    together = True

    def make(self, nodes: Sequence[Spec], folders: list[Path]) -> list[dict[str, Any]]:
        """See the base class."""
        plan, folder = self.plan, self.plan.store.folder
        train_set, valid_set = plan.data
        start = plan.weights(self.start, self.role)
        teacher = plan.weights(self.teacher, "teacher") if self.teacher is not None else None
        if teacher is not None and (plan.config.model.source == "hub" or self._supplied):
            check_same_tokenizer(load_tokenizer(teacher), load_tokenizer(start))
        encoded = partial(inputs.training_rows, plan.config, start)
        trained_on = read_answers(folder(self.answers)) if self.answers is not None else encoded(train_set)
        if self.probe is not None and plan.config.data.prune is not None:
            chosen = ids_to_keep(read_nll(folder(self.probe)), plan.config.data.prune.share)
            rows = [row for row in trained_on.rows if row.id in chosen]
            say(f"  {len(trained_on.rows) - len(rows)} of {len(trained_on.rows)} training rows are pruned")
            trained_on = replace(trained_on, rows=rows)
        if self.spans is not None:
            _tell_language(plan.store.manifest(self.spans))
        job = TrainingJob(
            label=self.label,
            student=start,
            teacher=teacher if self.loss.w_kd else None,
            signal=folder(self.signal) if self.signal is not None else None,
            spans=folder(self.spans) if self.spans is not None else None,
            sampler=self.sampler,
            pretraining=plan.pretraining if teacher is not None else (),
            loss=self.loss,
            schedule=self.schedule,
            config=plan.config,
            seed=self.seed,
            train=trained_on,
            valid=encoded(valid_set),
            valid_examples=valid_set.examples,
        )
        return [train(job, folders[0])]

    @property
    def _supplied(self) -> bool:
        """Whether the teacher or the student is a supplied checkpoint, which may have another tokenizer."""
        model = self.plan.config.model
        return bool(model.teacher.path or model.student.path)

    def estimate(self) -> Estimate:
        """See the base class."""
        plan, session, train = self.plan, self.plan.session, self.plan.config.train
        distils = bool(self.loss.w_kd)
        return estimate_training(
            session.shape(self.role),
            plan.config.model.lora,
            session.rows(self.role, plan.data[:1])[0].rows,
            micro_batch_size(self.schedule.global_batch_size, train.rows_per_pass(self.schedule), world_size()),
            train.precision,
            session.shape("teacher") if distils else None,
            train.teacher_signal == "live",
            build(self.loss.name, **self.loss.parameters) if distils else None,
            sampler_of(plan) if distils else None,
            distils and self.loss.ce_on == "data" and self.loss.w_ce > 0 and self.sampler.kind.writes,
            -(-self.schedule.global_batch_size // world_size()),
            plan.config.eval.batch_tokens,
        )


class Answers(Maker):
    """Generates the teacher's responses to the training prompts."""

    together = True

    def __init__(self, plan: Plan):
        self.plan = plan

    def make(self, nodes: Sequence[Spec], folders: list[Path]) -> list[dict[str, Any]]:
        """See the base class."""
        plan, vocabulary = self.plan, self.plan.session.vocabulary("teacher")
        teacher, examples = plan.weights(plan.teacher, "teacher"), plan.data[0].examples
        return [write_answers(plan.config, sampler_of(plan), teacher, examples, vocabulary, folders[0])]

    def estimate(self) -> Estimate:
        """See the base class."""
        plan, session = self.plan, self.plan.session
        return estimate_answers(session.shape("teacher"), plan.config.eval.batch_tokens, plan.config.train.precision)


class HiddenStates(Maker):
    """Stores the teacher's hidden states at the response positions of rows; subclasses select the rows."""

    def __init__(self, plan: Plan):
        self.plan = plan

    def rows(self) -> Sequence[Encoded]:
        """The rows that the teacher reads."""
        raise NotImplementedError

    def loaded(self) -> Callable[[], Any] | None:
        """A function that returns the teacher's model where the session has it; None to load it only for this."""
        return None

    def make(self, nodes: Sequence[Spec], folders: list[Path]) -> list[dict[str, Any]]:
        """See the base class."""
        teacher = self.plan.weights(self.plan.teacher, "teacher")
        pad, dtype = pad_id(load_tokenizer(teacher)), teacher_dtype(self.plan.config)
        return [write_store(teacher, self.rows(), pad, dtype, folders[0], self._identity(), self.loaded())]

    def verify(self, node: Node) -> None:
        """Discard hidden states that are damaged or were computed with other weights of the teacher.

        A teacher that was removed and trained again on another machine has the same key and other weights.
        """
        store, teacher = self.plan.store, self.plan.teacher
        if not is_main_process() or not store.has(node) or (isinstance(teacher, Node) and not store.has(teacher)):
            return
        if problem := damage(store.folder(node), self._identity()):
            store.discard(node, problem)

    def _identity(self) -> str:
        """The identity of the teacher's weights: their hash, or the manifest's if that has none (earlier versions)."""
        teacher = self.plan.teacher
        if not isinstance(teacher, Node):
            return teacher.key
        manifest = self.plan.store.manifest(teacher)
        return str(manifest.get("weights") or digest(manifest))


class Signal(HiddenStates):
    """Stores the teacher's hidden states over the training rows (or its own responses) and the validation rows."""

    def __init__(self, plan: Plan, answers: Node | None):
        super().__init__(plan)
        self.answers = answers

    def rows(self) -> Sequence[Encoded]:
        """See the base class."""
        plan = self.plan
        train, valid = plan.session.teacher_rows()
        trained_on = read_answers(plan.store.folder(self.answers)).rows if self.answers is not None else train.rows
        return [*trained_on, *valid.rows]

    def estimate(self) -> Estimate:
        """See the base class."""
        plan, session = self.plan, self.plan.session
        train, valid = session.rows("teacher", plan.data)
        return estimate_signal(session.shape("teacher"), [*train.rows, *valid.rows], plan.config.train.precision)


class Probe(Maker):
    """Measures how much each training row tells the probe model.

    Args:
        model: the probe.
        role: whose weights it has.
    """

    def __init__(self, plan: Plan, model: Source, role: Role):
        self.plan, self.model, self.role = plan, model, role

    def make(self, nodes: Sequence[Spec], folders: list[Path]) -> list[dict[str, Any]]:
        """See the base class."""
        plan, weights = self.plan, self.plan.weights(self.model, self.role)
        rows = inputs.training_rows(plan.config, weights, plan.data[0]).rows
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = load_model(weights, teacher_dtype(plan.config)).to(device).eval()
        nll = mean_nll(model, rows, pad_id(load_tokenizer(weights)))
        write_nll(nll, folders[0])
        return [{"rows": len(nll), "mean_nll": sum(nll.values()) / len(nll)}]


def _tell_language(manifest: dict[str, Any]) -> None:
    """Say, once, where the training rows seem to be in another language than the chunker's, and what it cannot find.

    Args:
        manifest: of the stored spans. Those of earlier versions say nothing of it.
    """
    if not manifest.get("noun_phrases", True):
        say_once(
            "  spaCy knows no noun chunks of the pipeline's language: spans are verb and prepositional phrases alone"
        )
    share = manifest.get("stop_words")
    if share is not None and share < STOP_WORDS:
        say_once(
            f"  only {100 * share:.0f} % of the responses' words are stop words of the chunker's language: they may be"
            " in another one; loss.span.pipeline names a spaCy pipeline for it, loss.span.chunker a function"
        )


class PhraseSpans(Maker):
    """Finds the phrases of the training rows (or of the teacher's own responses) and of the validation rows."""

    def __init__(self, plan: Plan, answers: Node | None):
        self.plan, self.answers = plan, answers

    def make(self, nodes: Sequence[Spec], folders: list[Path]) -> list[dict[str, Any]]:
        """See the base class."""
        plan, settings = self.plan, self.plan.config.loss.span
        chunker, base = plan.config.chunker, plan.weights(plan.base("student"), "student")
        assert chunker is not None
        train, valid = (inputs.training_rows(plan.config, base, dataset) for dataset in plan.data)
        trained_on = read_answers(plan.store.folder(self.answers)).rows if self.answers is not None else train.rows
        counts = write_spans([*trained_on, *valid.rows], chunker, settings, inputs.tokenizer(base), folders[0])
        say(f"  {counts['spans']} phrases in {counts['texts']} texts")
        tell_unaligned(counts)
        responses = (example.response for example in plan.data[0].examples[:LANGUAGE_ROWS])
        share = share_of_stop_words(responses, chunker, settings.pipeline)
        nouns = finds_noun_phrases(chunker, settings.pipeline)
        return [{"spans": counts, "stop_words": share, "noun_phrases": nouns}]
