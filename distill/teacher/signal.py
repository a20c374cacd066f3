"""The teacher's side of a divergence: a live teacher, or its last hidden states stored once and read by example id.

Both give the teacher's hidden states at response positions and its output head, so a divergence works with either. If
the training data does not change, storing them needs only one forward pass of the teacher, for any number of epochs and
losses. The hidden states are stored exactly, in the teacher's dtype. The head is stored too, to compute the logits.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
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
    """A teacher that runs on every batch.

    Args:
        model: a causal language model. Its parameters are frozen.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model.requires_grad_(False)
        self.train(False)

    @property
    def head(self) -> Head:
        """Maps hidden states to logits."""
        return output_head(self.model)

    def train(self, mode: bool = True) -> LiveTeacher:
        """Stays in eval mode: a teacher has no dropout."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, input_ids: Tensor, attention_mask: Tensor, valid: Tensor, example_ids: Sequence[str]) -> Tensor:
        """Last hidden states `[N, d]` at the `valid` positions of `[B, T]`, row by row."""
        return last_hidden(self.model, input_ids, attention_mask)[valid]


class StoredTeacher(nn.Module):
    """The teacher's output head and its hidden states, read from a memory-mapped file.

    Args:
        folder: see `write_store`.

    Attributes:
        weight, bias: of the output head; see `Head`.
        hidden: the hidden states of all rows `[positions, d]`; bfloat16 as its bits in uint16.
        index: for each example id the first position and the number of positions.
        teacher: the identity of the teacher's weights.

    Raises:
        UserError: a file is missing or incomplete, or the files do not belong together.
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
            contents = f"{self.hidden.shape[0]} positions of {self.hidden.shape[1]} numbers"
            raise UserError(
                f"the stored teacher in {folder} holds {contents} for {stored['tokens']} of {head['weight'].shape[1]};"
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
        """Maps hidden states to logits."""
        return Head(self.weight, self.bias, self.scale, self.softcap)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, valid: Tensor, example_ids: Sequence[str]) -> Tensor:
        """Last hidden states `[N, d]` at the `valid` positions of `[B, T]`, row by row.

        Raises:
            UserError: an example is not in the store, or has another number of response positions there.
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
    """The teacher for samplers that generate text during training.

    It takes stored hidden states for rows of the store, remembered ones for texts that it has read before, those that
    were computed while a text was corrected, and runs the live teacher on all others.

    Args:
        live: the live teacher.
        stored: the store of the data set's rows, if there is one.
        remember: whether hidden states of texts that may be trained on again are remembered.

    Attributes:
        reusable: the ids of texts that may be trained on again.
        remembered: hidden states `[n, d]` on the CPU, by id.
        computed: hidden states `[n, d]` of texts of the present step, by id.
    """

    def __init__(self, live: LiveTeacher, stored: StoredTeacher | None, remember: bool):
        super().__init__()
        self.live, self.stored, self.remember = live, stored, remember
        self.reusable: set[str] = set()
        self.remembered: dict[str, Tensor] = {}
        self.computed: dict[str, Tensor] = {}

    @property
    def head(self) -> Head:
        """Maps hidden states to logits."""
        return self.live.head

    def hold(self, ids: set[str]) -> None:
        """Set the ids of texts that may be trained on again, and delete the hidden states of all others."""
        self.reusable = ids if self.remember else set()
        self.remembered = {name: hidden for name, hidden in self.remembered.items() if name in self.reusable}

    @torch.no_grad()
    def forward(self, input_ids: Tensor, attention_mask: Tensor, valid: Tensor, example_ids: Sequence[str]) -> Tensor:
        """Last hidden states `[N, d]` at the `valid` positions of `[B, T]`, row by row."""
        stored = self.stored.index if self.stored is not None else {}
        there: list[Mapping[str, Any]] = [stored, self.remembered, self.computed]
        new = [i for i, name in enumerate(example_ids) if not any(name in known for known in there)]
        hidden_by_index: dict[int, Tensor] = {}
        if new:
            longest = int(attention_mask[new].sum(1).max())
            ids, mask, at = (x[new, :longest] for x in (input_ids, attention_mask, valid))
            hidden = self.live(ids, mask, at, [example_ids[i] for i in new])
            hidden_by_index = dict(zip(new, hidden.split(at.sum(1).tolist()), strict=True))
        for i, name in enumerate(example_ids):
            if name in stored:
                assert self.stored is not None
                row = slice(i, i + 1)
                hidden_by_index[i] = self.stored(input_ids[row], attention_mask[row], valid[row], [name])
            elif name in self.remembered:
                hidden_by_index[i] = self.remembered[name].to(valid.device)
            else:
                if name in self.computed:
                    hidden_by_index[i] = self.computed[name].to(valid.device)
                if name in self.reusable:
                    self.remembered[name] = hidden_by_index[i].cpu().clone()
        return torch.cat([hidden_by_index[i] for i in range(len(example_ids))])


def store_bytes(rows: Sequence[Encoded], width: int, itemsize: int) -> int:
    """Bytes of the hidden states of `rows` in a store.

    Args:
        width: numbers in a hidden state.
        itemsize: bytes of a number.
    """
    return sum(len(row.response) for row in rows) * width * itemsize


def damage(folder: Path, teacher: str) -> str | None:
    """A message that says why a store cannot be used, or None if it can.

    Args:
        teacher: the identity of the teacher's weights that the store should be of.
    """
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
    """Run the teacher once over `rows` and write its last hidden states at response positions and its head to `folder`.

    Args:
        pad_id: the token that fills shorter rows of a batch.
        dtype: of the teacher and the stored hidden states.
        teacher: the identity of the weights, for `damage`.
        loaded: gives the model of these weights in `dtype` and eval mode, if the caller has it loaded.

    Returns:
        `tokens`: the number of stored positions; `bytes`: the size on disk.

    Raises:
        UserError: the disk has not enough free space. This is checked before the model is loaded.
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
    collate, position = Collator(pad_id), 0
    with torch.inference_mode(), bar(len(rows), "  teacher signal", "row") as progress_bar:
        for begin in range(0, len(rows), STORE_BATCH):
            part = rows[begin : begin + STORE_BATCH]
            inputs = collate(part)
            valid = inputs["labels"] != IGNORE
            states = last_hidden(model, inputs["input_ids"].to(device), inputs["attention_mask"].to(device)).cpu()
            for i, row in enumerate(part):
                response_states = states[i][valid[i]].to(dtype)
                stop = position + len(response_states)
                bits = response_states.view(torch.uint16) if dtype == torch.bfloat16 else response_states
                hidden[position:stop] = bits.numpy()
                index[row.id] = [position, len(response_states)]
                position = stop
            progress_bar.update(len(part))
    hidden.flush()
    parts = {"weight": head.weight, **({} if head.bias is None else {"bias": head.bias})}
    save_file({name: part.detach().cpu().contiguous() for name, part in parts.items()}, folder / HEAD)
    stored = {"tokens": total, "dtype": str(dtype).removeprefix("torch."), "scale": head.scale,
              "softcap": head.softcap, "rows": index, "teacher": teacher}  # fmt: skip
    (folder / INDEX).write_text(json.dumps(stored))
    return {"tokens": total, "bytes": size}
