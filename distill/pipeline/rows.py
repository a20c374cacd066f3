"""A row of a table or of `distill.run`: its config as a graph, and what result files call it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from distill.config.evaluation import EvalConfig
from distill.config.schema import Config
from distill.pipeline.plan import Plan, Role
from distill.results.runs import RunFolder
from distill.samplers import defaults


@dataclass
class Row:
    """One row with one training seed.

    Attributes:
        label: in its table.
        config: what makes it.
        role: whose values it has.
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
        """Hash of model and decoding, the name of its run."""
        return self.plan.run_key(self.role)

    @property
    def folder(self) -> RunFolder:
        """Where its facts are kept."""
        return RunFolder(self.config.paths.results, self.config.model.name, self.run)


def run_label(config: Config, role: Role = "student") -> str:
    """`akl(mu=0.5)`, `ab(alpha=0.2, beta=0.7) mixed`: loss and sampler as they ran; `teacher` for a teacher.

    A switch between ours and published code is shown where it is on, and of a sampler what is not at its default.
    """
    if role == "teacher":
        return "teacher"
    sampler = config.sampler
    usual = defaults(sampler.name) | {"max_new_tokens": config.eval.max_new_tokens}
    own = {k: v for k, v in sampler.chosen.items() if usual[k] != v}
    loss = _called(config.loss.name, config.loss.chosen)
    return loss if sampler.name == "fixed" else f"{loss} {_called(sampler.name, own)}"


def _called(name: str, parameters: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{k}={f'{v:g}' if isinstance(v, float) else v}" for k, v in _flat(parameters))
    return f"{name}({shown})" if shown else name


def _flat(parameters: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values, those inside a group of parameters as `group.name`."""
    for key, value in parameters.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def decode_name(decode: EvalConfig) -> str:
    """The decoding settings in a few words."""
    banned = f" no-repeat={decode.no_repeat_ngram_size}" if decode.no_repeat_ngram_size else ""
    if not decode.do_sample:
        how = "greedy" if decode.num_beams == 1 else f"beams={decode.num_beams}"
        return f"{how}{banned} max={decode.max_new_tokens}"
    extra = (f" p={decode.top_p:g}" if decode.top_p < 1 else "") + (f" k={decode.top_k}" if decode.top_k else "")
    return f"sample T={decode.temperature:g}{extra}{banned} max={decode.max_new_tokens}"
