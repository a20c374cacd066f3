"""Cells, standard deviations and paired tests over facts and scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

RESAMPLES = 4000  # of the bootstrap
BLOCK = 500  # draws at a time, for memory
SMALLEST_P = 1e-6


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: the column's title in the table.
        parts: (data set, metric) of the column's facts. An average has several parts; their mean is taken seed by seed.
        any_size: whether values are shown with three digits in place of two decimals.
    """

    title: str
    parts: tuple[tuple[str, str], ...]
    any_size: bool = False

    @property
    def dataset(self) -> str:
        """The data set of the first part."""
        return self.parts[0][0]

    @property
    def metric(self) -> str:
        """The metric of the first part."""
        return self.parts[0][1]

    @property
    def is_average(self) -> bool:
        """Whether the column averages other columns."""
        return len(self.parts) > 1


@dataclass(frozen=True)
class Cell:
    """Mean and sample standard deviation over training seeds, or over generation seeds if there is one training seed.

    Attributes:
        mean: the mean.
        std: the sample standard deviation; None for a single value.
        any_size: whether the text has three digits. Otherwise it has two decimals, as the papers print scores.
    """

    mean: float
    std: float | None
    any_size: bool = False

    def __str__(self) -> str:
        digits = ".3g" if self.any_size else ".2f"
        return f"{self.mean:{digits}}" if self.std is None else f"{self.mean:{digits}} ({self.std:{digits}})"


@dataclass(frozen=True)
class Comparison:
    """The paired test of a row against a baseline row over the same prompts.

    Attributes:
        difference: the row's mean minus the baseline's.
        low: the lower end of the difference's 95 % interval.
        high: the upper end.
        p: the two-sided p. It is below 0.05 exactly if the interval does not contain 0.
        prompts: the number of prompts.
        trainings: the most trainings of either row.
        fewest_trainings: the fewest trainings of either row.
    """

    difference: float
    low: float
    high: float
    p: float
    prompts: int
    trainings: int = 1
    fewest_trainings: int = 1

    @property
    def interval(self) -> str:
        """The difference with its interval, as tables show it."""
        return f"{self.difference:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def p_text(p: float) -> str:
    """p as a table shows it. The tail of a distribution is not known to more than the smallest number here."""
    return f"{p:.2g}" if p >= SMALLEST_P else f"<{SMALLEST_P:g}"


def cell(lines: pd.DataFrame, column: Column) -> Cell | None:
    """The cell of a row, or None if the row has no value in the column.

    With one training seed the standard deviation is over generation seeds. With several training seeds each training's
    mean over its generation seeds counts as one value. An average needs values of all of its parts.

    Args:
        lines: the row's lines with columns dataset, metric, train_seed, seed (as text, "" for none) and value.
    """
    parts = [
        lines[(lines["dataset"] == dataset) & (lines["metric"] == metric)]
        .drop_duplicates(["train_seed", "seed"])
        .set_index(["train_seed", "seed"])["value"]
        .astype(float)
        for dataset, metric in column.parts
    ]
    if any(part.empty for part in parts):
        return None
    values = pd.concat(parts, axis=1).dropna().mean(axis=1) if column.is_average else parts[0]
    if values.empty:
        return None
    by_training = values.groupby(level="train_seed").mean()
    samples = by_training if len(by_training) > 1 else values
    std = float(samples.std(ddof=1)) if len(samples) > 1 else None
    return Cell(float(by_training.mean()), std, column.any_size)


def printed_p(
    row: tuple[float, float], baseline: tuple[float, float], seeds: int = 5, alternative: str = "two-sided"
) -> float:
    """p of the pooled t-test on two cells as a paper prints them.

    The papers use this test. It tells whether other generation seeds would change the order of the two rows, but not
    whether another training would.

    Args:
        row: mean and sample standard deviation of the row.
        baseline: mean and sample standard deviation of the baseline row.
        seeds: the number of generation seeds behind each cell.
        alternative: `two-sided`, or `greater` for a row above the baseline.
    """
    from scipy import stats

    test = stats.ttest_ind_from_stats(*row, seeds, *baseline, seeds, equal_var=True, alternative=alternative)
    return float(test.pvalue)


def compare(
    *sets: tuple[pd.DataFrame, pd.DataFrame], draws: tuple[np.ndarray, np.ndarray] | None = None
) -> Comparison | None:
    """The test of a row against a baseline over the trainings of both and the prompts of a set, or of several sets.

    Interval and p are those of one t distribution around the measured difference: its standard error is that of a
    hierarchical bootstrap (`resampled_mean`), and its degrees of freedom are Satterthwaite's for the variances between
    prompts and between trainings. A row with one training is taken to vary between trainings as the other row does;
    if both have one, the test tells nothing of other trainings.

    Args:
        sets: the scores of the row and of the baseline on each set, a line a training and a column a prompt, by example
            id (`prompt_scores`). Over several sets the difference is that of the means over sets.
        draws: the resampled means of the row and of the baseline, if they were computed before.

    Returns:
        The comparison; None if on a set the two have different prompts, fewer than two prompts, or a prompt without a
        score, or if a row has fewer trainings on one set than on another.
    """
    for row, baseline in sets:
        if set(row.columns) != set(baseline.columns) or row.shape[1] < 2 or row.isna().any(axis=None):
            return None
        if baseline.isna().any(axis=None):
            return None
    if len({(len(row), len(baseline)) for row, baseline in sets}) != 1:
        return None
    from scipy import stats

    both = [[row.to_numpy(), baseline[row.columns].to_numpy()] for row, baseline in sets]
    by_training = [np.mean([of_set[i].mean(1) for of_set in both], axis=0) for i in (0, 1)]
    difference = float(by_training[0].mean() - by_training[1].mean())
    if draws is None:
        draws = (resampled_mean([x[0] for x in both], 0), resampled_mean([x[1] for x in both], 1))
    parts, of_a_single_training = _training_variances(by_training)
    variance = float((draws[0] - draws[1]).var(ddof=1)) + of_a_single_training
    prompts, trainings = sum(row.shape[1] for row, _ in sets), [len(means) for means in by_training]
    sizes = {"prompts": prompts, "trainings": max(trainings), "fewest_trainings": min(trainings)}
    error = math.sqrt(variance)
    if error <= 1e-12 * max(1.0, abs(difference)):  # all differences are equal
        return Comparison(difference, difference, difference, float(difference == 0), **sizes)
    for of_row, of_baseline in both:
        differences = of_row.mean(0) - of_baseline.mean(0)
        parts.append((differences.var(ddof=1) / len(differences) / len(both) ** 2, len(differences) - 1))
    weight = sum(part**2 / degrees for part, degrees in parts)
    degrees = sum(part for part, _ in parts) ** 2 / weight if weight else 1.0
    reach = float(stats.t.ppf(0.975, degrees)) * error
    p = 2 * float(stats.t.sf(abs(difference) / error, degrees))
    return Comparison(difference, difference - reach, difference + reach, p, **sizes)


def _training_variances(by_training: Sequence[np.ndarray]) -> tuple[list[tuple[float, int]], float]:
    """The variances that trainings add to a difference of two rows, with their degrees of freedom.

    Args:
        by_training: the means of both rows' trainings.

    Returns:
        The variances, and that of a single training whose variance is the other row's; 0 if there is none.
    """
    several = [means for means in by_training if len(means) > 1]
    variances = [float(means.var(ddof=1)) for means in several]
    if len(several) == 1:
        return [(variances[0] / len(several[0]) + variances[0], len(several[0]) - 1)], variances[0]
    return [(v / len(means), len(means) - 1) for v, means in zip(variances, several, strict=True)], 0.0


def resampled_mean(sets: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """Means of a row over resampled trainings and prompts `[RESAMPLES]`: a hierarchical bootstrap.

    A draw takes the same prompts for all rows, and trainings of each row, the same on all sets. It takes one less than
    there are, with replacement, so that a few trainings do not make the variance of the means too small (Rao and Wu
    1988). It is rather too large, since the noise of single scores is in the draws of both levels. The only training of
    a row is taken as it is.

    Args:
        sets: on each set the row's scores `[trainings, prompts]`, the prompts in one order for all rows. The means over
            several sets are averaged.
        seed: of the draws of trainings; another one for each row.
    """
    trainings = len(sets[0])
    chosen = np.random.default_rng(seed).integers(trainings, size=(RESAMPLES, max(1, trainings - 1)))
    means = np.zeros(RESAMPLES)
    for number, of_set in enumerate(sets):
        counts = _prompt_counts(of_set.shape[1], number)
        by_training = np.concatenate([part @ of_set.T for part in np.split(counts, RESAMPLES // BLOCK)])
        means += np.take_along_axis(by_training, chosen, axis=1).mean(axis=1) / (of_set.shape[1] - 1)
    return means / len(sets)


@lru_cache(maxsize=5)  # the columns of a table have a few sets between them
def _prompt_counts(prompts: int, number: int) -> np.ndarray:
    """How often each draw takes each prompt `[RESAMPLES, prompts]`: one less than there are, with replacement."""
    rng, shares = np.random.default_rng(1 + number), np.full(prompts, 1 / prompts)
    blocks = [rng.multinomial(prompts - 1, shares, size=BLOCK).astype(np.float32) for _ in range(RESAMPLES // BLOCK)]
    return np.concatenate(blocks)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, adjusted by Holm's method, in their order."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[i]))
        adjusted[i] = largest
    return adjusted


@dataclass(frozen=True)
class Agreement:
    """How far two orders of rows agree.

    Attributes:
        rows: the number of rows.
        tau: Kendall's tau-b: 1 for one order, -1 for the reverse, near 0 for unrelated ones.
        low: the lower end of its interval (`order_agreement`); None without scores by prompt.
        high: the upper end.
    """

    rows: int
    tau: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:+.2f}, {self.high:+.2f}]"
        return f"{self.tau:+.2f}{interval}"


def order_agreement(
    measured: Sequence[float], printed: Sequence[float], draws: np.ndarray | None = None
) -> Agreement | None:
    """Kendall's tau between measured and printed values of the same rows; None for fewer than three rows, or only ties.

    Its interval reaches to both sides as far as the farther of the 2.5 and 97.5 % percentiles of the taus over
    resampled trainings and prompts lies from the measured one, and ends at -1 and 1. The percentiles alone would be no
    interval: resampling disturbs an order, so that they lie too near 0, and leave out 1 where the printed order holds.

    Args:
        measured: the rows' measured values.
        printed: the paper's.
        draws: the rows' resampled means `[RESAMPLES, rows]`; None for a metric without scores by prompt.
    """
    if len(measured) < 3:
        return None
    signs = _signs(np.asarray(printed, dtype=float))
    (tau,) = _tau(np.asarray(measured, dtype=float)[None], signs)
    if np.isnan(tau):
        return None
    taus = np.zeros(0) if draws is None else _tau(draws, signs)
    if np.isnan(taus).all():  # no scores, or only ties
        return Agreement(len(measured), float(tau))
    reach = float(np.abs(np.nanpercentile(taus, [2.5, 97.5]) - tau).max())
    return Agreement(len(measured), float(tau), max(-1.0, float(tau) - reach), min(1.0, float(tau) + reach))


def _signs(values: np.ndarray) -> np.ndarray:
    """The sign of each pair's difference, of values `[..., rows]`."""
    first, second = np.triu_indices(values.shape[-1], 1)
    return np.sign(values[..., first] - values[..., second])


def _tau(values: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Kendall's tau-b `[n]` of values `[n, rows]` with an order given by its pairs' signs; NaN if all are tied."""
    ours = _signs(values)
    untied = np.sqrt((ours != 0).sum(-1) * (signs != 0).sum())
    with np.errstate(invalid="ignore"):
        return (ours * signs).sum(-1) / untied


def prompt_scores(scores: Sequence[pd.DataFrame], dataset: str, column: str, topic: str | None) -> pd.DataFrame:
    """The score of each training and prompt of a row, the mean over generation seeds: a line a training, by example id.

    Args:
        scores: each run's scores by prompt (its trainings), all over the same generation seeds.
        dataset: the data set's name.
        column: the column of `scores` that holds the metric.
        topic: the topic of the prompts; None takes all prompts.
    """
    lines = []
    for frame in (frame for frame in scores if column in frame.columns):
        of_set = frame[frame["dataset"] == dataset]
        if topic is not None:
            of_set = of_set[of_set["topic"] == topic]
        if len(of_set):
            lines.append(of_set.groupby("id")[column].mean())
    return pd.DataFrame(lines).reset_index(drop=True).sort_index(axis=1)  # by id: the bootstrap draws by position
