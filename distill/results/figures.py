"""Figures, each written as a CSV of its numbers, SVG and PNG. A figure is a function registered under a name."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pandas as pd

from distill.base.errors import UserError
from distill.base.files import write_whole
from distill.results import toys  # noqa: F401  registers its figures
from distill.results.comparisons import comparisons
from distill.results.drawing import FIGURES, Drawing, FigureData, figure
from distill.results.experiment import Experiment
from distill.results.header import compares_with_paper, header, seeds_line
from distill.results.manifest import Manifest
from distill.results.markdown import markdown_table
from distill.results.printed import paper_numbers
from distill.results.rendering import Rendered
from distill.results.sections import claims_section, inconsistencies_section, note_on_tests
from distill.results.table import MISSING, columns_of, curves, epochs_table, logged, rows_of

LOWEST, BIN = -12.0, 0.25  # the bins of `distill.evaluation.density`
SIZE, DOTS = (7.0, 4.2), 150  # size in inches, and resolution of the PNG in dots per inch


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
    drawing = FIGURES[experiment.draw](FigureData(experiment, rows, results, manifest))
    lines = [*drawing.notes, *header(rows, experiment, manifest)]
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
    columns = columns_of(experiment, manifest)
    tests = comparisons(rows, columns, experiment)
    page += claims_section(rows, columns, experiment, manifest.model, tests)
    page += [note_on_tests(tests, rows), ""] if tests else []
    page += inconsistencies_section(experiment)
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
NO_GRADIENT = 1e-9  # where the axis of the gradient's norm ends: at the end of training it is 1e-20 and less


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
            panels[-1].set_ylim(bottom=max(panels[-1].get_ylim()[0], NO_GRADIENT))
            panels[1].legend(fontsize="small", ncols=2)

    if frame.empty:
        return Drawing(frame, plot, None, len(LIMITS))
    last = frame.groupby(["row", "train_seed"], sort=False).last().groupby("row", sort=False).mean(numeric_only=True)
    last = last.drop(columns="step").map(lambda x: f"{x:.3g}").reset_index()
    names = {"kd_low": "low", "kd_high": "high"} | {
        f"kd_{x}": x.replace("_", " ") for x in ("kept_classes", "kept_mass")
    }
    table = last.rename(columns={**names, "kd_limit_gradient": "gradient"})
    return Drawing(frame, plot, table, len(LIMITS))


@figure("bars")
def bars(data: FigureData) -> Drawing:
    """A group of bars for each column of a table, a bar a row, with its standard deviation; the paper's as lines."""
    paper, _ = paper_numbers(data.experiment, data.manifest.model)
    lines = []
    for column in columns_of(data.experiment, data.manifest):
        for row in data.rows:
            value, number = row.cell(column), paper.get((row.label, column.title))
            lines.append(
                {
                    "column": column.title,
                    "row": row.label,
                    "mean": None if value is None else value.mean,
                    "std": None if value is None else value.std,
                    "paper": "" if number is None else str(number),
                }
            )
    frame = pd.DataFrame(lines)
    titles, labels = list(dict.fromkeys(frame["column"])), list(dict.fromkeys(frame["row"]))
    is_comparable = compares_with_paper(data.rows, data.experiment, data.manifest)

    def plot(axes: Any) -> None:
        width = 0.8 / len(labels)
        for place, label in enumerate(labels):
            of_row = frame[frame["row"] == label].set_index("column").loc[titles]
            x = [i + (place - (len(labels) - 1) / 2) * width for i in range(len(titles))]
            axes.bar(x, of_row["mean"].astype(float), width, yerr=of_row["std"].astype(float), capsize=2, label=label)
            if is_comparable:
                printed = [float(text.split()[0]) if text else float("nan") for text in of_row["paper"]]
                axes.plot(x, printed, linestyle="", marker="_", color="black", markersize=12)
        axes.set_xticks(range(len(titles)), titles)
        axes.set_ylabel("ROUGE-L")
        axes.legend(fontsize="small", ncols=2)

    cells = frame.assign(text=[MISSING if pd.isna(m) else f"{m:.2f}" + ("" if pd.isna(s) else f" ({s:.2f})")
                               for m, s in zip(frame["mean"], frame["std"], strict=True)])  # fmt: skip
    table = cells.pivot(index="row", columns="column", values="text").loc[labels, titles]
    return Drawing(frame, plot, table.rename_axis(columns=None).reset_index())


FEWEST = 1e-4  # classes a token that the axis of the density begins at; weights may be as small as 1e-40


@figure("density")
def density(data: FigureData) -> Drawing:
    """Classes a token by the teacher's probability, all of them and those that each row's DAC-KL keeps."""
    lines = []
    for row in data.rows:
        names = row.lines["metric"].astype(str).str.extract(r"^density:(all|kept):(\d+)$")
        of_row = row.lines.assign(what=names[0], place=names[1]).dropna(subset="place")
        of_row = of_row.assign(place=of_row["place"].astype(int), value=of_row["value"].astype(float))
        means = of_row.groupby(["what", "place"], as_index=False)["value"].mean()
        for what, place, value in means.itertuples(index=False, name=None):
            low = LOWEST + place * BIN
            lines.append({"row": row.label, "classes": what, "log10 p from": low, "to": low + BIN, "a token": value})
    frame = pd.DataFrame(lines, columns=["row", "classes", "log10 p from", "to", "a token"])

    def plot(axes: Any) -> None:
        drawn = False
        for (label, what), of_line in frame.groupby(["row", "classes"], sort=False):
            if what == "all" and drawn:
                continue  # all rows read the same teacher
            drawn = drawn or what == "all"
            edges = [*of_line["log10 p from"], of_line["to"].iloc[-1]]
            name = "all classes" if what == "all" else f"kept by {label}"
            axes.stairs(of_line["a token"], edges, label=name, fill=what == "all", alpha=0.3 if what == "all" else 1.0)
        axes.set_xlabel("log10 of the teacher's probability")
        axes.set_ylabel("classes a token")
        if len(frame):
            axes.set_yscale("log")
            axes.set_ylim(bottom=FEWEST)
            axes.legend(fontsize="small")

    totals = frame.groupby(["row", "classes"], sort=False)["a token"].sum().unstack() if len(frame) else None
    table = None if totals is None else totals.map("{:.2f}".format).rename_axis(columns=None).reset_index()
    return Drawing(frame, plot, table)
