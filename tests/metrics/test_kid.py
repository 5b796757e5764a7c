from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.image.kid import KernelInceptionDistance

from unifl.errors import UserError
from unifl.metrics.intervals import bootstrap_counts
from unifl.metrics.kid import kernel_distance, kernel_replicates, kernel_subsets


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


class Passed(torch.nn.Module):
    """Features in place of pictures: torchmetrics calls it an extractor."""

    def forward(self, features):
        return features


def theirs(a, b, **settings):
    metric = KernelInceptionDistance(feature=Passed(), **settings).set_dtype(torch.float64)
    metric.update(torch.tensor(a), real=False), metric.update(torch.tensor(b), real=True)
    return tuple(float(value) for value in metric.compute())


def test_the_whole_set_equals_torchmetrics():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(60, 200)) + 0.1, rng.normal(size=(60, 200))
    mean, std = theirs(a, b, subsets=2, subset_size=60)  # each subset is everything
    assert kernel_distance(a, b) == pytest.approx(mean, rel=1e-9) and std < 1e-9
    assert kernel_subsets(a, b, subsets=2, size=60) == pytest.approx((mean, 0), rel=1e-9, abs=1e-9)


def test_subsets_equal_those_of_torchmetrics_when_both_draw_alike(monkeypatch):
    rng = np.random.default_rng(6)
    a, b = rng.normal(size=(50, 8)) + 0.3, rng.normal(size=(40, 8))
    ours = kernel_subsets(a, b, subsets=12, size=20, seed=3)
    same = np.random.default_rng([3, 20])
    drawn = iter([torch.from_numpy(same.permutation(n)) for _ in range(12) for n in (50, 40)])
    # theirs draws the real side first
    pairs = iter([order for one in zip(drawn, drawn, strict=True) for order in reversed(one)])
    monkeypatch.setattr(torch, "randperm", lambda n: next(pairs))
    assert ours == pytest.approx(theirs(a, b, subsets=12, subset_size=20), rel=1e-9)


def test_subsets_agree_with_the_whole_and_need_enough_samples():
    rng = np.random.default_rng(7)
    a, b = rng.normal(size=(400, 6)) + 0.4, rng.normal(size=(400, 6))
    mean, std = kernel_subsets(a, b, subsets=50, size=100)
    assert mean == pytest.approx(kernel_distance(a, b), abs=4 * std / 50**0.5) and std > 0
    with pytest.raises(UserError, match="size of at least 2 and at most 400"):
        kernel_subsets(a, b)
