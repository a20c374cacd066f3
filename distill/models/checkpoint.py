"""The check of a checkpoint that no stage of ours made, before anything is computed with it.

transformers and peft fill in what a checkpoint lacks, at random and with a warning that nobody reads. Here every such
gap is an error that names the file, the weights and the way out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from rich.filesize import decimal
from torch import Tensor

from distill.base.console import say
from distill.base.errors import UserError
from distill.base.files import read_json, read_object
from distill.models.damage import check_files, tensors
from distill.models.folders import (
    ADAPTER,
    ADAPTER_CONFIG,
    CONFIG,
    GENERATION,
    TOKENIZER,
    WHOLE,
    is_adapter,
    weight_files,
)
from distill.models.tokenizers import check_tokenizer

WITHOUT_EFFECT = {  # of generation_config.json, on the texts
    "transformers_version", "_from_model_config", "eos_token_id", "bos_token_id", "pad_token_id", "use_cache",
    "output_attentions", "output_hidden_states",
}  # fmt: skip
OUTPUTS = {"return_dict": True, "output_attentions": False, "output_hidden_states": False}  # keys of config.json
ENCODERS = ("n_layers", "layer", "encoder", "transformer", "layers")  # how bert_score finds an encoder's layers
SHOWN = 3  # names in a message
LARGE = 4 * 10**9  # bytes of weights that are not read in an instant
# Constants that older versions of transformers stored with the weights
BUFFERS = (
    ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq",
    "position_ids",
)  # fmt: skip
PREFIX = "base_model.model."  # of peft's names


@cache
def examine(base: str, revision: str, adapter: str | None) -> None:
    """Check weights and tokenizer of a checkpoint: names, shapes, that all numbers are finite. Once per process.

    Args:
        base: folder or hub id of the model.
        revision: of a hub id.
        adapter: folder of an adapter.

    Raises:
        UserError: with everything that is missing, unexpected, of another shape or not finite.
    """
    from distill.models.load import Weights, load_config

    folder = _folder(base, revision)
    if folder is None:  # not on this machine yet; the hub must have it
        load_config(Weights(base, revision))
        return
    if is_adapter(folder):
        raise UserError(f"{base} holds an adapter, where a whole model is needed; give its base model as the id")
    settings = read_object(folder / CONFIG)
    files = _files(folder)
    model = _check_names(folder, settings)
    _check_finite(files, list(model.state_dict()))
    tokenizer = _tokenizer(folder)
    check_tokenizer(str(folder), tokenizer, model.get_input_embeddings().weight.shape[0])
    _say_ignored(folder)
    if adapter is not None:
        _check_adapter(model, Path(adapter))
        _say_of_adapter(Path(adapter), base, tokenizer)


def examine_encoder(folder: Path) -> None:
    """Check an encoder as `examine` checks a language model. A pooler, which no score reads, may be missing.

    Raises:
        UserError: with what is missing, of another shape or not finite.
    """
    from transformers import AutoModel

    settings = read_object(folder / CONFIG)
    files = _files(folder)
    model, loading = _meta(AutoModel, folder, settings)
    if not any(hasattr(model, name) for name in ENCODERS):
        raise UserError(f"{folder}: {type(model).__name__} is no encoder that bert_score can read; choose another")
    missing = [name for name in loading["missing_keys"] if "pooler." not in name]
    refuse_gaps(str(folder), {**loading, "missing_keys": missing, "unexpected_keys": []})
    _check_finite(files)
    _tokenizer(folder)


def _files(folder: Path) -> list[Path]:
    """The files of a folder's weights, after a check that they and all settings beside them can be read.

    Raises:
        UserError: there are none, or a file is damaged.
    """
    files = weight_files(folder)
    if not files:
        raise UserError(f"{folder} holds {CONFIG} and no weights ({' or '.join(WHOLE)})")
    check_files(files)
    for pattern in (*TOKENIZER, "*.index.json"):
        for file in folder.glob(pattern):
            if file.suffix == ".json":
                read_json(file)
    if "-of-" in files[0].name and not list(folder.glob("*.index.json")):
        raise UserError(f"{folder}: the weights are in parts, and their index (*.index.json) is missing; copy it, too")
    return files


def _folder(base: str, revision: str) -> Path | None:
    """Where a checkpoint lies on this machine; None if the hub's cache lacks it."""
    path = Path(base).expanduser()
    if path.is_dir():
        return path
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(base, CONFIG, revision=revision)
    return Path(cached).parent if isinstance(cached, str) else None


def _check_names(folder: Path, settings: dict[str, Any]) -> Any:
    """The model without its weights. Names and shapes of the weights are compared with it.

    Raises:
        UserError: transformers has no such model, or weights are missing, unexpected or of another shape.
    """
    from transformers import AutoModelForCausalLM

    model, loading = _meta(AutoModelForCausalLM, folder, settings)
    refuse_gaps(str(folder), loading)
    return model


def _meta(auto: Any, folder: Path, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A model on the meta device, and what transformers says of the names and shapes of its weights.

    Raises:
        UserError: transformers cannot make the model.
    """
    from distill.models.load import quietly

    try:
        with quietly():
            model, loading = auto.from_pretrained(
                folder, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True,
                trust_remote_code=False,
            )  # fmt: skip
    except Exception as error:  # the code of a model type may raise anything
        kind = settings.get("model_type", "no model_type")
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UserError(f"{folder}: transformers cannot load it ({kind}; {reason})") from None
    return model, loading


def _tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the code of a tokenizer may raise anything
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder}: its tokenizer cannot be loaded ({type(error).__name__}: {reason}); copy the tokenizer's files"
            " (tokenizer.json, tokenizer_config.json) beside the weights"
        ) from None


def refuse_gaps(name: str, loading: dict[str, Any], settings: str = CONFIG) -> None:
    """Refuse a checkpoint whose weights are not exactly its model's.

    Args:
        name: the checkpoint, for the message.
        loading: what transformers' `from_pretrained` says with `output_loading_info`.
        settings: the file that the shapes come from.

    Raises:
        UserError: with the names of missing and unexpected weights and of those with another shape.
    """
    problems = []
    for kind, what in (("missing", "the file lacks"), ("unexpected", "the file has, and the model does not,")):
        constants = BUFFERS if kind == "unexpected" else ()
        if names := sorted(name for name in loading[f"{kind}_keys"] if not name.endswith(constants)):
            problems.append(f"{name}: {what} {_listed(names)} of the weights")
    if wrong := sorted(loading["mismatched_keys"]):
        shapes = [f"{key} {list(stored)} where {settings} says {list(asked)}" for key, stored, asked in wrong]
        problems.append(f"{name}: weights of another shape: {_listed(shapes)}")
    if problems:
        only_more = not loading["missing_keys"] and not wrong
        what = "leave them out" if only_more else "fill the gaps with random numbers"
        problems[-1] += (
            f"; transformers would {what}. Save the model with save_pretrained, or mend the names (a prefix such as"
            f" model. or module. is a common cause) or {settings}"
        )
        raise UserError(problems)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def _check_finite(files: Sequence[Path], weights: Sequence[str] = ()) -> None:
    """Refuse stored weights that are not finite.

    Args:
        weights: the model's names. A constant of old versions of transformers that it has not is not looked at.

    Raises:
        UserError: with the names of such weights and their files.
    """
    if (size := sum(file.stat().st_size for file in files)) > LARGE:
        say(f"{files[0].parent}: looking through {decimal(size)} of weights for numbers that are not finite")
    is_constant = lambda name: name.endswith(BUFFERS) and not any(x.endswith(name) for x in weights)  # noqa: E731
    wrong = [
        f"{name} in {file.name}"
        for file in files
        for name, tensor in tensors(file)
        if isinstance(tensor, Tensor)
        and tensor.is_floating_point()
        and not is_constant(name)
        and not bool(torch.isfinite(tensor).all())
    ]
    if wrong:
        raise UserError(f"{files[0].parent}: weights that are not finite: {_listed(wrong)}; take an earlier checkpoint")


def _say_ignored(folder: Path) -> None:
    """Say which settings for generation lie beside the weights: the config alone decides how texts are written."""
    if (folder / GENERATION).is_file():
        try:
            settings = read_object(folder / GENERATION)
        except UserError as error:
            settings = {}
            say(f"{error.problems[0].partition(';')[0]}; it is ignored")
        acting = sorted(key for key, value in settings.items() if key not in WITHOUT_EFFECT and value is not None)
        if acting:
            say(f"{folder}: {GENERATION} is ignored ({', '.join(acting)}); eval.* decides how texts are written")
    settings = read_object(folder / CONFIG)
    if asked := [key for key, value in OUTPUTS.items() if settings.get(key, value) != value]:
        say(f"{folder}: {', '.join(asked)} of {CONFIG} is ignored; what a model returns is settled here")


def _check_adapter(model: Any, folder: Path) -> None:
    """Compare an adapter's weights with those that peft would make on its base model.

    Raises:
        UserError: there are none, or they are missing, unexpected, of another shape or not finite.
    """
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict

    read_object(folder / ADAPTER_CONFIG)
    files = weight_files(folder, ADAPTER)
    if not files:
        raise UserError(f"{folder} holds {ADAPTER_CONFIG} and no weights ({' or '.join(ADAPTER)})")
    check_files(files)
    of_base = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    stored = {name: tuple(tensor.shape) for file in files for name, tensor in tensors(file)}
    try:
        settings = PeftConfig.from_pretrained(str(folder))
        if settings.is_prompt_learning:
            raise ValueError(f"{settings.peft_type} adds a prompt and cannot be merged into weights")
        with torch.device("meta"):
            adapted = get_peft_model(model, settings)
    except Exception as error:  # peft raises many kinds
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder}: peft cannot put it on its base model ({reason})") from None
    made = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    asked = {name: tuple(tensor.shape) for name, tensor in made.items()}
    whole = {name: shape for name, shape in stored.items() if name not in asked}  # such as embeddings
    resized = {
        name: (shape, of_base[base_name])
        for name, shape in whole.items()
        if (base_name := name.removeprefix(PREFIX)) in of_base and shape != of_base[base_name]
    }
    if resized:
        name, (stored_shape, base_shape) = next(iter(resized.items()))
        raise UserError(
            f"{folder}: the adapter was trained with another vocabulary than its base model has ({name}:"
            f" {list(stored_shape)}, the base {list(base_shape)}); merge it first where it was trained"
            " (merge_and_unload, save_pretrained with the tokenizer) and name that folder"
        )
    loading = {
        "missing_keys": [name for name in asked if name not in stored],
        "unexpected_keys": [name for name in whole if name.removeprefix(PREFIX) not in of_base],
        "mismatched_keys": [
            (name, stored[name], shape) for name, shape in asked.items() if name in stored and stored[name] != shape
        ],
    }
    refuse_gaps(str(folder), loading, ADAPTER_CONFIG)
    _check_finite(files)


def _say_of_adapter(folder: Path, base: str, tokenizer: Any) -> None:
    """Say where an adapter's folder speaks of another base model or another tokenizer than it is used with."""
    trained_on = str(read_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path") or "")
    if trained_on and Path(trained_on).name.lower() != Path(base).name.lower():
        say(f"{folder}: the adapter was trained on {trained_on}, and is put on {base}")
    try:
        own = _tokenizer(folder).get_vocab() if (folder / "tokenizer.json").is_file() else {}
    except UserError:
        say(f"{folder}: its tokenizer cannot be loaded; that of {base} is used")
        return
    if more := sorted(own.keys() - tokenizer.get_vocab().keys()):
        say(f"{folder}: its tokenizer is not used; that of {base} is, which lacks {_listed(more)}")
