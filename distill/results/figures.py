"""Figures, each written as a CSV of its numbers, SVG and PNG. A figure is a function registered under a name."""

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
from distill.results.header import header, seeds_line
from distill.results.manifest import Manifest
from distill.results.rendering import Rendered, markdown_table
from distill.results.table import RowData, curves, epochs_table, logged, rows_of

SIZE, DOTS = (7.0, 4.2), 150  # size in inches, and resolution of the PNG in dots per inch
GRID = 2001  # number of points that a density is computed at


@dataclass(frozen=True)
class FigureData:
    """The data that a figure is drawn from.

    Attributes:
        experiment: the figure's YAML.
        rows: the rows with their measurements; empty for a figure without a model.
        results: the results folder.
    """

    experiment: Experiment
    rows: Sequence[RowData]
    results: str | Path


@dataclass(frozen=True)
class Drawing:
    """A figure's numbers and the function that plots them.

    Attributes:
        frame: the plotted numbers.
        plot: plots the numbers on matplotlib axes; with several panels it gets a list of them.
        table: a table for the markdown page, below the picture; None for no table.
        panels: the number of panels, one below the other, with one x axis.
    """

    frame: pd.DataFrame
    plot: Callable[[Any], None]
    table: pd.DataFrame | None = None
    panels: int = 1


FIGURES: dict[str, Callable[[FigureData], Drawing]] = {}


def figure(name: str) -> Callable[[Callable[[FigureData], Drawing]], Callable[[FigureData], Drawing]]:
    """A function decorator that registers a figure under the name that an experiment's `draw` gives."""

    def add(draw: Callable[[FigureData], Drawing]) -> Callable[[FigureData], Drawing]:
        if name in FIGURES:
            raise ValueError(f"the figure name {name} is taken; register another")
        FIGURES[name] = draw
        return draw

    return add


def check_figure(experiment: Experiment) -> None:
    """Check that the figure's function exists.

    Raises:
        UserError: no figure is registered under the name of `draw`. The message lists the registered names.
    """
    if experiment.draw is not None and experiment.draw not in FIGURES:
        raise UserError(f"draw={experiment.draw} is not a figure; the figures are {', '.join(sorted(FIGURES))}")


def write_figure(manifest: Manifest, experiment: Experiment, results: str | Path) -> Rendered:
    """Write a figure's CSV, SVG, PNG and a markdown page with its header. Only the manifest's runs are read."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    assert experiment.draw is not None
    rows = rows_of(manifest, results)
    drawing = FIGURES[experiment.draw](FigureData(experiment, rows, results))
    lines = header(rows, experiment, manifest)
    folder = manifest.folder(results)
    with matplotlib.rc_context({"svg.hashsalt": manifest.table, "svg.fonttype": "none"}):
        width, height = SIZE
        size = width, height * (1 + 0.45 * (drawing.panels - 1))
        canvas, axes = pyplot.subplots(drawing.panels, 1, sharex=True, figsize=size, layout="constrained")
        drawing.plot(axes)
        (axes if drawing.panels == 1 else axes[0]).set_title(experiment.title, loc="left")
        for kind, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": DOTS})):
            content = io.BytesIO()
            canvas.savefig(content, format=kind, **options)
            write_whole(folder / f"{manifest.name}.{kind}", content.getvalue())
        pyplot.close(canvas)
    path = folder / f"{manifest.name}.csv"
    write_whole(path, drawing.frame.to_csv(index=False, lineterminator="\n"))
    seeds = [seeds_line(manifest, rows), ""] if rows else []
    page = [f"# {experiment.title}", "", *lines, "", *seeds, f"![{experiment.title}]({manifest.name}.svg)", ""]
    page += [markdown_table(drawing.table), ""] if drawing.table is not None else []
    write_whole(folder / f"{manifest.name}.md", "\n".join(page))
    return Rendered(drawing.frame, lines, path)


@figure("validation")
def validation(data: FigureData) -> Drawing:
    """Validation ROUGE-L by epoch, a curve a row: the mean over trainings, in a band of one standard deviation."""
    frame = curves(data.rows, data.results)

    def plot(axes: Any) -> None:
        for label, row_lines in frame.groupby("row", sort=False):
            by_epoch = row_lines.groupby("epoch")["value"]
            mean, std = by_epoch.mean(), by_epoch.std(ddof=1).fillna(0.0)
            (line,) = axes.plot(mean.index, mean.to_numpy(), marker=".", label=str(label))
            if (std > 0).any():
                axes.fill_between(mean.index, mean - std, mean + std, alpha=0.15, color=line.get_color(), linewidth=0)
        axes.set_xlabel("epoch")
        axes.set_ylabel("validation ROUGE-L")
        if len(frame):
            axes.legend(fontsize="small", ncols=2)

    return Drawing(frame, plot, epochs_table(frame) if len(frame) else None)


LIMITS = {  # what a training with DAC-KL logs: column, title of its axis, whether that is logarithmic
    "kd_high": ("limits", True),
    "kd_kept_classes": ("kept classes", True),
    "kd_kept_mass": ("kept mass", False),
    "kd_limit_gradient": ("gradient to limits", True),
}


@figure("limits")
def limits(data: FigureData) -> Drawing:
    """DAC-KL's limits over training, what they keep, and the norm of the gradient to them; means over steps nearby."""
    frame = logged(data.rows, data.results, ["kd_low", *LIMITS])

    def plot(panels: Any) -> None:
        for label, of_row in frame.groupby("row", sort=False):
            means = of_row.groupby("step").mean(numeric_only=True)
            for axes, column in zip(panels, LIMITS, strict=True):
                (line,) = axes.plot(means.index, means[column], label=str(label))
                if column == "kd_high":
                    axes.plot(means.index, means["kd_low"], color=line.get_color(), linestyle="--")
        for axes, (title, logarithmic) in zip(panels, LIMITS.values(), strict=True):
            axes.set_ylabel(title)
            if logarithmic and len(frame):
                axes.set_yscale("log")
        panels[-1].set_xlabel("step")
        if len(frame):
            panels[1].legend(fontsize="small", ncols=2)

    last = frame.groupby(["row", "train_seed"], sort=False).last().groupby("row", sort=False).mean(numeric_only=True)
    last = last.drop(columns="step").map(lambda x: f"{x:.3g}").reset_index()
    names = {"kd_low": "low", "kd_high": "high"} | {
        f"kd_{x}": x.replace("_", " ") for x in ("kept_classes", "kept_mass")
    }
    table = last.rename(columns={**names, "kd_limit_gradient": "gradient"})
    return Drawing(frame, plot, table if len(frame) else None, len(LIMITS))


@figure("toy_gaussian")
def toy_gaussian(data: FigureData) -> Drawing:
    """A mixture of three Gaussians (the teacher) and the two Gaussians that minimise forward and reverse KL to it.

    This is figure 1 of the AKL paper. The paper prints no parameters; these are chosen here. Forward KL has its minimum
    at the mixture's mean and variance. Reverse KL is minimised numerically from each peak of the mixture, and the best
    of the three results is plotted.
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
        positive = q > 0
        return float((q[positive] * np.log(q[positive] / teacher[positive])).sum() * step)

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
