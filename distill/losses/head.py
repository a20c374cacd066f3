"""The head of a distribution: the fewest top classes whose mass reaches a threshold, without sorting all classes."""

from __future__ import annotations

import torch
from torch import Tensor

SHORT = 16  # this many top classes nearly always have half of a language model's mass, and a partial sort is fast
BUCKETS = 1024  # of log-probability, for flat distributions: only the bucket where the mass is reached is sorted
DEPTH = 32.0  # the buckets cover this many nats below the top class; the last bucket also has all classes below


def head_mask(log_probs: Tensor, probs: Tensor, mass: float, crossing: bool = True) -> Tensor:
    """A mask `[N, V]` that is True at the classes of the head: the fewest top classes that together have `mass`.

    Among classes of equal probability at the end of the head, the choice is arbitrary.

    Args:
        log_probs: log-probabilities `[N, V]`.
        probs: the same as probabilities `[N, V]`.
        mass: the mass of the head, in (0, 1].
        crossing: whether the class with which the mass is reached belongs to the head. If not, as in AKL's published
            file, it is left out, unless it is the top class.
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
    """`head_mask` for rows whose head has more than `SHORT` classes; without the rule for the top class."""
    depth = log_probs.amax(-1, keepdim=True) - log_probs
    bucket = depth.mul_(BUCKETS / DEPTH).clamp_(max=BUCKETS - 1).long()
    bucket_mass = torch.zeros(probs.shape[0], BUCKETS, dtype=probs.dtype, device=probs.device)
    bucket_mass.scatter_add_(-1, bucket, probs)
    reached = bucket_mass.cumsum(-1)
    last = (reached < mass).sum(-1, keepdim=True).clamp_(max=BUCKETS - 1)
    above = (reached - bucket_mass).gather(-1, last).squeeze(-1)
    mask = bucket < last
    row, index = (bucket == last).nonzero(as_tuple=True)  # ordered by row
    order = probs[row, index].sort(descending=True, stable=True).indices
    order = order[row[order].sort(stable=True).indices]  # by row, largest first
    row, index = row[order], index[order]
    candidates = probs[row, index]
    running = candidates.cumsum(0) - candidates
    first = torch.searchsorted(row, torch.arange(probs.shape[0], device=row.device))
    before = above[row] + running - running[first[row]]
    mask[row, index] = before < mass if crossing else before + candidates <= mass
    return mask
