"""How far a student agrees with its teacher on the same text: top-1, forward and reverse KL at response positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from distill.data.encode import IGNORE, Collator, Encoded
from distill.losses import build
from distill.losses.fused import chunk_size
from distill.models.load import last_hidden, output_head
from distill.teacher.signal import LiveTeacher, StoredTeacher

ROWS = 500  # of a set at most, those whose content hashes come first: its first response each
BATCH = 16


@torch.inference_mode()
def agreement(student: Any, teacher: Any, rows: Sequence[Encoded], pad_id: int) -> dict[str, float]:
    """Both models over the same rows, each position given the reference up to it.

    Args:
        student, teacher: causal language models in eval mode, on one device, with one tokenizer; the teacher may be a
            store of its hidden states over the rows.

    Returns:
        `top1`: positions at which both put the same token first, 0 to 100; `fkl`, `rkl`: mean KL(p || q) and KL(q || p)
        a position in nats, q the student; `positions`: how many there were.
    """
    sums, positions = torch.zeros(3, dtype=torch.float64, device=student.device), 0
    for at, q, p in paired_logits(student, teacher, rows, pad_id):
        positions += len(at)
        sums += _sums(q, p)
    top1, fkl, rkl = (sums / positions).tolist()
    return {"top1": 100 * top1, "fkl": fkl, "rkl": rkl, "positions": positions}


@torch.inference_mode()
def paired_logits(
    student: Any, teacher: Any, rows: Sequence[Encoded], pad_id: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Both models' logits at all response positions, in chunks: index within the response `[n]`, `q` and `p` `[n, V]`.

    A vocabulary's padding that only one of the two has is cut.
    """
    reader = teacher if isinstance(teacher, StoredTeacher) else LiveTeacher(teacher)
    ordered = sorted(rows, key=lambda row: len(row.prompt) + len(row.response))
    heads = output_head(student), reader.head
    width = min(head.weight.shape[0] for head in heads)
    step = chunk_size(max(head.weight.shape[0] for head in heads), student.device)
    for begin in range(0, len(ordered), BATCH):
        batch = Collator(pad_id)(ordered[begin : begin + BATCH])
        ids, mask, labels = (batch[k].to(student.device) for k in ("input_ids", "attention_mask", "labels"))
        valid = labels != IGNORE
        index = (valid.cumsum(1) - 1)[valid]
        hidden = last_hidden(student, ids, mask)[valid], reader(ids, mask, valid, batch["example_ids"])
        for at in range(0, len(index), step):
            parts = (x[at : at + step].to(head.weight.dtype) for head, x in zip(heads, hidden, strict=True))
            q, p = (head(part)[:, :width] for head, part in zip(heads, parts, strict=True))
            yield index[at : at + step], q, p


def _sums(student: Tensor, teacher: Tensor) -> Tensor:
    """Over positions: same first token, forward KL, reverse KL, `[3]`."""
    same = (student.argmax(-1) == teacher.argmax(-1)).double().sum()
    return torch.stack([same, *(build(name)(student, teacher).double().sum() for name in ("fkl", "rkl"))])
