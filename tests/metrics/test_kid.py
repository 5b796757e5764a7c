from __future__ import annotations

import numpy as np
import pytest

from unifl.metrics.intervals import bootstrap_counts
from unifl.metrics.kid import kernel_distance, kernel_replicates


def test_equals_the_double_sum_over_different_pairs():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 3)), rng.normal(size=(4, 3))

    def kernel(a, b):
        return (a @ b / 3 + 1) ** 3

    xx = np.mean([kernel(x[i], x[j]) for i in range(5) for j in range(5) if i != j])
    yy = np.mean([kernel(y[i], y[j]) for i in range(4) for j in range(4) if i != j])
    xy = np.mean([kernel(a, b) for a in x for b in y])
    assert kernel_distance(x, y) == pytest.approx(xx + yy - 2 * xy, rel=1e-12)


def test_is_zero_on_average_for_one_distribution_even_for_small_sets():
    rng = np.random.default_rng(1)
    values = [kernel_distance(rng.normal(size=(12, 4)), rng.normal(size=(12, 4))) for _ in range(600)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * error
    assert np.min(values) < 0  # an estimate that keeps a sample's pair with itself never is


def test_grows_with_a_shift():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(300, 8)), rng.normal(size=(300, 8))
    small, large = kernel_distance(x, y + 0.3), kernel_distance(x, y + 0.6)
    assert 0.02 < small < large


def test_replicates_spread_around_the_value():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(150, 6)) + 0.3, rng.normal(size=(150, 6))
    value = kernel_distance(x, y)
    replicates = kernel_replicates(x, y, bootstrap_counts(150, resamples=300))
    assert replicates.mean() == pytest.approx(value, abs=0.3 * replicates.std())


def test_replicates_of_the_whole_set_are_the_value():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(30, 5)), rng.normal(size=(20, 5))
    assert kernel_replicates(x, y, np.ones((1, 30)))[0] == pytest.approx(kernel_distance(x, y), rel=1e-12)
