from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from unifl.errors import UserError
from unifl.metrics.paired import outcomes, paired_comparison, paired_over_seeds


def test_margin_and_its_edge():
    b = np.array([[0.5]] * 5)
    a = np.array([[0.5], [0.51], [0.5101], [0.49], [0.4899]])
    assert outcomes(a, b).ravel().tolist() == [0.5, 0.5, 1.0, 0.5, 0.0]
    assert outcomes(a.astype(np.float32), b.astype(np.float32)).ravel().tolist() == [0.5, 0.5, 1.0, 0.5, 0.0]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_shares_sum_to_one_and_swapping_mirrors_them(pairs):
    a, b = (np.array(side)[:, None] for side in zip(*pairs, strict=True))
    ahead, behind = paired_comparison(a, b, resamples=50), paired_comparison(b, a, resamples=50)
    assert ahead.wins + ahead.ties + ahead.losses == pytest.approx(1)
    assert ahead.rate.value == pytest.approx(ahead.wins + ahead.ties / 2)
    assert (behind.wins, behind.ties, behind.losses) == pytest.approx((ahead.losses, ahead.ties, ahead.wins))
    assert behind.rate.value == pytest.approx(1 - ahead.rate.value)
    assert (behind.rate.low, behind.rate.high) == pytest.approx((1 - ahead.rate.high, 1 - ahead.rate.low))


def test_equal_models_tie_everywhere():
    a = np.random.default_rng(0).uniform(size=(40, 2))
    same = paired_comparison(a, a)
    assert (same.wins, same.ties, same.losses) == (0, 1, 0)
    assert (same.rate.low, same.rate.value, same.rate.high) == (0.5, 0.5, 0.5)


def test_samples_of_one_prompt_do_not_count_as_independent():
    rng = np.random.default_rng(1)
    gap = rng.choice([-1.0, 1.0], size=(50, 1))
    once = paired_comparison(gap, np.zeros((50, 1)))
    many = paired_comparison(np.repeat(gap, 20, axis=1), np.zeros((50, 20)))
    assert (many.rate.low, many.rate.high) == pytest.approx((once.rate.low, once.rate.high))
    assert many.rate.n == 50


def test_training_seeds_widen_the_interval():
    rng = np.random.default_rng(2)
    a = np.where(np.arange(5)[:, None] < 3, 1.0, -1.0) + 0.1 * rng.normal(size=(5, 200))
    result = paired_over_seeds(a, np.zeros((5, 200)))
    assert result.rate.value == pytest.approx(0.6)
    assert result.rate.low <= 0.2 and result.rate.high >= 0.9


def test_missing_scores_are_left_out():
    a = np.array([[1.0], [np.nan], [0.0]])
    result = paired_comparison(a, np.array([[0.0], [0.0], [1.0]]))
    assert (result.wins, result.ties, result.losses, result.rate.n) == (0.5, 0.0, 0.5, 2)


def test_a_negative_margin_is_an_error():
    with pytest.raises(UserError, match="margin of a tie cannot be negative"):
        outcomes(np.zeros((1, 1)), np.zeros((1, 1)), margin=-0.1)


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_intervals_of_a_win_rate_cover_as_often_as_they_say(shift):
    """95 % within two points, at 200 prompts of two pictures each, with ties."""
    rng, found = np.random.default_rng(0), []
    for seed in range(2000):
        prompt = rng.normal(size=(200, 1)) * 0.5
        gap = shift + prompt + rng.normal(size=(200, 2))
        found.append(paired_comparison(gap, np.zeros_like(gap), margin=0.3, resamples=1000, seed=seed).rate)
    spread = 1.25**0.5  # of the gap over prompts and pictures
    true = (norm.sf((0.3 - shift) / spread) + norm.sf((-0.3 - shift) / spread)) / 2
    assert np.mean([not one.excludes(true) for one in found]) == pytest.approx(0.95, abs=0.02)
