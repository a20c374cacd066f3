"""The order of the training rows, and how a global batch is split into micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from distill.base.errors import UserError


class RandomOrder(Sampler[int]):
    """Row indices in a random order that depends on the training seed and the epoch alone.

    A global batch is a run of consecutive indices, so that its rows are a uniform draw, however it is split into
    micro-batches or over processes. Batches of rows of similar length would change the objective: a batch of short
    responses has as large a step as a batch of long ones, so that a token of a short response weighs more.

    The last global batch is smaller if the rows do not fill it. It is padded to a multiple of `fill_to` with the index
    after the last row, which must be a row without a target.

    Args:
        rows: the number of rows.
        seed: the training seed.
        fill_to: the number of indices is padded to a multiple of this.
    """

    def __init__(self, rows: int, seed: int, fill_to: int = 1):
        self.rows, self.seed, self.epoch = rows, seed, 0
        self.fillers = -rows % fill_to

    def __len__(self) -> int:
        return self.rows + self.fillers

    def set_epoch(self, epoch: int) -> None:
        """Select the order of this epoch. Trainer calls it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.rows)
        return iter([*order.tolist(), *[self.rows] * self.fillers])


def length_groups(lengths: Sequence[int], groups: int, tokens: int) -> list[list[int]]:
    """Indices of rows in groups of similar length: the split into micro-batches with the least padding.

    A group of n rows takes n times its longest row in memory and time. The groups are consecutive parts of the rows
    sorted by length, with the least sum of these sizes (by dynamic programming). Groups of short rows have more rows.

    Args:
        lengths: the number of tokens of each row.
        groups: the number of groups, at most the number of rows. None is empty.
        tokens: the size that no group exceeds, unless the groups of equally many rows exceed it too.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    count = len(order)
    equal = -(-count // groups)
    longest = np.array([lengths[i] for i in order], dtype=float)
    limit = max(float(tokens), equal * longest[0])
    best = np.full((groups + 1, count + 1), np.inf)  # by number of groups and of rows: the least sum of sizes
    best[0, 0] = 0.0
    starts = np.zeros((groups + 1, count + 1), dtype=int)
    for group in range(1, groups + 1):
        for end in range(group, count + 1):
            sizes = np.arange(end, 0, -1) * longest[:end]
            sums = best[group - 1, :end] + np.where(sizes <= limit, sizes, np.inf)
            starts[group, end] = int(sums.argmin())
            best[group, end] = sums[starts[group, end]]
    parts, end = [], count
    for group in range(groups, 0, -1):
        start = int(starts[group, end])
        parts.append(order[start:end])
        end = start
    return parts


def micro_batch_size(global_batch_size: int, at_most: int, processes: int) -> int:
    """The largest micro-batch size that splits each process's share of the global batch evenly.

    Args:
        at_most: the upper limit, `train.micro_batch_size`.
        processes: the number of processes.

    Raises:
        UserError: the global batch size is not a multiple of the number of processes.
    """
    share, rest = divmod(global_batch_size, processes)
    if rest:
        raise UserError(f"global_batch_size={global_batch_size} is no multiple of the {processes} processes")
    return max(size for size in range(1, min(share, at_most) + 1) if share % size == 0)
