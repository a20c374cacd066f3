"""The checks of data and models that every command makes before the first stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distill.base import hub
from distill.base.console import say_once
from distill.base.errors import UserError
from distill.base.files import read_object
from distill.config.schema import Config
from distill.data import chunkers
from distill.evaluation.bertscore import WHEEL, check
from distill.evaluation.rouge import can_score
from distill.losses import build
from distill.models.checkpoint import examine
from distill.models.folders import ADAPTER_CONFIG
from distill.models.load import ALL_LINEAR, Weights, check_positions, load_config
from distill.models.tokenizers import check_same_tokenizer
from distill.pipeline import inputs
from distill.pipeline.keys import VERSIONS, ExternalWeights
from distill.pipeline.nodes import Node
from distill.results.metrics import ROUGE
from distill.training.estimate import check_own_parameters

if TYPE_CHECKING:
    from distill.pipeline.plan import Plan, Role

RARE = 0.02  # share of rows that no text can score on, and nothing is said; the papers' sets have some
ROLES: tuple[Role, Role] = ("teacher", "student")


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
    problems += [
        f"paths.store={plan.config.paths.store}: {plan.store.root / stage} is a file, where the store has a folder;"
        " move it away, or choose another store"
        for stage in VERSIONS
        if (plan.store.root / stage).is_file()
    ]
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
    characters = sum(len(text) + 1 for text in plan.pretraining) if not problems else 0
    if 0 < characters < plan.config.train.max_length:
        problems.append(
            f"data.pretrain: {characters} characters are less than one block of train.max_length="
            f"{plan.config.train.max_length} tokens; give more text"
        )
    if not problems:
        _tell_unscorable(plan, texts)
    if problems:
        hint = [hub.WITHOUT] if hub.WITHOUT in problems else []
        raise UserError([*dict.fromkeys(p for p in problems if p not in hint), *hint])


def _tell_unscorable(plan: Plan, texts: bool) -> None:
    """Say where ROUGE-L cannot be above 0, because its tokenizer finds no word in the references."""
    tokenizer, train = plan.config.eval.rouge_tokenizer, plan.config.train
    lines = []
    if not plan.validation_can_score and ROUGE in {
        s.select for s in (train.teacher, train.start, plan.config.schedule)
    }:
        lines.append(
            "validation set: ROUGE-L finds no word in its references, so checkpoints are selected by loss;"
            f" {_OTHER_TOKENIZERS}"
        )
    for dataset in plan.sets.values() if texts else ():
        without = sum(not can_score([example.references], tokenizer) for example in dataset.examples)
        count = len(dataset.examples)
        if without == count:
            lines.append(f"{dataset.title}: ROUGE-L finds no word in its references and will be 0; {_OTHER_TOKENIZERS}")
        elif without > count * RARE:
            lines.append(
                f"{dataset.title}: ROUGE-L finds no word in the references of {without} of {count} rows, which will"
                f" score 0; {_OTHER_TOKENIZERS}"
            )
    for line in lines:
        say_once(line)


_OTHER_TOKENIZERS = "eval.rouge_tokenizer=words (of any alphabet) or characters (scripts without spaces) finds others"


def check_models(plan: Plan, nodes: Sequence[Node]) -> None:
    """Examine the checkpoints that no stage makes and that these artifacts are made from, before the first is made.

    Raises:
        UserError: with what is wrong with weights, adapters and tokenizers.
    """
    used = {source for node in nodes for source in node.inputs if isinstance(source, ExternalWeights)}
    problems: list[str] = []
    for role in ROLES:
        of_role = [plan.base(role), plan.model(role) if role == "teacher" else plan.start]
        for source in dict.fromkeys(source for source in of_role if source in used):
            try:
                weights = plan.weights(source, role)
                if Path(weights.base).is_dir() and not hub.is_path(weights.base):
                    say_once(f"{role}: {weights.base} is a folder here, and is read in place of the hub's model")
                examine(weights.base, weights.revision or "main", weights.adapter)
                _check_positions(plan, weights)
                if role == "student":
                    _say_ranks(plan, weights)
            except UserError as error:
                problems += [f"{role}: {problem}" for problem in error.problems]
    if problems:
        raise UserError(problems)
    _check_own_parameters(plan, nodes)
    origins = [plan.session.origin(role) for role in ROLES]
    if plan.distils and all(source in used for source in origins):
        tokenizers = [inputs.tokenizer(plan.weights(source, role)) for source, role in zip(origins, ROLES, strict=True)]
        added = check_same_tokenizer(*tokenizers)
        sets = [*plan.data, *plan.sets.values()]
        texts = (text for d in sets for e in d.examples for text in (e.instruction, e.input, *e.references))
        spelled = [text for text in texts if any(token in text for token in added)] if added else []
        if spelled:
            token = next(token for token in added if token in spelled[0])
            raise UserError(
                f"{len(spelled)} texts of the data spell a token that only one of teacher and student has, such as"
                f" {token}; leave these rows out, or give both models one tokenizer"
            )


def _check_own_parameters(plan: Plan, nodes: Sequence[Node]) -> None:
    """Refuse a loss whose own parameters do not fit into memory, where the student is still to be trained.

    Where the models that training starts from are still to be made, the estimate before the training refuses it.
    """
    loss, shape = plan.config.loss, plan.session.shape
    origins = [plan.session.origin(role) for role in ROLES]
    there = all(isinstance(source, ExternalWeights) or plan.store.has(source) for source in origins)
    if there and plan.distils and loss.w_kd and plan.student in nodes:
        check_own_parameters(
            build(loss.name, **loss.parameters), shape("student"), plan.config.model.lora, shape("teacher")
        )


def _say_ranks(plan: Plan, weights: Weights) -> None:
    """Say that an adapter which a student goes on training keeps its own rank where the config has another."""
    lora = plan.config.model.lora
    if weights.adapter is None or lora is None:
        return
    own = read_object(Path(weights.adapter) / ADAPTER_CONFIG)
    targets = own.get("target_modules")
    settings = {"r": own.get("r"), "alpha": own.get("lora_alpha"), "dropout": own.get("lora_dropout")}
    if isinstance(targets, list) and ALL_LINEAR not in lora.targets:  # peft stores the names that it stands for
        settings["targets"] = sorted(targets)
    asked = {**lora.model_dump(), "targets": sorted(lora.targets)}
    if differing := [f"{key} {value} (not {asked[key]})" for key, value in settings.items() if value != asked[key]]:
        say_once(f"student: the adapter goes on with its own {', '.join(differing)}; model.lora is for new adapters")


def _check_positions(plan: Plan, weights: Weights) -> None:
    """Refuse a supplied model with fewer positions than training or evaluation need.

    Raises:
        UserError: it is such a model.
    """
    train, settings = plan.config.train, load_config(weights)
    check_positions(settings, train.max_length, "train.max_length")
    generated = train.max_prompt_length + plan.config.eval.max_new_tokens
    check_positions(settings, generated, "train.max_prompt_length and eval.max_new_tokens")


def differing_engines(configs: Sequence[Config]) -> list[str]:
    """The generation engines of the configs if there is more than one, otherwise an empty list.

    Responses of different engines are not comparable, so a table must have one engine.
    """
    engines: list[str] = sorted({config.eval.engine for config in configs})
    return engines if len(engines) > 1 else []
