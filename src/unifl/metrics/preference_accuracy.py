"""How well scores order what people compared.

lead is the score of one picture of a pair minus that of the other; label is 1 where people preferred the one, 0 the
other and 0.5 where they saw no difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Num
from scipy.optimize import minimize_scalar
from scipy.special import expit

from unifl.errors import UserError
from unifl.metrics.intervals import Interval, ratio_interval

_BINS = 10
_REACH = 12.0  # e-folds of the scale that are searched on either side of the leads' own


@dataclass(frozen=True)
class CalibrationBin:
    """Pairs of which the scores are about as sure.

    Attributes:
        pairs: How many.
        expected: Mean probability that the picture with the higher score is the preferred one.
        observed: How often it was.
    """

    pairs: int
    expected: float
    observed: float


@dataclass(frozen=True)
class PreferenceAccuracy:
    """What scores say of preferences.

    Attributes:
        decided: Share of pairs with a preference that are ordered right, equal scores counting half; over prompts.
        pairs: Of these.
        ties: Pairs that people saw no difference in.
        with_ties: Share of all pairs that are right where leads up to `threshold` count as no difference; the threshold
            is the best one for these pairs (Deutsch et al., arXiv 2305.14324), so this is the most that scores can
            reach.
        threshold: See above, in the unit of the scores.
        scale: s of P = sigmoid(lead / s) that makes the preferences likeliest; the unit in which scores are log-odds.
        log_loss: Mean -log P of the preferences at that scale; log 2 = 0.693 is a coin.
        calibration: Ten bins of equal size by how sure the scores are, at that scale.
    """

    decided: Interval
    pairs: int
    ties: int
    with_ties: float
    threshold: float
    scale: float
    log_loss: float
    calibration: tuple[CalibrationBin, ...]


def preference_accuracy(
    lead: Num[np.ndarray, " n"], label: Num[np.ndarray, " n"], units: Int[np.ndarray, " n"]
) -> PreferenceAccuracy:
    """Accuracy, ties and calibration of scores on n pairs.

    Args:
        lead: Differences of scores.
        label: What people preferred: above 0.5 the first, below the second, 0.5 neither.
        units: What pairs belong together, such as the number of their prompt; intervals are over these.

    Raises:
        UserError: No pair with a preference, or numbers that are not finite.
    """
    lead, label = np.asarray(lead, np.float64), np.asarray(label, np.float64)
    if not (np.isfinite(lead).all() and np.isfinite(label).all()):
        raise UserError("a score or a label is not finite; look at the scorer, or leave such pairs out")
    is_tie = label == 0.5
    if is_tie.all():
        raise UserError("no pair has a preference; accuracy needs some that are no ties")
    towards = np.where(label > 0.5, lead, -lead)  # above 0 where the order is right
    sure = towards[~is_tie]
    right = (sure > 0) + 0.5 * (sure == 0)
    share, threshold = _with_ties(towards, is_tie)
    scale, log_loss = _scale(sure)
    return PreferenceAccuracy(
        decided=_over_units(right, np.asarray(units)[~is_tie]),
        pairs=int((~is_tie).sum()),
        ties=int(is_tie.sum()),
        with_ties=share,
        threshold=threshold,
        scale=scale,
        log_loss=log_loss,
        calibration=_calibration(sure, right, scale),
    )


def _over_units(values: Float[np.ndarray, " n"], units: np.ndarray) -> Interval:
    """The mean over all pairs, with an interval over units."""
    _, unit = np.unique(units, return_inverse=True)
    return ratio_interval(np.bincount(unit, values), np.bincount(unit).astype(np.float64))


def _with_ties(towards: np.ndarray, is_tie: np.ndarray) -> tuple[float, float]:
    """The best share of right calls, and the size of a lead up to which pairs count as ties for it."""
    size = np.abs(towards)
    order = np.argsort(size, kind="stable")
    # with the first k pairs called ties: ties among them are right, and the decided others that lead rightly
    ties_in = np.concatenate([[0], np.cumsum(is_tie[order])])
    right = (towards > 0) & ~is_tie
    right_out = right.sum() - np.concatenate([[0], np.cumsum(right[order])])
    called = ties_in + right_out
    sizes = np.concatenate([[-1.0], size[order]])
    ends = np.concatenate([sizes[1:] != sizes[:-1], [True]])  # equal leads are called alike
    called = np.where(ends, called, -1)
    best = int(np.argmax(called))
    return float(called[best] / len(towards)), float(max(sizes[best], 0.0))


def _scale(sure: np.ndarray) -> tuple[float, float]:
    """Likeliest s of sigmoid(lead / s), and the mean loss there."""
    typical = float(np.abs(sure).mean())
    if typical == 0:
        return float("inf"), float(np.log(2))

    def loss(log_scale: float) -> float:
        return float(np.logaddexp(0, -sure / (typical * np.exp(log_scale))).mean())

    found = minimize_scalar(loss, bounds=(-_REACH, _REACH), method="bounded", options={"xatol": 1e-6})
    return typical * float(np.exp(found.x)), float(found.fun)


def _calibration(sure: np.ndarray, right: np.ndarray, scale: float) -> tuple[CalibrationBin, ...]:
    expected = expit(np.abs(sure) / scale)
    order = np.argsort(expected, kind="stable")
    return tuple(
        CalibrationBin(len(part), float(expected[part].mean()), float(right[part].mean()))
        for part in np.array_split(order, min(_BINS, len(order)))
    )
