"""Bootstrap intervals over prompts, and over training seeds and prompts.

The unit that is resampled is the *prompt*, because prompts are what a user draws anew; several samples of one
prompt stay together. Every interval of the same size and seed uses the same resamples, so intervals of two
models scored on the same prompts are comparable and their differences are paired.

All intervals are percentile intervals (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter
13). A resample is stored as counts (how often each prompt was drawn), so that thousands of resampled means
are one matrix product. ``nan`` marks a value that does not apply to a prompt; it has no weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Num
from scipy.stats import norm

from unifl.errors import UserError

LEVEL = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A value with its interval; ``n`` is the number of independent units (prompts, or samples of a distance)."""

    value: float
    low: float
    high: float
    n: int

    def excludes(self, number: float) -> bool:
        """True if ``number`` lies outside the interval."""
        return not self.low <= number <= self.high


def bootstrap_counts(n: int, *, resamples: int = RESAMPLES, seed: int = 0) -> Float[np.ndarray, "r n"]:
    """How often each of ``n`` units is drawn in each resample; every row sums to ``n``. Read-only and cached."""
    if n < 1 or resamples < 1:
        raise UserError(
            f"cannot resample {n} units {resamples} times; give at least one unit and one resample"
        )
    return _counts(n, resamples, seed)


@lru_cache(maxsize=16)
def _counts(n: int, resamples: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, n])
    drawn = rng.integers(0, n, size=(resamples, n))
    drawn += n * np.arange(resamples)[:, None]  # one bincount for all rows
    counts = np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n).astype(np.float64)
    counts.flags.writeable = False
    return counts


def mean_interval(
    values: Num[np.ndarray, "p"], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Mean over prompts with its interval.

    Args:
        values: one value per prompt; ``nan`` where the metric does not apply.
        level: coverage in (0, 1).
        resamples: number of bootstrap resamples.
        seed: seed of the resamples.

    Raises:
        UserError: if no prompt has a value.
    """
    total, weight = _weighted(values)
    counts = bootstrap_counts(len(values), resamples=resamples, seed=seed)
    drawn = _ratio(counts @ total, counts @ weight)
    return _percentiles(total.sum() / weight.sum(), drawn, int(weight.sum()), level)


def difference_interval(
    a: Num[np.ndarray, "p"],
    b: Num[np.ndarray, "p"],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Paired difference ``mean(a - b)`` over the prompts where both have a value."""
    return mean_interval(
        np.asarray(a, float) - np.asarray(b, float), level=level, resamples=resamples, seed=seed
    )


def ratio_interval(
    a: Num[np.ndarray, "p"],
    b: Num[np.ndarray, "p"],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Paired ratio of means ``mean(a) / mean(b)`` over the prompts where both have a value."""
    both = np.isfinite(a) & np.isfinite(b)
    total_a, weight = _weighted(np.where(both, a, np.nan))
    total_b, _ = _weighted(np.where(both, b, np.nan))
    counts = bootstrap_counts(len(total_a), resamples=resamples, seed=seed)
    drawn = _ratio(counts @ total_a, counts @ total_b)
    return _percentiles(total_a.sum() / total_b.sum(), drawn, int(weight.sum()), level)


def seed_prompt_interval(
    values: Num[np.ndarray, "t p"], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Mean over training seeds and prompts, both resampled.

    Rows (training seeds) and columns (prompts) are drawn independently with replacement and a cell is
    weighted by the product of its two counts: the pigeonhole bootstrap for crossed factors (Owen 2007, arXiv
    0712.1111). Two or three training seeds say little about the spread over seeds: where that dominates, the
    bounds are hardly more than the lowest and the highest row. ``n`` of the result is the number of prompts.
    """
    present = np.isfinite(values)
    if not present.any():
        raise UserError("no value to average; check that the metric applies to at least one prompt")
    filled, weight = np.where(present, values, 0.0).astype(np.float64), present.astype(np.float64)
    rows = bootstrap_counts(values.shape[0], resamples=resamples, seed=seed + 1)
    columns = bootstrap_counts(values.shape[1], resamples=resamples, seed=seed)
    numerator = ((rows @ filled) * columns).sum(axis=1)
    drawn = _ratio(numerator, ((rows @ weight) * columns).sum(axis=1))
    return _percentiles(filled.sum() / weight.sum(), drawn, values.shape[1], level)


def centred_interval(
    value: float, replicates: Float[np.ndarray, "r"], *, n: int, level: float = LEVEL
) -> Interval:
    """Interval of a statistic that resampling biases, such as a Frechet distance.

    A resample has fewer distinct points than the sample, which inflates such distances; plain percentiles
    would then sit above the value. The replicates are moved so that their mean is the value: the interval
    shows the spread over prompts at this ``n``, and it does not correct the bias that a distance has at
    finite ``n``. Replicates that are not defined (``nan``) are left out.
    """
    defined = replicates[np.isfinite(replicates)]
    if not len(defined):
        return Interval(value, value, value, n)
    return _percentiles(value, defined - defined.mean() + value, n, level)


def change_interval(
    value_a: float,
    replicates_a: Float[np.ndarray, "r"],
    value_b: float,
    replicates_b: Float[np.ndarray, "r"],
    *,
    n: int,
    kind: Literal["difference", "ratio"] = "difference",
    level: float = LEVEL,
) -> Interval:
    """Paired change between two biased statistics, from replicates on the same resamples.

    ``difference`` is ``a - b``; ``ratio`` is ``a / b``, centred on the logarithm so that it stays positive.
    """
    if kind == "difference":
        return centred_interval(value_a - value_b, replicates_a - replicates_b, n=n, level=level)
    log = centred_interval(np.log(value_a / value_b), np.log(replicates_a / replicates_b), n=n, level=level)
    return Interval(float(np.exp(log.value)), float(np.exp(log.low)), float(np.exp(log.high)), n)


def influence_interval(
    value: float,
    influence: Float[np.ndarray, " n"],
    *,
    units: Int[np.ndarray, " n"] | None = None,
    level: float = LEVEL,
) -> Interval:
    """Interval of a statistic from what each sample adds to it to first order (the infinitesimal jackknife).

    Args:
        value: The statistic.
        influence: n times the change that a little more weight of each sample brings; of mean 0.
        units: What samples belong together; None takes each alone. ``n`` of the result is their number.
        level: Coverage.
    """
    n = len(influence)
    unit = np.arange(n) if units is None else np.unique(units, return_inverse=True)[1]
    sums = np.bincount(unit, influence)
    number = len(sums)
    reach = float(norm.ppf(0.5 + level / 2)) * np.sqrt((sums**2).sum() * number / max(number - 1, 1)) / n
    return Interval(float(value), float(value - reach), float(value + reach), number)


def group_mean_interval(
    values: Num[np.ndarray, "p"],
    groups: Sequence[str],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Mean of the means of groups, each counting once, with its interval over the prompts of each group.

    Args:
        values: One value per prompt; ``nan`` where the metric does not apply.
        groups: The group of each prompt; a group without any value is left out.
        level: Coverage.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples; each group has its own.

    Raises:
        UserError: No prompt has a value.
    """
    parts = _by_group(values, groups)
    drawn = group_mean_replicates(values, groups, resamples=resamples, seed=seed)
    value = np.mean([part.mean() for part in parts])
    return _percentiles(float(value), drawn, sum(map(len, parts)), level)


def group_mean_replicates(
    values: Num[np.ndarray, "p"], groups: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> Float[np.ndarray, "r"]:
    """The mean of the means of groups in each resample; those of two models on the same prompts are paired."""
    drawn = [
        bootstrap_counts(len(part), resamples=resamples, seed=seed + 1000 * place) @ part / len(part)
        for place, part in enumerate(_by_group(values, groups))
    ]
    return np.mean(drawn, axis=0)


def _by_group(values: np.ndarray, groups: Sequence[str]) -> list[np.ndarray]:
    """Values that are there, of each group that has some."""
    names = np.asarray(groups)
    parts = [values[(names == name) & np.isfinite(values)] for name in dict.fromkeys(groups)]
    parts = [part.astype(np.float64) for part in parts if len(part)]
    if not parts:
        raise UserError("no value to average; check that the metric applies to at least one prompt")
    return parts


def _weighted(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(values, dtype=np.float64)
    present = np.isfinite(values)
    if not present.any():
        raise UserError("no value to average; check that the metric applies to at least one prompt")
    return np.where(present, values, 0.0), present.astype(np.float64)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    # A resample may miss every prompt of a rare subset; it then has no mean and says nothing.
    keep = denominator > 0
    return numerator[keep] / denominator[keep]


def _percentiles(value: float, drawn: np.ndarray, n: int, level: float) -> Interval:
    if not 0.0 < level < 1.0:
        raise UserError(f"level must lie between 0 and 1, got {level}; 0.95 is usual")
    if not len(drawn):
        return Interval(float(value), float(value), float(value), n)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high), n)
