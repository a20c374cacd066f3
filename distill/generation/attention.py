"""Attention in two parts, over a row's shared prefix and over its own response, as a function for transformers."""

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

NAME = "shared_prefixes"
FEW = 4  # up to so many queries a key head, plain products are faster than the fused kernel on a CPU

_READING: ContextVar[RowCache | None] = ContextVar("reading", default=None)


@contextmanager
def reading(cache: RowCache) -> Iterator[None]:
    """Inside this context a model under `sharing_prefixes` decodes over this cache."""
    token = _READING.set(cache)
    try:
        yield
    finally:
        _READING.reset(token)


@contextmanager
def sharing_prefixes(model: Any) -> Iterator[None]:
    """Inside this context the model attends through this module; a prefill is still transformers' own."""
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _forward(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
) -> tuple[Tensor, Any]:
    """An attention function for transformers: from `[rows, heads, tokens, width]` to `[rows, tokens, heads, width]`."""
    cache = _READING.get()
    if cache is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    rows, heads, _, width = query.shape
    scale = width**-0.5 if more.get("scaling") is None else more["scaling"]
    grouped = query.reshape(rows, key.shape[1], -1, width)  # the query heads that read one key head
    assert attention_mask is not None
    own, own_lse = attend(grouped, key, value, attention_mask, scale)
    prefix, prefix_lse = cache.over_prefixes(cache.layers[module.layer_idx], grouped, scale)
    share = torch.sigmoid(own_lse - prefix_lse).unsqueeze(-1)  # the response's part of the attention's mass
    out = torch.lerp(prefix.float(), own.float(), share).to(query.dtype)
    return out.view(rows, 1, heads, width), None


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention, and the log-sum-exp of its scores `[rows, heads, queries]` in fp32.

    Args:
        query: `[rows, heads, queries, width]`; `key` and `value` are `[rows, heads, columns, width]`.
        bias: added to the scores, broadcast to `[rows, heads, queries, columns]`.
    """
    # Few queries in fp32 are faster as plain products; in bf16 those would round the scores
    if query.device.type == "cpu" and (query.shape[2] > FEW or query.dtype != torch.float32):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, attn_mask=bias, scale=scale
        )
    scores = torch.matmul(query, key.transpose(2, 3)).float().mul_(scale).add_(bias.float())
    lse = scores.logsumexp(-1)
    return torch.matmul(scores.sub_(lse.unsqueeze(-1)).exp_().to(value.dtype), value), lse


def attention_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What a mask `[rows, columns]` adds to attention scores `[rows, 1, 1, columns]`: 0, or -inf where it is 0."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask == 0, -torch.inf)[:, None, None]


AttentionInterface.register(NAME, _forward)
AttentionMaskInterface.register(NAME, sdpa_mask)
