"""The order of the training rows: it depends only on lengths, seed, epoch and global batch size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from distill.base.errors import UserError

# This many global batches are sorted by length together. Which rows they hold and in what order they come is random.
POOL = 16


class BucketSampler(Sampler[int]):
    """Row indices in an order that fills global batches with rows of similar length.

    The order does not depend on how a global batch is split into micro-batches or over devices. If the rows do not fill
    the last global batch, it is smaller and comes last. It is padded to a multiple of `fill_to` with the index after
    the last row, which must be a row without a target.

    Args:
        lengths: the number of tokens of each row.
        global_batch_size: rows of an optimizer step, over all processes.
        seed: the training seed.
        fill_to: the number of rows (indices) is padded to a multiple of this.
    """

    def __init__(self, lengths: Sequence[int], global_batch_size: int, seed: int, fill_to: int = 1):
        self.lengths, self.size, self.seed, self.epoch = np.asarray(lengths), global_batch_size, seed, 0
        self.filler = -len(self.lengths) % fill_to

    def __len__(self) -> int:
        return len(self.lengths) + self.filler

    def set_epoch(self, epoch: int) -> None:
        """Select the order of this epoch. Trainer calls it."""
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
