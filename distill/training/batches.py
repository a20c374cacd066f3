"""Which rows make a batch: a function of lengths, seed, epoch and global batch size alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from distill.base.errors import UserError

POOL = 16  # global batches that are sorted by length together; the rest of the order stays random


class BucketSampler(Sampler[int]):
    """Row indices in an order that fills global batches with rows of like length.

    The order does not depend on how a global batch is split into micro-batches or over devices. A last, smaller batch
    stands last, filled with the index after the last row (a row without a target) to a multiple of `fill_to`.
    """

    def __init__(self, lengths: Sequence[int], global_batch_size: int, seed: int, fill_to: int = 1):
        self.lengths, self.size, self.seed, self.epoch = np.asarray(lengths), global_batch_size, seed, 0
        self.filler = -len(self.lengths) % fill_to

    def __len__(self) -> int:
        return len(self.lengths) + self.filler

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order; Trainer calls it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        rows = rng.permutation(len(self.lengths))
        whole = len(rows) - len(rows) % self.size
        batches = []
        for start in range(0, whole, POOL * self.size):
            pool = rows[start : min(start + POOL * self.size, whole)]
            pool = pool[np.argsort(self.lengths[pool], kind="stable")]
            batches += list(pool.reshape(-1, self.size))
        order = [batches[i] for i in rng.permutation(len(batches))]
        if whole < len(rows):
            order.append(rows[whole:])
        return iter([int(i) for batch in order for i in batch] + [len(rows)] * self.filler)


def micro_batch_size(global_batch_size: int, at_most: int, processes: int) -> int:
    """The largest micro-batch that divides the global batch over `processes` evenly.

    Raises:
        UserError: the global batch is no multiple of the processes.
    """
    share, rest = divmod(global_batch_size, processes)
    if rest:
        raise UserError(f"global_batch_size={global_batch_size} is no multiple of the {processes} processes")
    return max(size for size in range(1, min(share, at_most) + 1) if share % size == 0)
