"""From long lines to the paper's rows and columns, with a paired test between rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from distill.results.long import AGREEMENTS, BENCHMARKS, COSTS, EXPOSURE

RESAMPLES = 9999


@dataclass(frozen=True)
class Column:
    """A column of a table: its title, and the data set and metric behind it."""

    title: str
    dataset: str
    metric: str = "rouge_l"


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
    """A row against another over the same prompts: mean difference, its 95 % interval, and a two-sided p.

    `floor`: the least p that so many resamples can give, or 0 where all of them were looked at.
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
    over generation seeds.
    """
    chosen = lines[(lines["dataset"] == column.dataset) & (lines["metric"] == column.metric)]
    chosen = chosen.drop_duplicates(["train_seed", "seed"])
    if chosen.empty:
        return None
    once = column.metric in (*COSTS, *AGREEMENTS) or column.metric.startswith(EXPOSURE)
    if once or column.dataset == BENCHMARKS:
        chosen = chosen.drop_duplicates("train_seed")
    values = chosen["value"].astype(float)
    by_training = values.groupby(chosen["train_seed"]).mean()
    spread = by_training if len(by_training) > 1 else values
    std = float(spread.std(ddof=1)) if len(spread) > 1 else None
    return Cell(float(by_training.mean()), std, any_size=column.metric in COSTS)


def table(rows: Sequence[tuple[str, pd.DataFrame]], columns: Sequence[Column]) -> pd.DataFrame:
    """Cells as text, one line a row; a cell that was not measured is empty."""
    data = []
    for label, lines in rows:
        cells = [cell(lines, column) for column in columns]
        data.append([label, *("" if c is None else str(c) for c in cells)])
    return pd.DataFrame(data, columns=["row", *(c.title for c in columns)])


def printed_p(
    ours: tuple[float, float], theirs: tuple[float, float], seeds: int = 5, alternative: str = "two-sided"
) -> float:
    """p of the pooled t-test on printed (mean, sample standard deviation) over so many generation seeds.

    The papers' own kind of test: it tells whether other generation seeds would change the order, and no more.

    Args:
        alternative: `two-sided`, or `greater` for ours above theirs.
    """
    found = stats.ttest_ind_from_stats(*ours, seeds, *theirs, seeds, equal_var=True, alternative=alternative)
    return float(found.pvalue)


def compare(
    scores: pd.DataFrame, runs: Sequence[str], against: Sequence[str], dataset: str, score: str = "rouge_l"
) -> Comparison | None:
    """A paired test over the prompts of a set; a prompt's score is its mean over generation and training seeds.

    Args:
        scores: lines of the long file of scores.
        runs, against: the runs of the two rows.
        score: which of the file's scores, `rouge_l` or `bertscore`.

    The interval is the bootstrap's (bias-corrected and accelerated), p the permutation test's, which turns the sign of
    each prompt's difference; neither takes scores to be normal. Both draw from a fixed seed.

    Returns:
        None where the prompts of the two are not the same, fewer than two, or without such a score.
    """
    chosen = scores[scores["dataset"] == dataset]
    ours, theirs = (chosen[chosen["run"].isin(list(of))].groupby("id")[score].mean() for of in (runs, against))
    if set(ours.index) != set(theirs.index) or len(ours) < 2 or ours.isna().any() or theirs.isna().any():
        return None
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
