from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from unifl.errors import UserError
from unifl.metrics.frechet import frechet_distance, frechet_interval, frechet_replicates
from unifl.metrics.intervals import bootstrap_counts, centred_interval


def with_moments(rng, n, mean, covariance):
    """Samples whose mean and covariance are exactly these."""
    x = rng.normal(size=(n, len(mean)))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return x @ np.linalg.cholesky(covariance).T + mean


def random_covariance(rng, d):
    a = rng.normal(size=(d, d))
    return a @ a.T / d + 0.1 * np.eye(d)


def test_equals_the_closed_form_of_two_gaussians():
    rng = np.random.default_rng(0)
    s1, s2 = random_covariance(rng, 8), random_covariance(rng, 8)
    m1, m2 = rng.normal(size=8), rng.normal(size=8)
    expected = ((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * scipy.linalg.sqrtm(s1 @ s2).real)
    found = frechet_distance(with_moments(rng, 300, m1, s1), with_moments(rng, 300, m2, s2))
    assert found == pytest.approx(expected, rel=1e-9)


def test_commuting_covariances_give_distance_of_standard_deviations():
    rng = np.random.default_rng(1)
    a = with_moments(rng, 100, np.zeros(3), np.diag([1.0, 4.0, 9.0]))
    b = with_moments(rng, 100, np.array([1.0, 0.0, 0.0]), np.diag([4.0, 4.0, 1.0]))
    assert frechet_distance(a, b) == pytest.approx(1 + (1 - 2) ** 2 + 0 + (3 - 1) ** 2, rel=1e-9)


def test_is_zero_for_equal_sets_symmetric_and_blind_to_rotation():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(50, 6)), 2 * rng.normal(size=(50, 6)) + 1
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    assert frechet_distance(a, a[::-1]) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a @ rotation, b @ rotation) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_survives_rank_deficient_features():
    rng = np.random.default_rng(3)
    low = rng.normal(size=(20, 2)) @ rng.normal(size=(2, 64))
    value = frechet_distance(low, low + 1.0, few=True)
    assert value == pytest.approx(64.0, rel=1e-6)


def test_float32_tensors_with_a_large_offset_keep_their_precision():
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)) + 1000
    assert frechet_distance(x, x + 0.5) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((5, 3)), np.zeros((6, 3)), "equal size, got 5 and 6"),
        (np.zeros((1, 3)), np.zeros((1, 3)), "at least two samples"),
        (
            np.zeros((65, 65)),
            np.zeros((65, 65)),
            "65 samples have no covariance of full rank in 65 dimensions",
        ),
        (np.full((9, 2), np.nan), np.zeros((9, 2)), "not finite"),
    ],
)
def test_says_what_is_wrong_with_the_sets(a, b, message):
    with pytest.raises(UserError, match=message):
        frechet_distance(a, b)


def test_replicates_equal_the_distance_of_resampled_rows():
    rng = np.random.default_rng(4)
    x, reference = rng.normal(size=(40, 3)), rng.normal(size=(40, 3)) + 0.5
    counts = bootstrap_counts(40, resamples=5, seed=7)
    drawn = [np.repeat(x, row.astype(int), axis=0) for row in counts]
    expected = [frechet_distance(rows, reference) for rows in drawn]
    np.testing.assert_allclose(frechet_replicates(x, reference, counts), expected, rtol=1e-9)


def test_interval_holds_the_value_although_resampling_inflates_the_distance():
    rng = np.random.default_rng(5)
    x, reference = rng.normal(size=(200, 16)), rng.normal(size=(200, 16))
    value = frechet_distance(x, reference)
    replicates = frechet_replicates(x, reference, bootstrap_counts(200, resamples=100))
    assert np.quantile(replicates, 0.025) > value  # so plain percentiles would miss it
    interval = centred_interval(value, replicates, n=200)
    assert interval.low < value < interval.high


class Passed(torch.nn.Module):
    """Features in place of pictures: torchmetrics calls it an extractor."""

    def __init__(self, width):
        super().__init__()
        self.num_features = width

    def forward(self, features):
        return features


@pytest.mark.parametrize(("n", "width"), [(300, 16), (400, 200)])
def test_equals_torchmetrics(n, width):
    rng = np.random.default_rng(6)
    mix = rng.normal(size=(width, width)) / width**0.5
    a, b = rng.normal(size=(n, width)) @ mix + 0.2, rng.normal(size=(n, width))
    theirs = FrechetInceptionDistance(feature=Passed(width)).set_dtype(torch.float64)
    theirs.update(torch.tensor(a), real=False), theirs.update(torch.tensor(b), real=True)
    assert frechet_distance(a, b) == pytest.approx(float(theirs.compute()), rel=1e-8)


def test_more_dimensions_than_samples_only_if_they_are_meant():
    """Two sets of one distribution are far apart when n is below d, and the value falls as n grows."""
    rng = np.random.default_rng(7)
    found = [
        frechet_distance(rng.normal(size=(n, 96)), rng.normal(size=(n, 96)), few=True) for n in (48, 96, 960)
    ]
    assert found[0] > 1.5 * found[1] > 6 * found[2]
    a, b = rng.normal(size=(30, 40)), rng.normal(size=(30, 40)) + 1
    theirs = FrechetInceptionDistance(feature=Passed(40)).set_dtype(torch.float64)
    theirs.update(torch.tensor(a), real=False), theirs.update(torch.tensor(b), real=True)
    # the root of a nonsymmetric product of deficient matrices carries their rounding
    assert frechet_distance(a, b, few=True) == pytest.approx(float(theirs.compute()), rel=1e-4)


@pytest.mark.slow
def test_two_thousand_dimensions_are_within_reach():
    rng = np.random.default_rng(8)
    a, b = rng.normal(size=(2100, 2048)).astype(np.float32), rng.normal(size=(2100, 2048)).astype(np.float32)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    found = frechet_interval(a, b)
    assert found.value == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert found.low < found.value < found.high


def test_the_quick_interval_is_as_wide_as_that_of_resamples():
    rng = np.random.default_rng(9)
    x, reference = rng.normal(size=(800, 6)) * 0.5 + 0.3, rng.normal(size=(800, 6))
    units = np.repeat(np.arange(200), 4)
    x += rng.normal(size=(200, 6))[units]  # samples of one prompt are alike
    quick = frechet_interval(x, reference, units=units)
    counts = bootstrap_counts(200, resamples=400)[:, units]
    slow = centred_interval(frechet_distance(x, reference), frechet_replicates(x, reference, counts), n=200)
    assert quick.value == pytest.approx(slow.value, rel=1e-9) and quick.n == 200
    assert quick.high - quick.low == pytest.approx(slow.high - slow.low, rel=0.15)
    alone = frechet_interval(x, reference)
    assert alone.high - alone.low < 0.8 * (quick.high - quick.low)


def test_the_quick_interval_covers_as_often_as_it_says():
    """95 % within two points, of the mean distance at this n to a fixed reference."""
    rng = np.random.default_rng(10)
    mix, reference = random_covariance(rng, 4), rng.normal(size=(300, 4))
    found = [frechet_interval(rng.normal(size=(300, 4)) @ mix + 0.4, reference) for _ in range(2000)]
    mean = np.mean([one.value for one in found])
    assert np.mean([one.low <= mean <= one.high for one in found]) == pytest.approx(0.95, abs=0.02)
