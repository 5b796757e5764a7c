from __future__ import annotations

import time

import numpy as np
import pytest

from unifl.errors import UserError
from unifl.metrics.intervals import (
    bootstrap_counts,
    change_interval,
    difference_interval,
    group_mean_interval,
    influence_interval,
    mean_interval,
    ratio_interval,
    seed_prompt_interval,
)


def test_counts_are_resamples_and_depend_on_the_seed_only():
    counts = bootstrap_counts(50, resamples=400, seed=3)
    assert (counts.sum(axis=1) == 50).all()
    assert counts.var() == pytest.approx(1 - 1 / 50, rel=0.05)  # binomial(50, 1/50)
    np.testing.assert_array_equal(counts, bootstrap_counts(50, resamples=400, seed=3))
    assert (counts != bootstrap_counts(50, resamples=400, seed=4)).any()


def test_covers_the_true_mean_in_about_95_of_100_experiments():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        interval = mean_interval(rng.exponential(size=80), resamples=400)
        hits += interval.low <= 1.0 <= interval.high
    assert 0.90 <= hits / 400 <= 0.98  # a skewed distribution: slightly below 0.95


def test_width_is_that_of_the_normal_approximation():
    values = np.random.default_rng(1).normal(size=500)
    interval = mean_interval(values)
    assert interval.value == pytest.approx(values.mean())
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(500), rel=0.06)
    assert interval.n == 500


def test_a_wider_level_gives_a_wider_interval():
    values = np.random.default_rng(2).normal(size=100)
    narrow, wide = mean_interval(values, level=0.5), mean_interval(values, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_missing_values_have_no_weight():
    values = np.array([1.0, np.nan, 3.0, np.nan] * 20)
    interval = mean_interval(values)
    assert (interval.value, interval.n) == (2.0, 40)
    assert 1.0 < interval.low < 2.0 < interval.high < 3.0
    with pytest.raises(UserError, match="no value to average"):
        mean_interval(np.full(5, np.nan))


def test_a_paired_difference_is_narrower_than_its_parts():
    rng = np.random.default_rng(3)
    prompt_difficulty = rng.normal(size=300)
    a = prompt_difficulty + 0.1 + 0.05 * rng.normal(size=300)
    b = prompt_difficulty + 0.05 * rng.normal(size=300)
    paired = difference_interval(a, b)
    assert paired.low > 0.08 and paired.high < 0.12
    assert paired.excludes(0.0) and not paired.excludes(0.1)
    assert not mean_interval(a).excludes(mean_interval(b).value)
    swapped = difference_interval(b, a)
    assert (swapped.low, swapped.high) == pytest.approx((-paired.high, -paired.low))


def test_a_ratio_is_one_for_equal_values_and_inverts_when_swapped():
    rng = np.random.default_rng(4)
    a, b = rng.uniform(1, 2, 200), rng.uniform(1, 2, 200)
    assert ratio_interval(a, a).low == ratio_interval(a, a).high == 1.0
    assert ratio_interval(a, b).value == pytest.approx(1 / ratio_interval(b, a).value)


def test_training_seeds_add_to_the_spread():
    rng = np.random.default_rng(5)
    prompts = 0.1 * rng.normal(size=400)
    same = np.tile(prompts, (6, 1))
    differing = same + rng.normal(size=(6, 1))
    over_prompts = mean_interval(prompts)
    equal_runs, runs = seed_prompt_interval(same), seed_prompt_interval(differing)
    assert equal_runs.high - equal_runs.low == pytest.approx(over_prompts.high - over_prompts.low, rel=0.1)
    assert runs.high - runs.low > 20 * (equal_runs.high - equal_runs.low)
    assert runs.value == pytest.approx(differing.mean())


def test_the_two_level_interval_covers_the_mean_over_seeds_and_prompts():
    rng = np.random.default_rng(6)
    hits = 0
    for _ in range(150):
        values = rng.normal(size=(8, 1)) + rng.normal(size=(1, 60)) + rng.normal(size=(8, 60))
        interval = seed_prompt_interval(values, resamples=300)
        hits += interval.low <= 0.0 <= interval.high
    assert 0.82 <= hits / 150 <= 0.99  # few seeds: too narrow rather than too wide


def test_change_of_a_biased_statistic_is_paired():
    rng = np.random.default_rng(7)
    shared = rng.normal(size=500)
    interval = change_interval(10.0, 13 + shared, 12.0, 15 + shared, n=100)
    assert (interval.value, interval.low, interval.high) == pytest.approx((-2, -2, -2))
    ratio = change_interval(8.0, 16 * np.exp(shared), 10.0, 20 * np.exp(shared), n=100, kind="ratio")
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((0.8, 0.8, 0.8))


def test_2000_resamples_over_500_prompts_take_less_than_half_a_second():
    values = np.random.default_rng(8).normal(size=500)
    start = time.process_time()
    mean_interval(values, resamples=2000, seed=12345)
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_a_level_outside_the_unit_interval_is_an_error(level):
    with pytest.raises(UserError, match="level must lie between 0 and 1"):
        mean_interval(np.arange(5.0), level=level)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["skewed", "binary", "samples of a prompt"])
def test_intervals_of_a_mean_cover_as_often_as_they_say(kind):
    """95 % within two points, at 200 prompts."""
    rng, hits = np.random.default_rng(10), 0
    true = {"skewed": 1.0, "binary": 0.7, "samples of a prompt": 0.0}[kind]
    for seed in range(2000):
        if kind == "skewed":
            values = rng.exponential(size=200)
        elif kind == "binary":
            values = (rng.random(200) < true).astype(float)
        else:
            values = (rng.normal(size=(200, 1)) + rng.normal(size=(200, 4))).mean(axis=1)
        hits += not mean_interval(values, resamples=1000, seed=seed).excludes(true)
    assert hits / 2000 == pytest.approx(0.95, abs=0.02)


def test_a_mean_of_groups_counts_each_group_once():
    values = np.array([1.0, 1, 1, 1, 0, np.nan])
    found = group_mean_interval(values, ["many"] * 4 + ["few", "few"])
    assert found.value == pytest.approx(0.5) and found.n == 5
    assert found.low == found.high == pytest.approx(0.5)  # neither group varies
    with pytest.raises(UserError, match="no value to average"):
        group_mean_interval(np.array([np.nan]), ["a"])


@pytest.mark.slow
def test_a_mean_of_groups_covers_as_often_as_it_says():
    rng, hits = np.random.default_rng(11), 0
    groups, rate = ["a"] * 100 + ["b"] * 60, np.repeat([0.9, 0.3], [100, 60])
    for seed in range(2000):
        found = group_mean_interval((rng.random(160) < rate).astype(float), groups, resamples=1000, seed=seed)
        hits += not found.excludes(0.6)
    assert hits / 2000 == pytest.approx(0.95, abs=0.02)


def test_the_influence_of_a_mean_gives_its_standard_error():
    values = np.random.default_rng(12).normal(size=400)
    found = influence_interval(float(values.mean()), values - values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.959964 * values.std(ddof=1) / 20, rel=1e-6)
    twice = influence_interval(
        float(values.mean()), np.repeat(values - values.mean(), 2), units=np.repeat(np.arange(400), 2)
    )
    assert twice.n == 400 and twice.high == pytest.approx(found.high, rel=1e-9)
