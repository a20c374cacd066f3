"""Exposure bias as excess accumulated error (ExAccErr; Arora et al. 2022, as MiniLLM's paper uses it)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from distill.data.encode import Encoded
from distill.evaluation.agreement import paired_logits
from distill.losses import build
from distill.teacher.signal import StoredTeacher

LENGTHS = (50, 100, 200)  # as MGSR's table prints them


def excess_error(
    student: Any,
    teacher: Any,
    by_student: Sequence[Encoded],
    by_teacher: Sequence[Encoded],
    lengths: Sequence[int],
    pad_id: int,
    stored: StoredTeacher | None = None,
) -> dict[int, float]:
    """`(R(l) - l e(l)) / (l e(l))` in percent, for each length l; none where the two models are the same.

    R(l) is the forward KL of teacher to student at the first l positions of texts that the student wrote, accumulated,
    and l e(l) the same over texts that the teacher wrote; each is a mean over texts, and a text that has ended adds
    nothing. 0 would be a student that goes no further astray on its own text than on the teacher's.

    Args:
        student, teacher: causal language models in eval mode, on one device, with one tokenizer.
        by_student, by_teacher: prompts with sampled responses, EOS included where one ended a response.
        stored: the teacher's hidden states over its own texts, where it has read them.

    Raises:
        ValueError: no text.
    """
    longest = max(lengths)
    own, theirs = (
        _at_positions(student, reader, rows, longest, pad_id).cumsum(0)
        for reader, rows in ((teacher, by_student), (stored or teacher, by_teacher))
    )
    found = {}
    for length in lengths:
        if theirs[length - 1] > 0:
            found[length] = float(100 * (own[length - 1] - theirs[length - 1]) / theirs[length - 1])
    return found


@torch.inference_mode()
def _at_positions(student: Any, teacher: Any, rows: Sequence[Encoded], longest: int, pad_id: int) -> Tensor:
    """Forward KL at each of the first response positions, a mean over all rows `[longest]`, float64."""
    if not rows:
        raise ValueError("no text to measure exposure bias on")
    kl, sums = build("fkl"), torch.zeros(longest, dtype=torch.float64)
    for positions, q, p in paired_logits(student, teacher, rows, pad_id):
        early = positions < longest
        sums.index_add_(0, positions[early].cpu(), kl(q, p)[early].double().cpu())
    return sums / len(rows)
