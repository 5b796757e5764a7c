from __future__ import annotations

import numpy as np
import pytest

from unifl.errors import UserError
from unifl.metrics.vendi import vendi_score


def brute_force(x):
    n = len(x)
    kernel = np.array([[p @ q / np.linalg.norm(p) / np.linalg.norm(q) for q in x] for p in x]) / n
    values = np.linalg.eigvals(kernel).real
    values = values[values > 1e-12]
    return np.exp(-(values * np.log(values)).sum())


@pytest.mark.parametrize("shape", [(6, 3), (4, 9), (5, 5)])
def test_equals_the_eigenvalues_of_the_whole_kernel(shape):
    x = np.random.default_rng(0).normal(size=shape)
    assert vendi_score(x) == pytest.approx(brute_force(x), rel=1e-9)


def test_counts_clusters():
    three = np.repeat(np.eye(4)[:3], 10, axis=0)
    assert vendi_score(three) == pytest.approx(3, rel=1e-9)
    assert vendi_score(np.eye(6)) == pytest.approx(6, rel=1e-9)
    assert vendi_score(np.ones((6, 2)) * np.arange(1, 7)[:, None]) == pytest.approx(1, rel=1e-9)
    uneven = np.repeat(np.eye(2), [15, 5], axis=0)
    share = np.array([0.75, 0.25])
    assert vendi_score(uneven) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-9)


def test_features_that_are_no_numbers_are_refused():
    with pytest.raises(UserError, match="not finite"):
        vendi_score(np.array([[np.nan, 1], [1, 1]]))
