"""The engine that `eval.engine` names, with its model loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from distill.config.schema import Config
from distill.generation.engine import write_group
from distill.generation.requests import Decoding, Progress, Request, Response
from distill.generation.vllm import VllmEngine
from distill.models.load import Weights, check_positions, load_model, without_adapter

# Writes the responses of one group, in the order of its requests.
WriteGroup = Callable[[Sequence[Request], Decoding, Progress], list[Response]]


def load_engine(config: Config, weights: Weights, loaded: Callable[[], Any] | None = None) -> WriteGroup:
    """A function that writes a group's responses with this model.

    The model is loaded once, in the precision of training, on the GPU if there is one.

    Args:
        config: the whole config.
        weights: the model.
        loaded: returns the model of these weights, on its device and in eval mode; None loads it here.

    Raises:
        UserError: the model has too few positions for the longest prompt and response; or, with `eval.engine=vllm`,
            vLLM is not installed or several processes run.
    """
    if config.eval.engine == "vllm":
        return VllmEngine(config, weights).write
    if loaded is not None:
        model = loaded()
    else:
        dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = load_model(weights, dtype).to(device).eval()
    needed = config.train.max_prompt_length + config.eval.max_new_tokens
    check_positions(without_adapter(model).config, needed, "train.max_prompt_length and eval.max_new_tokens")
    return partial(write_group, model)
