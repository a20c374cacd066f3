"""An attention function for transformers that attends to a row's shared prefix and to its response separately."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

if TYPE_CHECKING:
    from distill.generation.cache import RowCache

NAME = "shared_prefixes"  # of the attention function in transformers' registry
PLAIN_QUERIES = 4  # up to this many queries per key head, plain matrix products are faster than the fused CPU kernel

_CACHE: ContextVar[RowCache | None] = ContextVar("cache", default=None)


@contextmanager
def using_cache(cache: RowCache) -> Iterator[None]:
    """Inside this context, models under `sharing_prefixes` attend to the keys and values of this cache."""
    token = _CACHE.set(cache)
    try:
        yield
    finally:
        _CACHE.reset(token)


@contextmanager
def sharing_prefixes(model: Any) -> Iterator[None]:
    """Inside this context, the model uses this attention function. Prefills still run transformers' own."""
    previous = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(previous)


def _forward(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Any]:
    """The attention output `[rows, tokens, heads, width]` for queries `[rows, heads, tokens, width]`, and no weights.

    Without a cache (in a prefill) this is transformers' own function.
    """
    cache = _CACHE.get()
    if cache is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    rows, heads, _, width = query.shape
    scale = width**-0.5 if options.get("scaling") is None else options["scaling"]
    grouped = query.reshape(rows, key.shape[1], -1, width)  # by key head
    assert attention_mask is not None
    response, response_lse = attend(grouped, key, value, attention_mask, scale)
    prefix, prefix_lse = cache.attend_prefixes(cache.layers[module.layer_idx], grouped, scale)
    response_share = torch.sigmoid(response_lse - prefix_lse).unsqueeze(-1)  # of the attention weights' sum
    out = torch.lerp(prefix.float(), response.float(), response_share).to(query.dtype)
    return out.view(rows, 1, heads, width), None


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The attention output, and the log-sum-exp of the attention scores `[rows, heads, queries]` in fp32.

    Args:
        query: `[rows, heads, queries, width]`.
        key: `[rows, heads, columns, width]`.
        value: `[rows, heads, columns, width]`.
        bias: added to the scores, broadcast to `[rows, heads, queries, columns]`.
        scale: multiplies the scores before the bias is added.
    """
    # With few queries, plain products are faster, but in bf16 they would round the scores
    if query.device.type == "cpu" and (query.shape[2] > PLAIN_QUERIES or query.dtype != torch.float32):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, attn_mask=bias, scale=scale
        )
    scores = torch.matmul(query, key.transpose(2, 3)).float().mul_(scale).add_(bias.float())
    lse = scores.logsumexp(-1)
    return torch.matmul(scores.sub_(lse.unsqueeze(-1)).exp_().to(value.dtype), value), lse


def attention_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The bias `[rows, 1, 1, columns]` of attention scores: -inf where `mask` `[rows, columns]` is 0, else 0."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask == 0, -torch.inf)[:, None, None]


AttentionInterface.register(NAME, _forward)
AttentionMaskInterface.register(NAME, sdpa_mask)
