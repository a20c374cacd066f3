"""Generation by vLLM, from the same requests and settings as this project's engine, with a seed per request."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Sequence
from typing import Any

import torch

from distill.base.errors import UserError
from distill.base.processes import world_size
from distill.config.schema import Config
from distill.generation.decode import row_digest
from distill.generation.requests import Decoding, Progress, Request, Response, check_requests
from distill.models.load import Weights, load_model, load_tokenizer


class VllmEngine:
    """A model that vLLM runs.

    vLLM has its own sampler: its responses differ from those of this project's engine, and they are only as
    reproducible as vLLM.

    Raises:
        UserError: vLLM is not installed, or several processes were started.
    """

    def __init__(self, config: Config, weights: Weights):
        try:
            import vllm
        except ImportError:
            raise UserError(
                "eval.engine=vllm needs vLLM, which is not installed; run pip install vllm, or set"
                " eval.engine=transformers"
            ) from None
        if world_size() > 1:
            raise UserError(
                f"eval.engine=vllm runs in one process, but {world_size()} were started; start the command without"
                " torchrun or accelerate launch"
            )
        gc.collect()
        torch.cuda.empty_cache()  # vLLM reserves a share of the GPU memory at its start
        self._vllm = vllm
        dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
        model_path = weights.base
        if weights.adapter is not None:  # vLLM gets the adapter merged into the weights
            self._merged = tempfile.TemporaryDirectory()
            model_path = self._merged.name
            load_model(weights, dtype).save_pretrained(model_path)
            load_tokenizer(weights).save_pretrained(model_path)
        self._llm: Any = vllm.LLM(
            model=model_path,
            revision=None if weights.adapter else weights.revision,
            dtype=str(dtype).removeprefix("torch."),
            generation_config="vllm",  # not the settings that lie beside the weights
            max_model_len=config.train.max_prompt_length + config.eval.max_new_tokens,
            enable_prefix_caching=True,
        )

    def write(self, requests: Sequence[Request], decoding: Decoding, progress: Progress) -> list[Response]:
        """One response for each request, in their order; see `distill.generation.engine.generate`.

        Raises:
            ValueError: a request has neither a prompt nor a beginning, or its room is negative.
        """
        check_requests(requests)
        sampling = decoding.settings
        with_room = [request for request in requests if request.room]  # vLLM refuses to write 0 tokens
        parameters = [
            self._vllm.SamplingParams(
                temperature=sampling.temperature if sampling.do_sample else 0.0,
                top_p=sampling.top_p,
                top_k=sampling.top_k or -1,
                max_tokens=request.room,
                seed=int.from_bytes(row_digest(request.stream)[:4], "little"),
                ignore_eos=True,
                stop_token_ids=[decoding.eos_id],
                detokenize=False,
                allowed_token_ids=None if decoding.vocabulary is None else list(range(decoding.vocabulary)),
            )
            for request in with_room
        ]
        inputs = [{"prompt_token_ids": request.prefix} for request in with_room]
        outputs = iter(self._llm.generate(inputs, parameters, use_tqdm=False) if inputs else [])
        responses = []
        for request in requests:
            tokens = list(next(outputs).outputs[0].token_ids) if request.room else []
            ended = bool(tokens) and tokens[-1] == decoding.eos_id
            responses.append(Response(tokens[:-1] if ended else tokens, ended))
        progress(len(responses))
        return responses
