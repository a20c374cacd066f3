"""Loading weights, adapters and tokenizers from folders or the hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.base import hub
from distill.base.errors import UserError
from distill.config.model import LoraConfig
from distill.losses import Head
from distill.models.checkpoint import OUTPUTS, refuse_gaps
from distill.models.damage import refuse_damage
from distill.models.folders import is_adapter

ALL_LINEAR = "all-linear"  # peft's word for every linear layer but the output head


@dataclass(frozen=True)
class Weights:
    """Where to load a model from.

    Attributes:
        base: folder or hub id of the model's weights.
        revision: branch, tag or commit on the hub; None is `main`.
        adapter: folder of an adapter for these weights; None is none.
    """

    base: str
    revision: str | None = None
    adapter: str | None = None


def supplied(text: str, base: Weights | None) -> Weights:
    """The checkpoint that `model.*.path` names.

    Args:
        text: a folder with a model or an adapter, or a hub id `owner/name@revision`.
        base: the weights that an adapter is for.

    Raises:
        UserError: the text looks like a folder that does not exist, the folder has no model, or it has an adapter and
            `base` is None.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        if not is_adapter(path):
            return Weights(str(path))
        if base is None:
            raise UserError(f"{text} holds an adapter; give its base model as the id beside it")
        return Weights(base.base, base.revision, str(path))
    hub.refuse_missing_folder(text)
    name, _, revision = text.partition("@")
    return Weights(name, revision or "main")


def load_tokenizer(weights: Weights) -> Any:
    """The tokenizer that is stored with the weights."""
    from transformers import AutoTokenizer

    return _from(AutoTokenizer, weights)


def load_config(weights: Weights) -> Any:
    """The settings that are stored with the weights, as transformers has them."""
    from transformers import AutoConfig

    return _from(AutoConfig, weights)


def load_model(weights: Weights, dtype: torch.dtype = torch.float32, merge: bool = True) -> Any:
    """The causal language model.

    Args:
        weights: where it is.
        dtype: of its weights.
        merge: whether an adapter is merged into the weights; if not, it stays separate and trainable.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    model, loading = _from(
        AutoModelForCausalLM, weights, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
    )
    refuse_gaps(weights.base, loading)
    # Settings that lie beside the weights would change texts; only the special tokens stay, for those who use the model
    beside = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=beside.bos_token_id, eos_token_id=beside.eos_token_id, pad_token_id=beside.pad_token_id
    )
    for key, value in OUTPUTS.items():
        setattr(model.config, key, value)
    if weights.adapter is None:
        return model
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(model, weights.adapter, is_trainable=not merge)
    # peft has frozen the base weights, and the merged ones are trained
    return adapted.merge_and_unload().requires_grad_(True) if merge else adapted


@torch.inference_mode()
def check_head(model: Any) -> None:
    """Refuse a model whose logits are not those that `output_head` gives for its last hidden states.

    Raises:
        UserError: the two differ on a probe of two tokens.
    """
    ids = torch.tensor([[1, 2]], device=model.device)
    mask = torch.ones_like(ids)
    expected = model.eval()(input_ids=ids, attention_mask=mask).logits.float()
    logits = output_head(model)(last_hidden(model, ids, mask)[0])
    if (logits - expected[0]).abs().max() > 0.05 * expected.abs().max() + 1e-3:
        raise UserError(
            f"{type(without_adapter(model)).__name__} does more to its logits than a linear head with scale and"
            " softcap; this family is not supported"
        )


@dataclass(frozen=True)
class Shape:
    """A model's sizes, computed from its config without loading weights.

    Attributes:
        parameters: number of all parameters; tied embeddings count once.
        body: number of weights in the linear layers other than the output head, which every token passes through.
        layers: number of layers.
        hidden: width of the hidden states.
        inner: width of the widest linear layer.
        classes: width of the logits.
        linear: (last part of the name, inputs, outputs) of every linear layer other than the output head.
    """

    parameters: int
    body: int
    layers: int
    hidden: int
    inner: int
    classes: int
    linear: tuple[tuple[str, int, int], ...]

    def lora_parameters(self, rank: int, targets: Sequence[str]) -> int:
        """Number of parameters of low-rank adapters on the layers with these names."""
        every = ALL_LINEAR in targets
        return sum(rank * (i + o) for name, i, o in self.linear if every or name in targets)


def shape_of(weights: Weights, layers: int | None = None) -> Shape:
    """The sizes of a model, without loading its weights.

    Args:
        weights: where the model is; an adapter is not counted.
        layers: number of layers that it is pruned to; None is all.
    """
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    config = load_config(weights)
    if layers is not None:
        config.num_hidden_layers = layers
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    classes, width = model.get_output_embeddings().weight.shape
    linear = [
        (name.rsplit(".", 1)[-1], *(m.weight.shape if isinstance(m, Conv1D) else m.weight.shape[::-1]))
        for name, m in model.named_modules()
        if isinstance(m, (nn.Linear, Conv1D)) and m is not model.get_output_embeddings()
    ]
    body = sum(i * o for _, i, o in linear)
    inner = max((max(i, o) for _, i, o in linear), default=width)
    return Shape(
        model.num_parameters(), body, config.num_hidden_layers, config.hidden_size, inner, classes, tuple(linear)
    )


def add_lora(model: Any, lora: LoraConfig) -> Any:
    """`model` with new low-rank adapters and all other weights frozen.

    Raises:
        UserError: the model has no module with one of the target names.
    """
    from peft import LoraConfig as PeftLoraConfig
    from peft import TaskType, get_peft_model

    module_names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    every = ALL_LINEAR in lora.targets
    missing = [] if every else [t for t in lora.targets if t not in module_names]
    if missing:
        raise UserError(f"model.lora.targets names {missing}, which {type(model).__name__} does not have")
    settings = PeftLoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=ALL_LINEAR if every else lora.targets,
    )
    return get_peft_model(model, settings)


def without_adapter(model: Any) -> Any:
    """The causal language model inside a peft wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


@contextmanager
def in_eval_mode(model: Any) -> Iterator[None]:
    """Put a model into eval mode for a while: without dropout."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def check_positions(settings: Any, needed: int, keys: str) -> None:
    """Refuse sequences that are longer than a model's maximum.

    Args:
        settings: the model's config.
        needed: number of tokens of the longest sequence.
        keys: the config keys that determine it, for the message.

    Raises:
        UserError: the model has fewer positions.
    """
    limit = getattr(settings, "max_position_embeddings", None)
    if limit is not None and needed > limit:
        raise UserError(f"{keys} ask for {needed} positions, and {settings.model_type} has {limit}; lower them")


def last_hidden(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The last hidden states `[B, T, d]` that the output head reads."""
    body = without_adapter(model).base_model
    return body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state


def output_head(model: Any) -> Head:
    """The output head: the linear layer from last hidden states to logits, with the config's logit scale and softcap.

    Raises:
        UserError: the layer is not a plain linear layer (it has an adapter).
    """
    causal = without_adapter(model)
    layer, config = causal.get_output_embeddings(), causal.config
    if type(layer) is not nn.Linear:
        raise UserError(
            f"the output head of {type(causal).__name__} is a {type(layer).__name__}, not a linear layer; leave it out"
            " of model.lora.targets"
        )
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1.0)
    return Head(layer.weight, layer.bias, scale, getattr(config, "final_logit_softcapping", None))


def quiet_transformers() -> None:
    """Switch off transformers' progress bars for loading and saving weights; stages show their own."""
    from transformers.utils import logging

    logging.disable_progress_bar()


@contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' warnings about gaps in weights, which are reported as errors here."""
    from transformers.utils import logging

    quiet_transformers()
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _from(auto: Any, weights: Weights, **options: Any) -> Any:
    hub.refuse_missing_folder(weights.base)
    try:
        with quietly():
            return auto.from_pretrained(
                weights.base, revision=weights.revision or "main", trust_remote_code=False, **options
            )
    except Exception as error:
        folder = Path(weights.base)
        if folder.is_dir():
            refuse_damage(folder)
        elif isinstance(error, (OSError, ValueError)):
            raise UserError(hub.problems(weights.base, None, "model", error)) from None
        raise
