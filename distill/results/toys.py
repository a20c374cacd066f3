"""Figures of small distributions that need no model: how forward and reverse KL fit them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from distill.results.drawing import Drawing, FigureData, figure

GRID = 2001  # number of points that a density is computed at
CLASSES = 60  # of the discrete distributions; the paper does not say how many
RATE = 0.1  # Adam's learning rate, as in the paper
EPOCHS = (1, 200)
TAIL_EPOCHS = (10, 30, 100, 250)  # the paper's last one is 250 in one section and 300 in another
DIGITS = 7
HEAD = 0.5  # mass of the head, AKL's mu
SLOPE = 1.2  # of the long tail, a power of the class's rank
FITTED = (
    f"The paper gives neither shapes nor number of classes: here {CLASSES} classes, and a student whose logits start"
    f" normal at random and are fitted by Adam with learning rate {RATE}, a step an epoch."
)


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
    frame = _rounded(frame)

    def plot(axes: Any) -> None:
        axes.fill_between(frame["x"], frame["teacher"], alpha=0.2, color="black", linewidth=0, label="teacher")
        for name in ("forward KL", "reverse KL"):
            axes.plot(frame["x"], frame[name], label=f"student by {name}")
        axes.set_xlabel("value")
        axes.set_ylabel("density")
        axes.legend(fontsize="small")

    notes = [
        "The paper prints no parameters. Here the mixture has the weights "
        f"{_listed(weights)}, means {_listed(means)} and standard deviations {_listed(deviations)}."
    ]
    return Drawing(frame, plot, notes=notes)


def _listed(values: np.ndarray) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _rounded(frame: pd.DataFrame) -> pd.DataFrame:
    """The numbers with `DIGITS` significant digits: further ones depend on the processor."""
    return frame.map(lambda x: float(f"{x:.{DIGITS}g}") if isinstance(x, float) else x)


def _softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max())
    return e / e.sum()


def _forward(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The derivative of KL(p || q) by the logits of q."""
    return q - p


def _reverse(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The derivative of KL(q || p) by the logits of q."""
    ratio = np.log(q / p)
    return q * (ratio - q @ ratio)


OBJECTIVES = {"forward KL": _forward, "reverse KL": _reverse}


def fitted(
    p: np.ndarray, derivative: Callable[[np.ndarray, np.ndarray], np.ndarray], epochs: Sequence[int]
) -> dict[int, np.ndarray]:
    """The softmax of logits after some epochs of Adam (no weight decay), a step an epoch; the start is always the same.

    Args:
        p: the distribution that is fitted.
        derivative: of the objective by the logits of q, from p and q.
        epochs: after which ones q is returned.
    """
    logits, first, second = np.random.default_rng(0).normal(size=len(p)), np.zeros_like(p), np.zeros_like(p)
    found = {}
    for epoch in range(1, max(epochs) + 1):
        gradient = derivative(p, _softmax(logits))
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        logits -= RATE * first / (1 - 0.9**epoch) / (np.sqrt(second / (1 - 0.999**epoch)) + 1e-8)
        if epoch in epochs:
            found[epoch] = _softmax(logits)
    return found


def _shapes() -> dict[str, np.ndarray]:
    """Teacher distributions by name; the paper shows several shapes and gives none."""
    from scipy import stats

    x = np.arange(CLASSES)
    shapes = {
        "one peak": stats.norm.pdf(x, 20, 4) + 1e-4,
        "two peaks": 0.6 * stats.norm.pdf(x, 15, 3) + 0.4 * stats.norm.pdf(x, 42, 5) + 1e-4,
        "long tail": (x + 1.0) ** -SLOPE,
    }
    return {name: p / p.sum() for name, p in shapes.items()}


@figure("toy_convergence")
def toy_convergence(data: FigureData) -> Drawing:
    """Fits of forward and of reverse KL to several shapes, after the first and after the last epoch.

    This is figure 2 of the AKL paper: after enough epochs both objectives end at the teacher.
    """
    columns: list[pd.DataFrame] = []
    for shape, p in _shapes().items():
        frame = pd.DataFrame({"shape": shape, "class": range(CLASSES), "teacher": p})
        for name, derivative in OBJECTIVES.items():
            for epoch, q in fitted(p, derivative, EPOCHS).items():
                frame[f"{name}, epoch {epoch}"] = q
        columns.append(frame)
    frame = pd.concat(columns, ignore_index=True)
    fits = [column for column in frame.columns if "epoch" in column]
    frame = _rounded(frame)

    def plot(panels: Any) -> None:
        for axes, (shape, of_shape) in zip(panels, frame.groupby("shape", sort=False), strict=True):
            axes.bar(of_shape["class"], of_shape["teacher"], width=1.0, alpha=0.2, color="black", label="teacher")
            for column in fits:
                style = {"linestyle": ":" if column.endswith(f"epoch {EPOCHS[0]}") else "-"}
                color = {"color": "C0" if column.startswith("forward") else "C1"}
                axes.plot(of_shape["class"], of_shape[column], label=column, **style, **color)
            axes.set_ylabel(f"{shape}: probability")
        panels[0].legend(fontsize="small")
        panels[-1].set_xlabel("class")

    distances = frame.groupby("shape", sort=False)[["teacher", *fits]].apply(
        lambda f: pd.Series({fit: f"{0.5 * (f['teacher'] - f[fit]).abs().sum():.4f}" for fit in fits})
    )
    notes = [FITTED, "The table has the total variation distance between student and teacher, from 0 to 1."]
    return Drawing(frame, plot, distances.reset_index(), panels=3, notes=notes)


@figure("toy_head_tail")
def toy_head_tail(data: FigureData) -> Drawing:
    """Fits to a long tail after several epochs, and the distance to the teacher over its head and over its tail.

    This is figure 3 of the AKL paper. The head is the fewest classes whose mass reaches `HEAD`.
    """
    p = _shapes()["long tail"]
    head = np.arange(CLASSES) < int(np.searchsorted(p.cumsum(), HEAD)) + 1
    fits = {name: fitted(p, derivative, TAIL_EPOCHS) for name, derivative in OBJECTIVES.items()}
    frames, lines = [], []
    for epoch in TAIL_EPOCHS:
        of_epoch = {name: by_epoch[epoch] for name, by_epoch in fits.items()}
        frames.append(pd.DataFrame({"epoch": epoch, "class": range(CLASSES), "teacher": p, **of_epoch}))
        distances = {
            f"{part}, {name}": f"{np.abs(q - p)[where].sum():.4f}"
            for part, where in (("head", head), ("tail", ~head))
            for name, q in of_epoch.items()
        }
        lines.append({"epoch": epoch, **distances})
    frame = pd.concat(frames, ignore_index=True)
    frame = _rounded(frame)

    def plot(panels: Any) -> None:
        for axes, (epoch, of_epoch) in zip(panels, frame.groupby("epoch", sort=False), strict=True):
            axes.bar(of_epoch["class"], of_epoch["teacher"], width=1.0, alpha=0.2, color="black", label="teacher")
            for name in OBJECTIVES:
                axes.plot(of_epoch["class"], of_epoch[name], label=f"student by {name}")
            axes.axvline(head.sum() - 0.5, color="black", linewidth=0.6, linestyle="--")
            axes.set_yscale("log")
            axes.set_ylabel(f"epoch {epoch}")
        panels[0].legend(fontsize="small")
        panels[-1].set_xlabel("class (head left of the dashed line)")

    notes = [
        FITTED,
        f"The teacher falls with the class's rank to the power of -{SLOPE}; its head is the {head.sum()} top classes,"
        f" the fewest that hold {HEAD:.0%} of its mass.",
        "The table has the sum of absolute differences between student and teacher over head and tail.",
    ]
    return Drawing(frame, plot, pd.DataFrame(lines), panels=len(TAIL_EPOCHS), notes=notes)
