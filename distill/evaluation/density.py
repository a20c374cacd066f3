"""Which probabilities DAC-KL keeps: histograms of the teacher's classes, all of them and those between the limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from distill.data.encode import Encoded
from distill.evaluation.agreement import paired_logits
from distill.losses.base import Divergence
from distill.losses.dac_kl import DacKL
from distill.teacher.signal import StoredTeacher

LOWEST, WIDTH = -12.0, 0.25  # of the bins of log10 p; smaller probabilities are in the first
BINS = int(-LOWEST / WIDTH)


@torch.inference_mode()
def densities(
    divergence: DacKL, student: Any, teacher: Any, rows: Sequence[Encoded], pad_id: int, stored: StoredTeacher | None
) -> dict[str, list[float]]:
    """Classes a token by the teacher's probability: `all`, and `kept`, the sums of the classes' weights.

    Args:
        divergence: with the network of the training.
        student, teacher: causal language models in eval mode.
        rows: the responses whose positions are read.
        pad_id: the token that fills shorter rows of a batch.
        stored: the teacher's hidden states of the rows, in place of its passes.

    Returns:
        For each of the two the `BINS` numbers, from the lowest probability to 1.
    """
    sums, positions = torch.zeros(2, BINS, dtype=torch.float64, device=student.device), 0
    for index, q, p in paired_logits(student, stored or teacher, rows, pad_id):
        q, p = Divergence.log_probs(q, p)
        weights = divergence.weights(q, p)
        bins = ((p / torch.log(torch.tensor(10.0)) - LOWEST) / WIDTH).long().clamp_(0, BINS - 1)
        for total, values in zip(sums, (torch.ones_like(p), weights), strict=True):
            total.index_add_(0, bins.flatten(), values.flatten().double())
        positions += len(index)
    every, kept = (sums / positions).tolist()
    return {"all": every, "kept": kept, "positions": [float(positions)]}
