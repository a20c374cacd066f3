"""The checks of data and models that every command makes before the first stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distill.base import hub
from distill.base.errors import UserError
from distill.config.schema import Config
from distill.data import chunkers
from distill.evaluation.bertscore import WHEEL, check

if TYPE_CHECKING:
    from distill.pipeline.plan import Plan


def needs_hub(config: Config) -> bool:
    """Whether weights, an encoder or data come from the hub."""
    model, data = config.model, config.data
    paths = [w.path for w in (model.teacher, model.student) if w.path is not None]
    encoder = config.eval.bertscore.encoder
    paths += [encoder] if encoder not in (None, WHEEL) else []
    path_on_hub = any(not Path(path).expanduser().is_dir() for path in paths)
    corpus_on_hub = data.corpus is not None and data.corpus.file is None
    return model.source == "hub" or path_on_hub or corpus_on_hub or (data.root is None and data.generator is None)


def check_data(plan: Plan, texts: bool = True) -> None:
    """Load every data set and check that chunker and encoder are there, before the first artifact is made.

    Args:
        texts: whether responses will be scored. Only then the encoder is checked.

    Raises:
        UserError: a data set, the chunker or the encoder is missing or wrong; it lists the problems of all of them.
    """
    if needs_hub(plan.config):
        hub.prepare()
    problems = plan.config.missing_corpus
    for name in ("data", "sets", "pretraining"):
        try:
            getattr(plan, name)
        except UserError as error:
            problems += error.problems
    if plan.config.chunker is not None:
        try:
            chunkers.check(plan.config.chunker, plan.config.loss.span.pipeline)
        except UserError as error:
            problems += error.problems
    if texts and plan.config.eval.bertscore.encoder is not None:
        try:
            check(plan.config.eval.bertscore)
        except UserError as error:
            problems += error.problems
    if problems:
        hint = [hub.WITHOUT] if hub.WITHOUT in problems else []
        raise UserError([*dict.fromkeys(p for p in problems if p not in hint), *hint])


def differing_engines(configs: Sequence[Config]) -> list[str]:
    """The generation engines of the configs if there is more than one, otherwise an empty list.

    Responses of different engines are not comparable, so a table must have one engine.
    """
    engines: list[str] = sorted({config.eval.engine for config in configs})
    return engines if len(engines) > 1 else []
