"""Logits of chunks of tokens: the output head, its buffers, and how many tokens a chunk may have."""

from __future__ import annotations

from dataclasses import dataclass, replace

import psutil
import torch
from torch import Tensor

CHUNK_BYTES = 100 * 2**20  # of student and teacher logits together, on a CPU
SHARE = 32  # a chunk may take 1 / SHARE of the memory
CHUNK_COST = 24  # bytes of a chunk per token and class: logits, log-probabilities and their products


@dataclass(frozen=True)
class Head:
    """An output layer: `softcap * tanh(scale * (h W^T + bias) / softcap)`, each part optional.

    Attributes:
        weight: `[V, d]`.
        bias: `[V]`.
        scale: multiplies the logits (Cohere's logit_scale, Granite's 1 / logits_scaling).
        softcap: bounds them (Gemma 2's final_logit_softcapping).
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, hidden: Tensor, into: Tensor | None = None) -> Tensor:
        """Logits `[N, V]` of hidden states `[N, d]`, in fp32 or better.

        Args:
            hidden: the hidden states.
            into: a buffer `[>= N, V]` of the weight's dtype that the logits are written to; None allocates one.
        """
        if into is None:
            logits = mm(hidden, self.weight.t())
        else:
            logits = torch.mm(hidden, self.weight.t(), out=into[: hidden.shape[0]])
        if self.bias is not None:
            logits += self.bias
        if self.scale != 1.0:
            logits *= self.scale
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def to(self, dtype: torch.dtype) -> Head:
        """The same head with weight and bias in `dtype`."""
        return replace(self, weight=self.weight.to(dtype), bias=None if self.bias is None else self.bias.to(dtype))


def mm(a: Tensor, b: Tensor) -> Tensor:
    """A matrix product in fp32 or better.

    With bf16 factors the result is fp32 on CUDA; elsewhere it is computed in bf16, so rounded once, and converted.
    """
    if a.is_cuda and a.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a, b).to(torch.promote_types(a.dtype, torch.float32))


_BUFFERS: dict[tuple[int, torch.dtype], Tensor] = {}


def buffer(which: int, rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A buffer `[rows, width]` for the logits of all chunks.

    On a CPU it is reused by the next call, since page faults of newly allocated memory cost time.
    """
    if device.type != "cpu":
        return torch.empty(rows, width, dtype=dtype, device=device)
    memory = _BUFFERS.get((which, dtype))
    if memory is None or memory.numel() < rows * width:
        with torch.inference_mode(False):  # training could not overwrite a tensor made in inference mode
            memory = _BUFFERS[which, dtype] = torch.empty(rows * width, dtype=dtype)
    return memory[: rows * width].view(rows, width)


def chunk_size(classes: int, device: torch.device, own: int = 0) -> int:
    """Tokens per chunk: on a CPU `CHUNK_BYTES` of logits, on a GPU a share of its memory.

    The share is of the total memory, not of the free memory: a resumed training must sum in the same order.

    Args:
        classes: width of the widest head.
        device: where the logits are computed.
        own: number of the divergence's own parameters; on a CPU their gradient sums count as part of `CHUNK_BYTES`, of
            which half stays for the logits.
    """
    if device.type != "cuda":
        chunk_bytes = min(CHUNK_BYTES, psutil.virtual_memory().total // SHARE)
        return max(16, max(chunk_bytes - 4 * own, chunk_bytes // 2) // (8 * classes))
    whole = torch.cuda.get_device_properties(device).total_memory
    return int(min(2048, max(64, whole / SHARE / (CHUNK_COST * classes))))
