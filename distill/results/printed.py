"""The numbers that the papers print, in results/paper."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from distill.base import locations
from distill.results.experiment import Experiment, RowConfig

PRINTED_AS = {"Teacher": ["Teacher (SFT)"], "SFT": []}  # how papers print their labels, too


@dataclass(frozen=True)
class PaperNumber:
    """A number as a paper prints it.

    Attributes:
        mean: the printed mean.
        std: the printed standard deviation; "" if there is none.
    """

    mean: str
    std: str

    @property
    def numbers(self) -> tuple[float, float]:
        """Mean and standard deviation as numbers."""
        return float(self.mean), float(self.std)

    def __str__(self) -> str:
        return f"{self.mean} ({self.std})" if self.std else self.mean


def paper_numbers(experiment: Experiment, model: str) -> tuple[dict[tuple[str, str], PaperNumber], list[str]]:
    """The paper's numbers by (row, column), and a line for each number that a later source prints differently.

    Each number is from the first source that has it; its standard deviation may be from a later one.

    Args:
        experiment: the table.
        model: the pair. For a pair that the paper does not have, the numbers are those of the experiment's pair.
    """
    first: dict[tuple[str, str], tuple[PaperNumber, str]] = {}
    differences = []
    context = {label: RowConfig(paper=names) for label, names in PRINTED_AS.items()} if experiment.context else {}
    rows = {**context, **experiment.rows}
    block = experiment.blocks.get(model) or experiment.blocks.get(experiment.model or "")
    row_field, column_field = ("column", "row") if experiment.transposed else ("row", "column")
    for source in experiment.sources:
        frame = pd.read_csv(locations.PAPER / f"{source}.csv", dtype=str, keep_default_na=False)
        if block is not None:
            frame = frame[frame["row"].str.startswith(f"{block}|")]
            frame = frame.assign(row=frame["row"].str.rpartition("|")[2])
        cells = frame.drop_duplicates([row_field, column_field]).set_index([row_field, column_field])[["mean", "std"]]
        printed = {position: PaperNumber(*numbers) for position, *numbers in cells.itertuples()}
        for label, row in rows.items():
            for column, config in experiment.columns.items():
                name = config.paper.get(model) or config.paper.get(experiment.model or "") or column
                number = next((printed[p] for p in printed if p[1] == name and p[0] in (label, *row.paper)), None)
                if number is None:
                    continue
                if config.batches_a_second is not None:
                    number = PaperNumber(f"{1 / (config.batches_a_second * float(number.mean)):.3g}", "")
                first_number, first_source = first.setdefault((label, column), (number, source))
                if first_number.mean == number.mean and not (first_number.std and number.std):
                    if number.std:  # one table prints it, the other does not
                        first[label, column] = number, source
                elif first_number != number:
                    differences.append(f"{label}, {column}: {first_number} in {first_source}, {number} in {source}")
    return {position: number for position, (number, _) in first.items()}, differences
