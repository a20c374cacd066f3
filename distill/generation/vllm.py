"""Writing responses by vLLM, for those who have it: the same prompts and settings, a seed for each request."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch

from distill.base.errors import UserError
from distill.base.processes import world_size
from distill.config.schema import Config
from distill.data.encode import Encoded
from distill.generation.decode import row_digest
from distill.generation.engine import Generation, Writing
from distill.models.load import Weights, load_model, load_tokenizer


class VllmEngine:
    """One model behind vLLM.

    Its texts are drawn by its own sampler: reproducible by (model, prompt, seed) as far as vLLM is, and others than the
    engine's of this project.

    Raises:
        UserError: vLLM is not installed, or several processes were started.
    """

    def __init__(self, config: Config, weights: Weights):
        try:
            import vllm
        except ImportError:
            raise UserError("eval.engine=vllm needs vLLM (pip install vllm), or set eval.engine=transformers") from None
        if world_size() > 1:
            raise UserError("eval.engine=vllm spreads over devices by itself; start one process, not several")
        gc.collect()
        torch.cuda.empty_cache()  # what training left would be missing from the engine's share
        self._vllm = vllm
        place, dtype = weights.base, torch.bfloat16 if config.train.precision == "bf16" else torch.float32
        if weights.adapter is not None:  # vLLM reads whole models
            self._merged = tempfile.TemporaryDirectory()
            place = self._merged.name
            load_model(weights, dtype).save_pretrained(place)
            load_tokenizer(weights).save_pretrained(place)
        self._llm: Any = vllm.LLM(
            model=place,
            revision=None if weights.adapter else weights.revision,
            dtype=str(dtype).removeprefix("torch."),
            max_model_len=config.train.max_prompt_length + config.eval.max_new_tokens,
            enable_prefix_caching=True,
        )

    def write(
        self, prompts: Sequence[Encoded], writing: Writing, progress: Callable[[int], object]
    ) -> list[Generation]:
        """One response for each prompt and seed, by prompt, then seed."""
        decode, rows = writing.decode, [(prompt, seed) for prompt in prompts for seed in writing.seeds]
        settings = [
            self._vllm.SamplingParams(
                temperature=decode.temperature if decode.do_sample else 0.0,
                top_p=decode.top_p,
                top_k=decode.top_k or -1,
                max_tokens=decode.max_new_tokens,
                seed=int.from_bytes(row_digest(seed, writing.set_name, prompt.id)[:4], "little"),
                ignore_eos=True,
                stop_token_ids=[writing.eos_id],
                detokenize=False,
            )
            for prompt, seed in rows
        ]
        inputs = [{"prompt_token_ids": prompt.prompt} for prompt, _ in rows]
        written = []
        for (prompt, seed), output in zip(rows, self._llm.generate(inputs, settings, use_tqdm=False), strict=True):
            tokens = list(output.outputs[0].token_ids)
            ended = bool(tokens) and tokens[-1] == writing.eos_id
            written.append(Generation(prompt.id, seed, tokens[:-1] if ended else tokens, ended))
        progress(len(written))
        return written
