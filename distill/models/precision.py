"""Whether this machine computes in the precision of a config at a bearable speed."""

from __future__ import annotations

import time
from functools import cache

import torch

from distill.base.errors import UserError

SLOWER = 10.0  # than fp32; a processor without bf16 instructions is some hundred times slower
ROWS, WIDTH = 64, 256  # of the products that are timed: 8.4 MFLOP


def check_precision(precision: str) -> None:
    """Try both precisions for a moment, once per process.

    Raises:
        UserError: the config's one is more than `SLOWER` times slower than fp32.
    """
    if precision == "fp32" or torch.cuda.is_available():
        return
    bf16, fp32 = (products_per_second(dtype) for dtype in (torch.bfloat16, torch.float32))
    if fp32 > SLOWER * bf16:
        raise UserError(
            f"train.precision={precision}: this processor computes in it {fp32 / bf16:.0f} times slower than in fp32"
            f" (it has no instructions for it); set train.precision=fp32, or use another machine"
        )


@cache
def products_per_second(dtype: torch.dtype) -> float:
    """Matrix products `[ROWS, WIDTH] x [WIDTH, WIDTH]` a second, the fastest of a few."""
    a, b = torch.ones(ROWS, WIDTH, dtype=dtype), torch.ones(WIDTH, WIDTH, dtype=dtype)
    taken = []
    for _ in range(4):  # the first one prepares
        started = time.perf_counter()
        a @ b
        taken.append(time.perf_counter() - started)
    return 1 / min(taken)
