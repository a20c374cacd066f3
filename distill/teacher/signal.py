"""The teacher's side of a divergence: a live teacher, or its last hidden states stored once and read by example id.

Both give the teacher's hidden states at response positions and its head; a divergence does not know which one it got.
With data that does not change the teacher's body runs once, however many epochs and losses follow; hidden states are
exact in the teacher's dtype, and logits follow through its head, which is kept beside them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.filesize import decimal
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distill.base.console import bar, say
from distill.base.errors import UserError
from distill.data.encode import IGNORE, Collator, Encoded
from distill.losses import Head
from distill.models.load import Weights, check_head, last_hidden, load_model, output_head, shape_of

STORE_BATCH = 16  # rows that the teacher reads at once to store its hidden states
HIDDEN, INDEX, HEAD = "hidden.npy", "index.json", "head.safetensors"


class LiveTeacher(nn.Module):
    """The teacher run on every batch."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model.requires_grad_(False)
        self.train(False)

    @property
    def head(self) -> Head:
        """From hidden states to logits."""
        return output_head(self.model)

    def train(self, mode: bool = True) -> LiveTeacher:
        """Stays in eval mode: a teacher's dropout never comes on."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, input_ids: Tensor, attention_mask: Tensor, valid: Tensor, example_ids: Sequence[str]) -> Tensor:
        """Last hidden states `[N, d]` at the `valid` positions of `[B, T]`, row by row."""
        return last_hidden(self.model, input_ids, attention_mask)[valid]


class StoredTeacher(nn.Module):
    """The teacher's head over hidden states read from a memory-mapped file.

    Raises:
        UserError: the store was cut short or its parts do not belong together.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, folder: Path):
        super().__init__()
        try:
            self.hidden = np.load(folder / HIDDEN, mmap_mode="r")
            stored = json.loads((folder / INDEX).read_text())
            head = load_file(folder / HEAD)
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(f"the stored teacher in {folder} cannot be read ({error}); remove the folder") from None
        if self.hidden.shape != (stored["tokens"], head["weight"].shape[1]):
            found = f"{self.hidden.shape[0]} positions of {self.hidden.shape[1]} numbers"
            raise UserError(
                f"the stored teacher in {folder} holds {found} for {stored['tokens']} of {head['weight'].shape[1]};"
                " remove the folder"
            )
        self.register_buffer("weight", head["weight"], persistent=False)
        self.register_buffer("bias", head.get("bias"), persistent=False)
        self.scale, self.softcap = stored["scale"], stored["softcap"]
        self.dtype: torch.dtype = getattr(torch, stored["dtype"])
        self.index: dict[str, list[int]] = stored["rows"]
        self.teacher: str | None = stored.get("teacher")

    @property
    def head(self) -> Head:
        """From hidden states to logits."""
        return Head(self.weight, self.bias, self.scale, self.softcap)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, valid: Tensor, example_ids: Sequence[str]) -> Tensor:
        """Last hidden states `[N, d]` at the `valid` positions of `[B, T]`, row by row.

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
        return torch.from_numpy(np.concatenate(pieces)).view(self.dtype).to(valid.device)


class NewTextTeacher(nn.Module):
    """The teacher where text is written during training: live on new text, stored on the data set's rows if it was
    stored, and remembered, on the processor, for texts that come again."""

    def __init__(self, live: LiveTeacher, stored: StoredTeacher | None, remember: bool):
        super().__init__()
        self.live, self.stored, self.remember = live, stored, remember
        self.wanted: set[str] = set()
        self.remembered: dict[str, Tensor] = {}

    @property
    def head(self) -> Head:
        """From hidden states to logits."""
        return self.live.head

    def hold(self, ids: set[str]) -> None:
        """Which texts may come again; the others are forgotten."""
        self.wanted = ids if self.remember else set()
        self.remembered = {name: hidden for name, hidden in self.remembered.items() if name in self.wanted}

    @torch.no_grad()
    def forward(self, input_ids: Tensor, attention_mask: Tensor, valid: Tensor, example_ids: Sequence[str]) -> Tensor:
        """Last hidden states `[N, d]` at the `valid` positions of `[B, T]`, row by row."""
        known = self.stored.index if self.stored is not None else {}
        new = [i for i, name in enumerate(example_ids) if name not in known and name not in self.remembered]
        found: dict[int, Tensor] = {}
        if new:
            longest = int(attention_mask[new].sum(1).max())
            ids, mask, there = (x[new, :longest] for x in (input_ids, attention_mask, valid))
            hidden = self.live(ids, mask, there, [example_ids[i] for i in new])
            found = dict(zip(new, hidden.split(there.sum(1).tolist()), strict=True))
        for i, name in enumerate(example_ids):
            if name in known:
                assert self.stored is not None
                row = slice(i, i + 1)
                found[i] = self.stored(input_ids[row], attention_mask[row], valid[row], [name])
            elif i not in found:
                found[i] = self.remembered[name].to(valid.device)
            elif name in self.wanted:
                self.remembered[name] = found[i].cpu().clone()
        return torch.cat([found[i] for i in range(len(example_ids))])


def store_bytes(rows: Sequence[Encoded], width: int, itemsize: int) -> int:
    """Size of the store of `rows` for hidden states of `width` numbers."""
    return sum(len(row.response) for row in rows) * width * itemsize


def damage(folder: Path, teacher: str) -> str | None:
    """What is wrong with a store for the teacher of that identity, or None."""
    try:
        stored = StoredTeacher(folder)
    except UserError as error:
        return error.problems[0].removesuffix("; remove the folder")
    return None if stored.teacher == teacher else "its hidden states are another copy's of the teacher"


def write_store(
    weights: Weights,
    rows: Sequence[Encoded],
    pad_id: int,
    dtype: torch.dtype,
    folder: Path,
    teacher: str = "",
    loaded: Callable[[], Any] | None = None,
) -> dict[str, Any]:
    """Run the teacher's body once over `rows` and keep its last hidden states at response positions, and its head.

    Args:
        teacher: identity of the weights, for `damage`.
        loaded: gives the model of these weights in `dtype` where it is at hand, in eval mode.

    Raises:
        UserError: the disk has no room for them; nothing was loaded yet.
    """
    rows = list({row.id: row for row in sorted(rows, key=lambda r: len(r.prompt) + len(r.response))}.values())
    shape, raw = shape_of(weights), np.uint16 if dtype == torch.bfloat16 else np.float32
    size = store_bytes(rows, shape.hidden, np.dtype(raw).itemsize) + shape.classes * shape.hidden * dtype.itemsize
    free = shutil.disk_usage(folder).free
    if size > 0.9 * free:
        raise UserError(
            f"the stored teacher needs {decimal(size)} and the disk has {decimal(free)} free; set"
            " train.teacher_signal=live, or paths.store to another disk"
        )
    total = sum(len(row.response) for row in rows)
    if loaded is None:
        say(f"  hidden states of {total} positions: {decimal(size)} on disk")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = loaded() if loaded is not None else load_model(weights, dtype).to(device).eval()
    check_head(model)
    head = output_head(model)
    hidden = np.lib.format.open_memmap(folder / HIDDEN, "w+", dtype=raw, shape=(total, head.weight.shape[1]))
    index: dict[str, list[int]] = {}
    collate, at = Collator(pad_id), 0
    with torch.inference_mode(), bar(len(rows), "  teacher signal", "row") as shown:
        for begin in range(0, len(rows), STORE_BATCH):
            part = rows[begin : begin + STORE_BATCH]
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
    parts = {"weight": head.weight, **({} if head.bias is None else {"bias": head.bias})}
    save_file({name: part.detach().cpu().contiguous() for name, part in parts.items()}, folder / HEAD)
    stored = {"tokens": total, "dtype": str(dtype).removeprefix("torch."), "scale": head.scale,
              "softcap": head.softcap, "rows": index, "teacher": teacher}  # fmt: skip
    (folder / INDEX).write_text(json.dumps(stored))
    return {"tokens": total, "bytes": size}
