"""Paired comparison of two models: the same prompts, the same noise, one score per picture.

The difference of a pair is a win, a loss, or within ``margin`` a tie. The win rate counts a tie as half a
win, so it is 0.5 for equal models whatever the margin, and swapping the models gives one minus it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Num

from unifl.errors import UserError
from unifl.metrics.intervals import LEVEL, RESAMPLES, Interval, mean_interval, seed_prompt_interval

MARGIN = 0.01
# Scores are means of a few float32 numbers: a difference of exactly the margin is a tie, not a matter of
# rounding.
_ROUNDING = 1e-7


@dataclass(frozen=True)
class Paired:
    """Outcome of ``a`` against ``b``.

    ``wins``, ``ties`` and ``losses`` are shares of ``a``'s pairs and sum to one. ``rate`` is ``wins + ties /
    2`` with its interval over prompts.
    """

    wins: float
    ties: float
    losses: float
    rate: Interval


def paired_comparison(
    a: Num[np.ndarray, "p s"],
    b: Num[np.ndarray, "p s"],
    *,
    margin: float = MARGIN,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Paired:
    """Compare two sets of scores pair by pair.

    Args:
        a: score of every sample, ``p`` prompts by ``s`` samples of each (one column for one sample per
            prompt).
        b: the same for the other model, with the same prompts and noise.
        margin: differences up to this size are ties.
        level: coverage of the interval.
        resamples: number of bootstrap resamples over prompts; the samples of a prompt stay together.
        seed: seed of the resamples.
    """
    outcome = outcomes(a, b, margin=margin)
    rate = mean_interval(_row_means(outcome), level=level, resamples=resamples, seed=seed)
    return _paired(outcome, rate)


def paired_over_seeds(
    a: Num[np.ndarray, "t p"],
    b: Num[np.ndarray, "t p"],
    *,
    margin: float = MARGIN,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Paired:
    """The same where ``t`` runs were trained with different seeds: the interval covers seeds and prompts."""
    outcome = outcomes(a, b, margin=margin)
    return _paired(outcome, seed_prompt_interval(outcome, level=level, resamples=resamples, seed=seed))


def outcomes(
    a: Num[np.ndarray, "*shape"], b: Num[np.ndarray, "*shape"], *, margin: float = MARGIN
) -> Float[np.ndarray, "*shape"]:
    """1 for a win of ``a``, 0.5 for a tie, 0 for a loss; ``nan`` where either score is missing."""
    if margin < 0:
        raise UserError(f"the margin of a tie cannot be negative, got {margin}")
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    edge = margin + _ROUNDING
    result = 0.5 + 0.5 * (difference > edge) - 0.5 * (difference < -edge)
    return np.where(np.isnan(difference), np.nan, result)


def _row_means(values: np.ndarray) -> np.ndarray:
    present = np.isfinite(values)
    count = present.sum(axis=1)
    total = np.where(present, values, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _paired(outcome: np.ndarray, rate: Interval) -> Paired:
    # Shares weighted as the rate is: a prompt counts once, however many samples it has.
    wins, ties, losses = (
        float(np.nanmean(_row_means(np.where(np.isnan(outcome), np.nan, outcome == which))))
        for which in (1.0, 0.5, 0.0)
    )
    return Paired(wins=wins, ties=ties, losses=losses, rate=rate)
