from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from unifl.errors import UserError
from unifl.metrics.prdc import prdc


def brute_force(ours, real, k):
    def radius(x, i):
        return sorted(np.linalg.norm(x - x[i], axis=1))[k]

    inside = np.array([[np.linalg.norm(p - q) < radius(real, j) for j, q in enumerate(real)] for p in ours])
    around = np.array([[np.linalg.norm(p - q) < radius(ours, i) for q in real] for i, p in enumerate(ours)])
    return inside.any(1).mean(), around.any(0).mean(), inside.sum() / k / len(ours), inside.any(0).mean()


@pytest.mark.parametrize("k", [1, 3])
def test_equals_the_definitions(k):
    rng = np.random.default_rng(0)
    ours, real = rng.normal(size=(15, 3)), rng.normal(size=(11, 3)) + 0.5
    found = prdc(ours, real, nearest=k)
    expected = brute_force(ours, real, k)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(expected)
    assert 0 < found.precision < 1 and 0 < found.recall < 1


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_what_is_as_near_as_the_neighbour_is_outside_whatever_rounding_does(offset):
    """Sets that share samples, as copies of real pictures are: there distances are equal, and not nearly so."""
    rng = np.random.default_rng(2)
    real = rng.normal(size=(203, 301)) + offset
    ours = np.concatenate([real[:97], real[:8], real[:8], 0.5 * (real[97:150] + real[150:])])
    for a, b in ((real, real), (ours, real), (real, ours)):
        radii_a, radii_b = (np.sort(cdist(x, x), axis=1)[:, 2] for x in (a, b))
        apart = cdist(a, b)  # of differences, pair by pair: equal ones are equal to the last bit
        inside, around = apart < radii_b, apart < radii_a[:, None]
        found = prdc(a, b, nearest=2)
        assert (found.precision, found.recall) == (inside.any(1).mean(), around.any(0).mean())
        assert (found.density, found.coverage) == (inside.sum() / 2 / len(a), inside.any(0).mean())


def test_equal_distributions_and_a_collapsed_one():
    rng = np.random.default_rng(1)
    real, same = rng.normal(size=(400, 4)), rng.normal(size=(400, 4))
    found = prdc(same, real)
    assert found.precision > 0.9 and found.recall > 0.9 and found.coverage > 0.9
    assert found.density == pytest.approx(1, abs=0.1)  # its expectation for equal distributions
    collapsed = prdc(0.05 * same, real)
    assert collapsed.precision > 0.95
    assert collapsed.recall < 0.1 and collapsed.coverage < 0.5
    far = prdc(same + 50, real)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)


def test_too_few_samples_are_refused():
    with pytest.raises(UserError, match="the 5-th neighbour of 5 samples"):
        prdc(np.eye(5), np.eye(5))
    with pytest.raises(UserError, match="nearest of 1 or more"):
        prdc(np.eye(5), np.eye(5), nearest=0)
