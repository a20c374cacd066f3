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
    """Excess accumulated error `(R(l) - l e(l)) / (l e(l))` in percent, for each length l.

    R(l) is the forward KL from teacher to student, summed over the first l positions of texts that the student wrote.
    l e(l) is the same sum over texts that the teacher wrote. Both are means over texts; a position after a text's end
    adds 0. If the result is 0, the student's error does not grow more on its own texts than on the teacher's. A length
    with l e(l) = 0, as for two equal models, is left out.

    Args:
        student, teacher: causal language models in eval mode, on one device, with one tokenizer.
        by_student, by_teacher: prompts with sampled responses, including EOS if it ended a response.
        lengths: the numbers of positions l.
        pad_id: the token that fills shorter rows of a batch.
        stored: the teacher's hidden states of its own texts, if they are stored.

    Raises:
        ValueError: there is no text.
    """
    longest = max(lengths)
    on_student_text, on_teacher_text = (
        _at_positions(student, reader, rows, longest, pad_id).cumsum(0)
        for reader, rows in ((teacher, by_student), (stored or teacher, by_teacher))
    )
    error_by_length = {}
    for length in lengths:
        if on_teacher_text[length - 1] > 0:
            error_by_length[length] = float(
                100 * (on_student_text[length - 1] - on_teacher_text[length - 1]) / on_teacher_text[length - 1]
            )
    return error_by_length


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
