"""Figures: a CSV of the plotted numbers, SVG and PNG. Each is a function registered under its `draw` name."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from distill.base.errors import UserError
from distill.base.files import write_whole
from distill.results.experiment import Experiment
from distill.results.header import header, spread
from distill.results.manifest import Manifest
from distill.results.rendering import Rendered
from distill.results.table import RowData, curves, rows_of

SIZE, DOTS = (7.0, 4.2), 150  # inches, and dots an inch of the PNG
GRID = 2001  # points of a density


@dataclass(frozen=True)
class Data:
    """What a figure is drawn from.

    Attributes:
        experiment: its definition.
        rows: its rows with what was measured; none for a figure without a model.
        results: the results folder.
    """

    experiment: Experiment
    rows: Sequence[RowData]
    results: str | Path


@dataclass(frozen=True)
class Drawing:
    """A figure's numbers, and how they are put on axes.

    Attributes:
        frame: the plotted numbers.
        plot: draws them on matplotlib's axes.
    """

    frame: pd.DataFrame
    plot: Callable[[Any], None]


FIGURES: dict[str, Callable[[Data], Drawing]] = {}


def figure(name: str) -> Callable[[Callable[[Data], Drawing]], Callable[[Data], Drawing]]:
    """Function decorator: register a figure under the name that an experiment's `draw` gives."""

    def add(draw: Callable[[Data], Drawing]) -> Callable[[Data], Drawing]:
        if name in FIGURES:
            raise ValueError(f"the figure {name} is taken")
        FIGURES[name] = draw
        return draw

    return add


def check_figure(experiment: Experiment) -> None:
    """Refuse a figure that nothing draws.

    Raises:
        UserError: with the names that there are.
    """
    if experiment.draw is not None and experiment.draw not in FIGURES:
        raise UserError(f"draw={experiment.draw}: there are {', '.join(sorted(FIGURES))}")


def write_figure(manifest: Manifest, experiment: Experiment, results: str | Path) -> Rendered:
    """Write a figure's CSV, SVG, PNG and a page with its header; nothing but the manifest's runs is read."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    assert experiment.draw is not None
    rows = rows_of(manifest, results)
    drawing = FIGURES[experiment.draw](Data(experiment, rows, results))
    lines = header(rows, experiment, manifest)
    folder = manifest.folder(results)
    with matplotlib.rc_context({"svg.hashsalt": manifest.table, "svg.fonttype": "none"}):
        drawn, axes = pyplot.subplots(figsize=SIZE, layout="constrained")
        drawing.plot(axes)
        axes.set_title(experiment.title, loc="left")
        for kind, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": DOTS})):
            content = io.BytesIO()
            drawn.savefig(content, format=kind, **options)
            write_whole(folder / f"{manifest.name}.{kind}", content.getvalue())
        pyplot.close(drawn)
    path = folder / f"{manifest.name}.csv"
    write_whole(path, drawing.frame.to_csv(index=False, lineterminator="\n"))
    over = [spread(manifest, rows), ""] if rows else []
    page = [f"# {experiment.title}", "", *lines, "", *over, f"![{experiment.title}]({manifest.name}.svg)", ""]
    write_whole(folder / f"{manifest.name}.md", "\n".join(page))
    return Rendered(drawing.frame, lines, path)


@figure("validation")
def validation(data: Data) -> Drawing:
    """Validation ROUGE-L by epoch, a line a row: the mean over trainings, with a band of their standard deviation."""
    frame = curves(data.rows, data.results)

    def plot(axes: Any) -> None:
        for label, own in frame.groupby("row", sort=False):
            by_epoch = own.groupby("epoch")["value"]
            mean, std = by_epoch.mean(), by_epoch.std(ddof=1).fillna(0.0)
            (line,) = axes.plot(mean.index, mean.to_numpy(), marker=".", label=str(label))
            if (std > 0).any():
                axes.fill_between(mean.index, mean - std, mean + std, alpha=0.15, color=line.get_color(), linewidth=0)
        axes.set_xlabel("epoch")
        axes.set_ylabel("validation ROUGE-L")
        if len(frame):
            axes.legend(fontsize="small", ncols=2)

    return Drawing(frame, plot)


@figure("toy_gaussian")
def toy_gaussian(data: Data) -> Drawing:
    """A mixture of three Gaussians (the teacher) and the one Gaussian nearest to it by forward and by reverse KL.

    AKL, figure 1. The paper prints no parameters; these are ours. Forward KL is least where mean and variance are the
    mixture's own. Reverse KL is minimised on a grid from a start at each peak, and the least of the three is kept.
    """
    from scipy import optimize, stats

    weights, means, deviations = np.array([0.3, 0.45, 0.25]), np.array([-6.0, 0.0, 7.0]), np.array([0.7, 0.8, 0.9])
    x = np.linspace(-18.0, 18.0, GRID)
    step = x[1] - x[0]
    teacher = (weights[:, None] * stats.norm.pdf(x, means[:, None], deviations[:, None])).sum(0)
    mean = float(weights @ means)
    deviation = float(np.sqrt(weights @ (deviations**2 + means**2) - mean**2))

    def reverse_kl(parameters: np.ndarray) -> float:
        q = stats.norm.pdf(x, parameters[0], np.exp(parameters[1]))
        inside = q > 0
        return float((q[inside] * np.log(q[inside] / teacher[inside])).sum() * step)

    starts = zip(means, deviations, strict=True)
    fits = [optimize.minimize(reverse_kl, np.array([m, np.log(d)]), method="Nelder-Mead") for m, d in starts]
    best = min(fits, key=lambda fit: fit.fun)
    frame = pd.DataFrame(
        {
            "x": x.round(6),
            "teacher": teacher,
            "forward KL": stats.norm.pdf(x, mean, deviation),
            "reverse KL": stats.norm.pdf(x, best.x[0], np.exp(best.x[1])),
        }
    )

    def plot(axes: Any) -> None:
        axes.fill_between(frame["x"], frame["teacher"], alpha=0.2, color="black", linewidth=0, label="teacher")
        for name in ("forward KL", "reverse KL"):
            axes.plot(frame["x"], frame[name], label=f"student by {name}")
        axes.set_xlabel("value")
        axes.set_ylabel("density")
        axes.legend(fontsize="small")

    return Drawing(frame, plot)
