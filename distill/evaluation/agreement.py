"""How far a student agrees with its teacher on the same text: top-1, forward and reverse KL at response positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from distill.base.console import bar
from distill.data.encode import IGNORE, Collator, Encoded
from distill.losses import build
from distill.losses.logits import chunk_size
from distill.models.load import last_hidden, output_head
from distill.teacher.signal import LiveTeacher, StoredTeacher

# Read at most this many examples of a set, those with the smallest content hash, and of each its first reference.
ROWS = 500
BATCH = 16


@torch.inference_mode()
def agreement(student: Any, teacher: Any, rows: Sequence[Encoded], pad_id: int) -> dict[str, float]:
    """How far the next-token distributions of student and teacher agree over the responses of `rows`.

    Both models read each row's own response (teacher forcing).

    Args:
        student, teacher: causal language models in eval mode, on one device, with one tokenizer. The teacher may be a
            store of its hidden states of the rows.
        pad_id: the token that fills shorter rows of a batch.

    Returns:
        `top1`: the percentage of positions at which both models rank the same token first; `fkl`, `rkl`: the means over
        positions of KL(p || q) and KL(q || p) in nats, with q the student; `positions`: their number.
    """
    sums, positions = torch.zeros(3, dtype=torch.float64, device=student.device), 0
    for index, q, p in paired_logits(student, teacher, rows, pad_id):
        positions += len(index)
        sums += _sums(q, p)
    top1, fkl, rkl = (sums / positions).tolist()
    return {"top1": 100 * top1, "fkl": fkl, "rkl": rkl, "positions": positions}


@torch.inference_mode()
def paired_logits(
    student: Any, teacher: Any, rows: Sequence[Encoded], pad_id: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Both models' logits at all response positions, in chunks: index within the response `[n]`, `q` and `p` `[n, V]`.

    If one model's vocabulary is wider, because it is padded, its logits are cut to the width of the other's.
    """
    reader = teacher if isinstance(teacher, StoredTeacher) else LiveTeacher(teacher)
    ordered = sorted(rows, key=lambda row: len(row.prompt) + len(row.response))
    heads = output_head(student), reader.head
    width = min(head.weight.shape[0] for head in heads)
    step = chunk_size(max(head.weight.shape[0] for head in heads), student.device)
    with bar(len(ordered), "  student and teacher read", "row") as progress_bar:
        for begin in range(0, len(ordered), BATCH):
            of_batch = ordered[begin : begin + BATCH]
            batch = Collator(pad_id)(of_batch)
            ids, mask, labels = (batch[k].to(student.device) for k in ("input_ids", "attention_mask", "labels"))
            valid = labels != IGNORE
            index = (valid.cumsum(1) - 1)[valid]
            hidden = last_hidden(student, ids, mask)[valid], reader(ids, mask, valid, batch["example_ids"])
            for start in range(0, len(index), step):
                parts = (x[start : start + step].to(head.weight.dtype) for head, x in zip(heads, hidden, strict=True))
                q, p = (head(part)[:, :width] for head, part in zip(heads, parts, strict=True))
                yield index[start : start + step], q, p
            progress_bar.update(len(of_batch))


def _sums(student: Tensor, teacher: Tensor) -> Tensor:
    """Sums over positions `[3]`: of equal first tokens, forward KL and reverse KL."""
    same = (student.argmax(-1) == teacher.argmax(-1)).double().sum()
    return torch.stack([same, *(build(name)(student, teacher).double().sum() for name in ("fkl", "rkl"))])
