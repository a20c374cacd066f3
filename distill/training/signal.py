"""The teacher's side of a divergence: a live teacher, or its last hidden states stored once and read by example id.

Both give the teacher's logits at response positions; a divergence does not know which one it got. With data that does
not change the teacher's body runs once, however many epochs and losses follow; hidden states are exact in the teacher's
dtype, and logits follow through its head.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.console import bar
from distill.data.encode import IGNORE, Collator, Encoded
from distill.errors import UserError
from distill.models.load import Weights, last_hidden, load_model, without_adapter

HIDDEN, INDEX = "hidden.npy", "index.json"


class LiveTeacher(nn.Module):
    """The teacher run on every batch."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model.requires_grad_(False)
        self.train(False)

    @property
    def classes(self) -> int:
        """Width of the logits."""
        return int(without_adapter(self.model).get_output_embeddings().weight.shape[0])

    def train(self, mode: bool = True) -> LiveTeacher:
        """Stays in eval mode: a teacher's dropout never comes on."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, input_ids: Tensor, attention_mask: Tensor, valid: Tensor, example_ids: Sequence[str]) -> Tensor:
        """Logits `[N, V]` at the `valid` positions of `[B, T]`, row by row."""
        hidden = last_hidden(self.model, input_ids, attention_mask)[valid]
        logits: Tensor = without_adapter(self.model).get_output_embeddings()(hidden)
        return logits


class StoredTeacher(nn.Module):
    """The teacher's head over hidden states read from a memory-mapped file."""

    def __init__(self, folder: Path, head: nn.Linear):
        super().__init__()
        self.head = head.requires_grad_(False)
        self.hidden = np.load(folder / HIDDEN, mmap_mode="r")
        stored = json.loads((folder / INDEX).read_text())
        self.dtype: torch.dtype = getattr(torch, stored["dtype"])
        self.index: dict[str, list[int]] = stored["rows"]
        if stored["tokens"] != len(self.hidden):
            raise UserError(f"{folder}: holds {len(self.hidden)} of {stored['tokens']} positions; remove the folder")

    @property
    def classes(self) -> int:
        """Width of the logits."""
        return self.head.out_features

    @torch.no_grad()
    def forward(self, input_ids: Tensor, attention_mask: Tensor, valid: Tensor, example_ids: Sequence[str]) -> Tensor:
        """Logits `[N, V]` at the `valid` positions of `[B, T]`, row by row.

        Raises:
            UserError: an example is not in the store, or with another number of response positions.
        """
        pieces = [np.asarray(self.hidden[:0])]
        for example, count in zip(example_ids, valid.sum(1).tolist(), strict=True):
            if count == 0:
                continue
            start, stored = self.index.get(example, (0, -1))
            if stored != count:
                raise UserError(f"example {example}: {count} response positions, the stored teacher has {stored}")
            pieces.append(np.asarray(self.hidden[start : start + count]))
        hidden = torch.from_numpy(np.concatenate(pieces)).view(self.dtype).to(valid.device)
        logits: Tensor = self.head(hidden)
        return logits


def store_bytes(rows: Sequence[Encoded], width: int, itemsize: int) -> int:
    """Size of the store of `rows` for hidden states of `width` numbers."""
    return sum(len(row.response) for row in rows) * width * itemsize


def write_store(
    weights: Weights, rows: Sequence[Encoded], pad_id: int, dtype: torch.dtype, folder: Path
) -> dict[str, Any]:
    """Run the teacher's body once over `rows` and keep its last hidden states at response positions.

    Raises:
        UserError: the disk has no room for them.
    """
    model = load_model(weights, dtype)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device).eval()
    rows = list({row.id: row for row in sorted(rows, key=lambda r: len(r.prompt) + len(r.response))}.values())
    width, raw = (
        model.get_output_embeddings().weight.shape[1],
        np.uint16 if dtype == torch.bfloat16 else np.float32,
    )
    size, free = store_bytes(rows, width, np.dtype(raw).itemsize), shutil.disk_usage(folder).free
    if size > 0.9 * free:
        raise UserError(
            f"the stored teacher needs {size / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB free; set"
            " train.teacher_signal=live, or paths.store to another disk"
        )
    total = sum(len(row.response) for row in rows)
    hidden = np.lib.format.open_memmap(folder / HIDDEN, "w+", dtype=raw, shape=(total, width))
    index: dict[str, list[int]] = {}
    collate, at, batch = Collator(pad_id), 0, 16
    with torch.inference_mode(), bar(len(rows), "  teacher signal", "row") as shown:
        for begin in range(0, len(rows), batch):
            part = rows[begin : begin + batch]
            inputs = collate(part)
            valid = inputs["labels"] != IGNORE
            states = last_hidden(model, inputs["input_ids"].to(device), inputs["attention_mask"].to(device)).cpu()
            for i, row in enumerate(part):
                kept = states[i][valid[i]].to(dtype)
                hidden[at : at + len(kept)] = (kept.view(torch.uint16) if dtype == torch.bfloat16 else kept).numpy()
                index[row.id] = [at, len(kept)]
                at += len(kept)
            shown.update(len(part))
    hidden.flush()
    stored = {"tokens": total, "dtype": str(dtype).removeprefix("torch."), "rows": index}
    (folder / INDEX).write_text(json.dumps(stored))
    return {"tokens": total, "bytes": size}


def stored_teacher(weights: Weights, folder: Path, dtype: torch.dtype) -> StoredTeacher:
    """The teacher's head with the store of its hidden states."""
    return StoredTeacher(folder, load_model(weights, dtype).get_output_embeddings())
