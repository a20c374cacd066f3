"""A row of a table or of `distill.run`: its config, its graph of artifacts, and its names in result files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from distill.base.registry import LOSSES
from distill.config.evaluation import EvalConfig
from distill.config.schema import Config
from distill.pipeline.plan import Plan, Role
from distill.results.runs import RunFolder
from distill.samplers import defaults


@dataclass
class Row:
    """One row with one training seed.

    Attributes:
        label: its name in the table.
        config: the config of its training and evaluation.
        role: the model that is evaluated.
        plan: the graph of its artifacts.
    """

    label: str
    config: Config
    role: Role = "student"
    plan: Plan = field(init=False)

    def __post_init__(self) -> None:
        self.plan = Plan(self.config)

    @property
    def run(self) -> str:
        """The name of its run: a hash of the model and the decoding settings."""
        return self.plan.run_key(self.role)

    @property
    def folder(self) -> RunFolder:
        """The folder of its run, which has its facts."""
        return RunFolder(self.config.paths.results, self.config.model.name, self.run)


MANY = 8  # parameters of a loss that a run's name lists all


def run_label(config: Config, role: Role = "student") -> str:
    """A run's name for people: loss and sampler, such as `akl(mu=0.5)` or `ab(alpha=0.2, beta=0.7) mixed`.

    A teacher's is `teacher`. Switches to the behaviour of published code are included if they are on; parameters of a
    sampler, and of a loss with more than `MANY`, if they are not at their default; `+span` for a span loss, with its
    kind if it is not the phrases of a chunker.
    """
    if role == "teacher":
        return "teacher"
    sampler = config.sampler
    default_values = defaults(sampler.name) | {"max_new_tokens": config.eval.max_new_tokens}
    changed = {k: v for k, v in sampler.chosen.items() if default_values[k] != v}
    chosen = config.loss.chosen
    if len(chosen) > MANY:
        of_loss = LOSSES.defaults(config.loss.name)
        chosen = {k: v for k, v in chosen.items() if of_loss[k] != (tuple(v) if isinstance(v, list) else v)}
    loss = _with_parameters(config.loss.name, chosen)
    if config.loss.has_spans:
        kind = config.loss.span.kind
        loss += "+span" if kind == "chunker" else f"+span({kind})"
    return loss if sampler.name == "fixed" else f"{loss} {_with_parameters(sampler.name, changed)}"


def _with_parameters(name: str, parameters: Mapping[str, Any]) -> str:
    """`name(key=value, ...)`, or the name alone if there are no parameters."""
    listed = ", ".join(f"{k}={f'{v:g}' if isinstance(v, float) else v}" for k, v in _flat(parameters))
    return f"{name}({listed})" if listed else name


def _flat(parameters: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The names and values of all parameters. The name of one inside a group is `group.name`."""
    for key, value in parameters.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def decode_name(decode: EvalConfig) -> str:
    """The decoding settings as a short text, such as `sample T=1 p=0.9 max=256` or `greedy max=256`."""
    no_repeat = f" no-repeat={decode.no_repeat_ngram_size}" if decode.no_repeat_ngram_size else ""
    if not decode.do_sample:
        search = "greedy" if decode.num_beams == 1 else f"beams={decode.num_beams}"
        return f"{search}{no_repeat} max={decode.max_new_tokens}"
    extra = (f" p={decode.top_p:g}" if decode.top_p < 1 else "") + (f" k={decode.top_k}" if decode.top_k else "")
    return f"sample T={decode.temperature:g}{extra}{no_repeat} max={decode.max_new_tokens}"
