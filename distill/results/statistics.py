"""Cells, spreads and paired tests over facts and scores."""

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
        title: in the table.
        parts: (data set, metric) of the facts behind it; of several their mean is taken, seed by seed.
        any_size: whether values are shown with three digits in place of two decimals.
    """

    title: str
    parts: tuple[tuple[str, str], ...]
    any_size: bool = False

    @property
    def dataset(self) -> str:
        """Its data set, or that of its first part."""
        return self.parts[0][0]

    @property
    def metric(self) -> str:
        """Its metric, or that of its first part."""
        return self.parts[0][1]

    @property
    def is_average(self) -> bool:
        """Whether it averages several columns."""
        return len(self.parts) > 1


@dataclass(frozen=True)
class Cell:
    """Mean and sample standard deviation over generation seeds, or over training seeds if there are several.

    Two decimals are shown, as the papers print scores, or three digits of what may be of any size.
    """

    mean: float
    std: float | None
    any_size: bool = False

    def __str__(self) -> str:
        digits = ".3g" if self.any_size else ".2f"
        return f"{self.mean:{digits}}" if self.std is None else f"{self.mean:{digits}} ({self.std:{digits}})"


@dataclass(frozen=True)
class Comparison:
    """A row against another over the same prompts.

    Attributes:
        difference: of the means.
        low, high: its 95 % interval.
        p: two-sided.
        prompts: how many.
        floor: the least p that so many resamples can give, or 0 where all of them were looked at.
    """

    difference: float
    low: float
    high: float
    p: float
    prompts: int
    floor: float = 0.0

    @property
    def p_text(self) -> str:
        """p as a table shows it: at the floor it may be anything below."""
        return f"{self.p:.2g}" if self.p > self.floor else f"<={self.floor:.2g}"


def cell(lines: pd.DataFrame, column: Column) -> Cell | None:
    """The cell of a row's lines, or None where nothing was measured.

    With one training seed the spread is over generation seeds; with several it is over training seeds, of the means
    over generation seeds. An average needs all of its columns.

    Args:
        lines: with columns dataset, metric, train_seed, seed (as text, "" for none) and value.
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
    spread = by_training if len(by_training) > 1 else values
    std = float(spread.std(ddof=1)) if len(spread) > 1 else None
    return Cell(float(by_training.mean()), std, column.any_size)


def printed_p(
    ours: tuple[float, float], theirs: tuple[float, float], seeds: int = 5, alternative: str = "two-sided"
) -> float:
    """p of the pooled t-test on printed (mean, sample standard deviation) over so many generation seeds.

    The papers' own kind of test: it tells whether other generation seeds would change the order, and no more.

    Args:
        alternative: `two-sided`, or `greater` for ours above theirs.
    """
    from scipy import stats

    test = stats.ttest_ind_from_stats(*ours, seeds, *theirs, seeds, equal_var=True, alternative=alternative)
    return float(test.pvalue)


def compare(ours: pd.Series, theirs: pd.Series) -> Comparison | None:
    """A paired test over the prompts of a set.

    The interval is the bootstrap's (bias-corrected and accelerated), p the permutation test's, which turns the sign of
    each prompt's difference; neither takes scores to be normal. Both draw from a fixed seed.

    Args:
        ours, theirs: each prompt's score by its id, the mean over generation and training seeds.

    Returns:
        None where the prompts of the two are not the same, fewer than two, or without a score.
    """
    if set(ours.index) != set(theirs.index) or len(ours) < 2 or ours.isna().any() or theirs.isna().any():
        return None
    from scipy import stats

    gaps = (ours - theirs.loc[ours.index]).to_numpy()
    mean = float(gaps.mean())
    low = high = mean  # of gaps that are all one, where the bootstrap's correction is not defined
    if np.ptp(gaps):
        low, high = stats.bootstrap((gaps,), np.mean, n_resamples=RESAMPLES, batch=1000, rng=0).confidence_interval
    turned = stats.permutation_test(
        (gaps,), np.mean, permutation_type="samples", vectorized=True, n_resamples=RESAMPLES, batch=1000, rng=0
    )
    floor = 2 / (RESAMPLES + 1) if 2 ** len(gaps) > RESAMPLES else 0.0
    return Comparison(mean, float(low), float(high), float(turned.pvalue), len(gaps), floor)


def prompt_means(scores: Sequence[pd.DataFrame], dataset: str, column: str, topic: str | None) -> pd.Series:
    """Each prompt's mean score over the runs of a row (its trainings), by id.

    Args:
        scores: the runs' scores by prompt, of one choice of generation seeds.
        topic: whose prompts count; None for all.
    """
    frames = [frame for frame in scores if column in frame.columns]
    if not frames:
        return pd.Series(dtype=float)
    every = pd.concat(frames, ignore_index=True)
    chosen = every[every["dataset"] == dataset]
    if topic is not None:
        chosen = chosen[chosen["topic"] == topic]
    return chosen.groupby("id")[column].mean()  # sorted: the bootstrap draws by place
