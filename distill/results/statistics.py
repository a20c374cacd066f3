"""Cells, standard deviations and paired tests over facts and scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

RESAMPLES = 9999  # of the bootstrap and of the permutation test


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
        p: the two-sided p of the permutation test.
        prompts: the number of prompts.
        floor: the smallest p that `RESAMPLES` permutations can give; 0 if the test used all permutations.
    """

    difference: float
    low: float
    high: float
    p: float
    prompts: int
    floor: float = 0.0

    @property
    def p_text(self) -> str:
        """p as a table shows it. At the floor the true p may be smaller, so the text starts with `<=`."""
        return f"{self.p:.2g}" if self.p > self.floor else f"<={self.floor:.2g}"


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


def compare(row: pd.Series, baseline: pd.Series) -> Comparison | None:
    """The paired test of a row against a baseline over the prompts of a set.

    The interval is a bias-corrected and accelerated bootstrap. p is from a permutation test that flips the sign of each
    prompt's difference. Neither assumes normal scores. Both draw from a fixed seed.

    Args:
        row: the row's score of each prompt by example id, the mean over generation and training seeds.
        baseline: the same of the baseline row.

    Returns:
        The comparison; None if the two have different prompts, fewer than two prompts, or a prompt without a score.
    """
    if set(row.index) != set(baseline.index) or len(row) < 2 or row.isna().any() or baseline.isna().any():
        return None
    from scipy import stats

    differences = (row - baseline.loc[row.index]).to_numpy()
    mean = float(differences.mean())
    low = high = mean
    if np.ptp(differences):  # the bootstrap's correction is undefined where all differences are equal
        bootstrap = stats.bootstrap((differences,), np.mean, n_resamples=RESAMPLES, batch=1000, rng=0)
        low, high = bootstrap.confidence_interval
    permutation = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", vectorized=True, n_resamples=RESAMPLES, batch=1000, rng=0
    )
    floor = 2 / (RESAMPLES + 1) if 2 ** len(differences) > RESAMPLES else 0.0
    return Comparison(mean, float(low), float(high), float(permutation.pvalue), len(differences), floor)


def prompt_means(scores: Sequence[pd.DataFrame], dataset: str, column: str, topic: str | None) -> pd.Series:
    """Each prompt's mean score over the runs of a row (its trainings), by example id.

    Args:
        scores: each run's scores by prompt, all over the same generation seeds.
        dataset: the data set's name.
        column: the column of `scores` that holds the metric.
        topic: the topic of the prompts; None takes all prompts.
    """
    frames = [frame for frame in scores if column in frame.columns]
    if not frames:
        return pd.Series(dtype=float)
    all_scores = pd.concat(frames, ignore_index=True)
    set_scores = all_scores[all_scores["dataset"] == dataset]
    if topic is not None:
        set_scores = set_scores[set_scores["topic"] == topic]
    return set_scores.groupby("id")[column].mean()  # sorted by id: the bootstrap draws by position
