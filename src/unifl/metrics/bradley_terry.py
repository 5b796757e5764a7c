"""Bradley-Terry: strengths of several models from comparisons of two at a time.

    P(i beats j) = 1 / (1 + exp(-(s_i - s_j))),   sum of s = 0

(Bradley and Terry, Biometrika 39, 1952.) Strengths are natural log-odds; 173.7 s is their difference in Elo points. A
tie counts as half a win of each side, which leaves the expected shares of wins what the model says they are. Intervals
are those of the maximum-likelihood estimate with a covariance that is robust to comparisons which belong together, as
the several votes on one prompt do (the sandwich of Huber and White, grouped by unit).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Num
from scipy.sparse.csgraph import connected_components
from scipy.special import expit
from scipy.stats import norm

from unifl.errors import UserError
from unifl.metrics.intervals import LEVEL, Interval

ELO = 400 / np.log(10)
"""Elo points of a strength of 1."""
_STEPS, _CLOSE = 100, 1e-10


@dataclass(frozen=True)
class Ranking:
    """What comparisons say of models.

    Attributes:
        names: The models, the strongest first.
        strengths: Of each, with its interval; `n` is the number of its comparisons.
        beats: Expected share of wins of each (row) over each (column).
    """

    names: tuple[str, ...]
    strengths: tuple[Interval, ...]
    beats: Float[np.ndarray, "m m"]


def bradley_terry(
    names: Sequence[str],
    first: Int[np.ndarray, " c"],
    second: Int[np.ndarray, " c"],
    outcome: Num[np.ndarray, " c"],
    *,
    units: Int[np.ndarray, " c"] | None = None,
    level: float = LEVEL,
) -> Ranking:
    """Rank models.

    Args:
        names: Of m models.
        first: Number of the model on one side of each comparison.
        second: That on the other side.
        outcome: 1 where the first won, 0.5 for a tie, 0 where it lost.
        units: What comparisons belong together, such as the number of their prompt; None takes each alone.
        level: Coverage of the intervals.

    Raises:
        UserError: Numbers that make no sense, models that no chain of comparisons connects, or one (or a group) that
            won or lost every comparison with the others, for which there is no finite strength.
    """
    a, b, won = _checked(names, first, second, outcome)
    _require_finite(names, a, b, won)
    strength = _fit(len(names), a, b, won)
    covariance = _covariance(strength, a, b, won, np.arange(len(a)) if units is None else np.asarray(units))
    reach = float(norm.ppf(0.5 + level / 2)) * np.sqrt(np.diag(covariance).clip(min=0))
    order = np.argsort(-strength, kind="stable")
    counts = np.bincount(np.concatenate([a, b]), minlength=len(names))
    return Ranking(
        names=tuple(names[index] for index in order),
        strengths=tuple(
            Interval(
                float(strength[i]),
                float(strength[i] - reach[i]),
                float(strength[i] + reach[i]),
                int(counts[i]),
            )
            for i in order
        ),
        beats=expit(strength[order][:, None] - strength[order][None, :]),
    )


def _checked(
    names: Sequence[str], first: np.ndarray, second: np.ndarray, outcome: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a, b, won = np.asarray(first), np.asarray(second), np.asarray(outcome, np.float64)
    if len(names) < 2 or len(set(names)) != len(names):
        raise UserError(f"a ranking needs two or more models of different names, got {list(names)}")
    if not len(a) or not len(a) == len(b) == len(won):
        raise UserError(
            f"{len(a)}, {len(b)} and {len(won)} sides and outcomes; give as many of each, and some"
        )
    both = np.concatenate([a, b])
    if both.min() < 0 or both.max() >= len(names) or (a == b).any():
        raise UserError(f"a comparison names a model outside 0 to {len(names) - 1}, or one with itself")
    if not ((won >= 0) & (won <= 1)).all():
        raise UserError("an outcome lies outside 0 (lost) to 1 (won); leave out comparisons without one")
    return a, b, won


def _require_finite(names: Sequence[str], a: np.ndarray, b: np.ndarray, won: np.ndarray) -> None:
    """Everyone must be able to reach everyone over wins or ties (Ford, 1957)."""
    beats = np.zeros((len(names), len(names)))
    np.add.at(beats, (a, b), won)
    np.add.at(beats, (b, a), 1 - won)
    number, group = connected_components(beats > 0, directed=True, connection="strong")
    if number == 1:
        return
    whole, _ = connected_components((beats + beats.T) > 0, directed=False)
    some = [name for name, one in zip(names, group, strict=True) if one == group[0]]
    if whole > 1:
        raise UserError(
            f"no chain of comparisons connects {', '.join(some)} with the other models; compare them too"
        )
    raise UserError(
        f"{', '.join(some)} won or lost every comparison with some others, so that no finite strength fits; collect "
        "more comparisons, or leave models out"
    )


def _fit(number: int, a: np.ndarray, b: np.ndarray, won: np.ndarray) -> Float[np.ndarray, " m"]:
    """Newton's method; the likelihood is concave, and a halved step always finds a better point."""
    strength = np.zeros(number)
    value = _likelihood(strength, a, b, won)
    for _ in range(_STEPS):
        expected = expit(strength[a] - strength[b])
        slope = np.bincount(a, won - expected, number) - np.bincount(b, won - expected, number)
        step = _inverse(_information(strength, a, b)) @ slope
        while (new := _likelihood(strength + step, a, b, won)) < value and np.abs(step).max() > _CLOSE:
            step = step / 2
        strength, value = strength + step, new
        if np.abs(step).max() < _CLOSE:
            break
    return strength - strength.mean()


def _likelihood(strength: np.ndarray, a: np.ndarray, b: np.ndarray, won: np.ndarray) -> float:
    lead = strength[a] - strength[b]
    return float(-(won * np.logaddexp(0, -lead) + (1 - won) * np.logaddexp(0, lead)).sum())


def _information(strength: np.ndarray, a: np.ndarray, b: np.ndarray) -> Float[np.ndarray, "m m"]:
    """Minus the second derivative of the log-likelihood; equal shifts of all strengths are its kernel."""
    expected = expit(strength[a] - strength[b])
    weight = expected * (1 - expected)
    found = np.zeros((len(strength),) * 2)
    for i, j, sign in ((a, a, 1), (b, b, 1), (a, b, -1), (b, a, -1)):
        np.add.at(found, (i, j), sign * weight)
    return found


def _inverse(information: Float[np.ndarray, "m m"]) -> Float[np.ndarray, "m m"]:
    """The inverse among strengths of sum 0."""
    mean = np.full_like(information, 1 / len(information))  # onto equal shifts of all
    size = np.trace(information)
    inverse: np.ndarray = np.linalg.inv(information + size * mean) - mean / size
    return inverse


def _covariance(
    strength: np.ndarray, a: np.ndarray, b: np.ndarray, won: np.ndarray, units: np.ndarray
) -> Float[np.ndarray, "m m"]:
    """The sandwich: slopes of the units between two inverses of the information."""
    left = won - expit(strength[a] - strength[b])
    _, unit = np.unique(units, return_inverse=True)
    number = int(unit.max()) + 1
    slopes = np.zeros((number, len(strength)))
    np.add.at(slopes, (unit, a), left)
    np.add.at(slopes, (unit, b), -left)
    inverse = _inverse(_information(strength, a, b))
    correction = number / max(number - 1, 1)
    return correction * inverse @ (slopes.T @ slopes) @ inverse
