"""Pruning of training rows by how much they tell a probe model (Kim and Baek 2024)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from distill.base.console import bar
from distill.data.encode import IGNORE, Collator, Encoded
from distill.models.load import last_hidden, output_head

ROWS = 16  # that the probe reads at once
NLL = "nll.json"


@torch.inference_mode()
def mean_nll(model: Any, rows: Sequence[Encoded], pad_id: int) -> dict[str, float]:
    """The mean negative log-likelihood per response token of each row, in nats, by row id.

    Args:
        model: a causal language model in eval mode.
        rows: rows with responses.
        pad_id: the token that fills shorter rows of a batch.
    """
    collate, head, result = Collator(pad_id), output_head(model), {}
    ordered = sorted(rows, key=lambda row: len(row.prompt) + len(row.response))
    with bar(len(ordered), "  probe", "row") as progress_bar:
        for begin in range(0, len(ordered), ROWS):
            part = ordered[begin : begin + ROWS]
            batch = collate(part)
            ids, mask, labels = (batch[k].to(model.device) for k in ("input_ids", "attention_mask", "labels"))
            hidden = last_hidden(model, ids, mask)
            for row, states, targets in zip(part, hidden, labels, strict=True):
                valid = targets != IGNORE
                loss = torch.nn.functional.cross_entropy(head(states[valid]).float(), targets[valid])
                result[row.id] = float(loss)
            progress_bar.update(len(part))
    return result


def ids_to_keep(nll: Mapping[str, float], share: float) -> set[str]:
    """The ids that pruning keeps: all but the `share` with the least negative log-likelihood.

    Args:
        nll: by id. Equal values are pruned in the order of the ids.
        share: of the rows that are left out; rounded down.
    """
    order = sorted(nll, key=lambda row_id: (nll[row_id], row_id))
    return set(order[int(share * len(order)) :])


def write_nll(nll: Mapping[str, float], folder: Path) -> None:
    """Write what `mean_nll` returned to `folder`."""
    (folder / NLL).write_text(json.dumps(dict(nll)))


def read_nll(folder: Path) -> dict[str, float]:
    """What `write_nll` wrote."""
    values: dict[str, float] = json.loads((folder / NLL).read_text())
    return values
