"""Krippendorff's alpha: how far people who judge the same things agree beyond chance.

    alpha = 1 - D_observed / D_expected

D is the mean squared difference of two values of one unit, or of any two values at all; 1 is perfect agreement, 0 what
chance gives. Units with fewer than two values say nothing and are left out; people may miss units.
(Krippendorff, Content Analysis, 4th edition, 2018, chapter 12; Computing Krippendorff's Alpha-Reliability, 2011.)
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Num

from unifl.errors import UserError

Level = Literal["nominal", "ordinal", "interval"]


def krippendorff_alpha(
    units: Int[np.ndarray, " v"], values: Num[np.ndarray, " v"], *, level: Level = "nominal"
) -> float:
    """Alpha of v values.

    Args:
        units: What was judged, for each value.
        values: What somebody said of it, as numbers.
        level: nominal: values are the same or not. ordinal: they have an order. interval: their differences count.

    Returns:
        At most 1; NaN where all values are the same, for which chance says nothing.

    Raises:
        UserError: No unit that two people judged.
    """
    _, unit, counts = np.unique(units, return_inverse=True, return_counts=True)
    shared = counts[unit] > 1
    if not shared.any():
        raise UserError(
            "no unit has two values; agreement needs units that several people judged (raise the overlap)"
        )
    _, unit = np.unique(unit[shared], return_inverse=True)
    levels, value = np.unique(np.asarray(values, np.float64)[shared], return_inverse=True)
    table = np.zeros((int(unit.max()) + 1, len(levels)))
    np.add.at(table, (unit, value), 1)  # how often each unit got each value
    totals = table.sum(axis=1)
    # pairs of values of one unit, a unit with m values weighing m
    within = (table[:, :, None] * table[:, None, :] / (totals - 1)[:, None, None]).sum(axis=0)
    within -= np.diag((table / (totals - 1)[:, None]).sum(axis=0))
    marginal = table.sum(axis=0)
    number = marginal.sum()
    by_chance = (np.outer(marginal, marginal) - np.diag(marginal)) / (number - 1)
    difference = _difference(levels, marginal, level)
    expected = float((by_chance * difference).sum())
    return float("nan") if expected == 0 else 1 - float((within * difference).sum()) / expected


def _difference(levels: np.ndarray, marginal: np.ndarray, level: Level) -> Float[np.ndarray, "k k"]:
    """Squared differences of values."""
    if level == "nominal":
        return 1.0 - np.eye(len(levels))
    if level == "interval":
        return (levels[:, None] - levels[None, :]) ** 2
    # how many values lie between two, each end counted half
    middle = np.cumsum(marginal) - marginal / 2
    return (middle[:, None] - middle[None, :]) ** 2
