"""The head of a distribution: the fewest top classes whose mass reaches a share, without sorting the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

SHORT = 16  # classes that hold half of a language model's mass nearly always; few enough for a partial sort
BUCKETS = 1024  # of log-probability, for flat distributions: only the bucket where the mass crosses is sorted
DEPTH = 32.0  # nats below the top class that the buckets reach down to; the last holds all that is below


def head_mask(log_probs: Tensor, probs: Tensor, mass: float, crossing: bool = True) -> Tensor:
    """True at the head's classes `[N, V]`, the one that crosses `mass` included.

    Without `crossing` it is left out, unless it is the top class, as in AKL's published file.

    Classes above the one where the mass is reached are always in the head; of classes tied with it, some are.
    """
    exact = torch.float32 if probs.device.type == "mps" else torch.float64
    size = min(SHORT, probs.shape[-1])
    top, classes = probs.topk(size, dim=-1)
    before = top.to(exact).cumsum(-1) - top
    inside = before < mass if crossing else before + top <= mass
    mask = torch.zeros_like(probs, dtype=torch.bool).scatter_(-1, classes, inside)
    if size < probs.shape[-1]:
        rows = (before[:, -1] + top[:, -1] < mass).nonzero().squeeze(-1)
        if rows.numel():
            mask[rows] = _long_head(log_probs[rows], probs[rows].to(exact), mass, crossing)
    if not crossing:
        mask.scatter_(-1, classes[:, :1], True)
    return mask


def _long_head(log_probs: Tensor, probs: Tensor, mass: float, crossing: bool) -> Tensor:
    """As `head_mask`, for rows whose head is long."""
    depth = log_probs.amax(-1, keepdim=True) - log_probs
    bucket = depth.mul_(BUCKETS / DEPTH).clamp_(max=BUCKETS - 1).long()
    held = torch.zeros(probs.shape[0], BUCKETS, dtype=probs.dtype, device=probs.device)
    held.scatter_add_(-1, bucket, probs)
    reached = held.cumsum(-1)
    where = (reached < mass).sum(-1, keepdim=True).clamp_(max=BUCKETS - 1)
    above = (reached - held).gather(-1, where).squeeze(-1)
    mask = bucket < where
    row, index = (bucket == where).nonzero(as_tuple=True)  # row by row
    order = probs[row, index].sort(descending=True, stable=True).indices
    order = order[row[order].sort(stable=True).indices]  # by row, largest first
    row, index = row[order], index[order]
    candidates = probs[row, index]
    running = candidates.cumsum(0) - candidates
    first = torch.searchsorted(row, torch.arange(probs.shape[0], device=row.device))
    before = above[row] + running - running[first[row]]
    mask[row, index] = before < mass if crossing else before + candidates <= mass
    return mask
