from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from unifl.errors import UserError
from unifl.metrics.agreement import krippendorff_alpha

# four observers and twelve units, from "Computing Krippendorff's Alpha-Reliability" (2011), section C
PUBLISHED = """
1 2 3 3 2 1 4 1 2 . . .
1 2 3 3 2 2 4 1 2 5 . 3
. 3 3 3 2 3 4 2 2 5 1 .
1 2 3 3 2 4 4 1 2 5 1 .
"""


def published():
    rows = [line.split() for line in PUBLISHED.strip().splitlines()]
    found = [(unit, float(value)) for row in rows for unit, value in enumerate(row) if value != "."]
    units, values = zip(*found, strict=True)
    return np.array(units), np.array(values)


@pytest.mark.parametrize(("level", "expected"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_the_published_example(level, expected):
    assert krippendorff_alpha(*published(), level=level) == pytest.approx(expected, abs=5e-4)


def test_equals_the_definition_over_pairs():
    rng = np.random.default_rng(0)
    units, values = rng.integers(0, 9, 40), rng.integers(-1, 2, 40).astype(float)
    sizes = {unit: int((units == unit).sum()) for unit in set(units.tolist())}
    kept = np.array([sizes[unit] > 1 for unit in units.tolist()])
    u, v = units[kept], values[kept]
    observed = sum(
        (a - b) ** 2 / (sizes[p] - 1)
        for (p, a), (q, b) in itertools.permutations(zip(u.tolist(), v, strict=True), 2)
        if p == q
    ) / len(v)
    expected = sum((a - b) ** 2 for a, b in itertools.permutations(v, 2)) / len(v) / (len(v) - 1)
    assert krippendorff_alpha(units, values, level="interval") == pytest.approx(1 - observed / expected)


def test_chance_and_perfect_agreement():
    rng = np.random.default_rng(1)
    units = np.repeat(np.arange(2000), 3)
    assert krippendorff_alpha(units, rng.integers(0, 3, 6000)) == pytest.approx(0, abs=0.03)
    assert krippendorff_alpha(units, units % 3) == 1
    assert math.isnan(krippendorff_alpha(units, np.ones(6000)))


def test_nobody_judged_the_same_thing():
    with pytest.raises(UserError, match="no unit has two values"):
        krippendorff_alpha(np.arange(3), np.arange(3))
