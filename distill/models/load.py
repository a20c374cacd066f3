"""Loading weights and tokenizers, from folders or the hub, with adapters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill import hub
from distill.config.schema import LoraConfig
from distill.errors import UserError


@dataclass(frozen=True)
class Weights:
    """Where to load a model from: a folder or hub id with revision, and perhaps an adapter folder over it."""

    base: str
    revision: str | None = None
    adapter: str | None = None


def supplied(text: str, base: Weights | None) -> Weights:
    """The checkpoint named by `model.*.path`: a folder, or `hub/id@revision`; a folder may hold an adapter.

    Raises:
        UserError: it looks like a folder and is none, or it is an adapter without a base.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        if (path / "config.json").is_file():
            return Weights(str(path))
        if not (path / "adapter_config.json").is_file():
            raise UserError(f"{text} holds no model: neither config.json nor adapter_config.json is there")
        if base is None:
            raise UserError(f"{text} holds an adapter; give its base model as the id beside it")
        return Weights(base.base, base.revision, str(path))
    name, _, revision = text.partition("@")
    if text.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"{text}: no such folder; a supplied checkpoint is a folder or a hub id (owner/name@revision)")
    return Weights(name, revision or "main")


def load_tokenizer(weights: Weights) -> Any:
    """The tokenizer beside the weights."""
    from transformers import AutoTokenizer

    return _from(AutoTokenizer, weights)


def load_model(weights: Weights, dtype: torch.dtype = torch.float32, merge: bool = True) -> Any:
    """The causal language model; an adapter is merged into it unless `merge` is False, when it stays trainable."""
    from transformers import AutoModelForCausalLM

    model = _from(AutoModelForCausalLM, weights, dtype=dtype)
    if weights.adapter is None:
        return model
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(model, weights.adapter, is_trainable=not merge)
    return adapted.merge_and_unload() if merge else adapted


def add_lora(model: Any, lora: LoraConfig) -> Any:
    """`model` with new low-rank adapters, all else frozen.

    Raises:
        UserError: no module bears one of the target names.
    """
    from peft import LoraConfig as PeftLoraConfig
    from peft import TaskType, get_peft_model

    found = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    missing = [t for t in lora.targets if t not in found]
    if missing:
        raise UserError(f"model.lora.targets names {missing}, which {type(model).__name__} does not have")
    settings = PeftLoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
    )
    return get_peft_model(model, settings)


def without_adapter(model: Any) -> Any:
    """The causal language model inside a peft wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def check_positions(model: Any, needed: int, keys: str) -> None:
    """Refuse lengths that a model has no positions for.

    Raises:
        UserError: naming the config keys that ask for too much.
    """
    limit = getattr(without_adapter(model).config, "max_position_embeddings", None)
    if limit is not None and needed > limit:
        raise UserError(f"{keys} ask for {needed} positions, {type(without_adapter(model)).__name__} has {limit}")


def last_hidden(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The last hidden states `[B, T, d]` that the output head reads."""
    body = without_adapter(model).base_model
    return body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state


def quiet_transformers() -> None:
    """No bars for loading and saving weights: a stage's own bar is what a person watches."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _from(auto: Any, weights: Weights, **options: Any) -> Any:
    quiet_transformers()
    try:
        return auto.from_pretrained(weights.base, revision=weights.revision or "main", **options)
    except (OSError, ValueError) as error:
        if Path(weights.base).is_dir():
            raise
        raise UserError(hub.problems(weights.base, None, "model", error)) from None
