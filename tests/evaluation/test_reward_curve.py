"""Curves of reward against drift recover what made-up points were drawn from."""

from __future__ import annotations

import math

import numpy as np
import pytest

from unifl.evaluation.reward_curve import LOGARITHMIC, QUADRATIC, fit_curve

DRIFT = np.array([0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0])


def _points(form, alpha, beta, *, noise=0.0, seed=0, prompts=80):
    with np.errstate(divide="ignore", invalid="ignore"):
        bend = np.nan_to_num(DRIFT * np.log(DRIFT)) if form == LOGARITHMIC else DRIFT**2
    rng = np.random.default_rng(seed)
    values = (alpha * DRIFT - beta * bend)[:, None] + noise * rng.normal(size=(len(DRIFT), prompts))
    values[0] = 0
    return values


@pytest.mark.parametrize(
    ("form", "alpha", "beta", "peak"),
    [(LOGARITHMIC, 1.0, 0.6, math.exp(1 / 0.6 - 1)), (QUADRATIC, 1.0, 0.2, 2.5)],
)
def test_coefficients_and_peak_are_those_of_the_curve(form, alpha, beta, peak):
    curve = fit_curve(DRIFT, _points(form, alpha, beta))
    assert curve.form == form and curve.residual < 1e-9
    assert (curve.alpha, curve.beta) == pytest.approx((alpha, beta))
    assert [curve.peak, curve.low, curve.high] == pytest.approx(3 * [peak])
    near = curve(np.array([0.99, 1.0, 1.01]) * peak)
    assert near[1] > near[0] and near[1] > near[2]


def test_the_unit_of_drift_does_not_matter():
    values = _points(LOGARITHMIC, 1.0, 0.6, noise=0.2)
    one, thousand = fit_curve(DRIFT, values), fit_curve(1000 * DRIFT, values)
    assert one.form == thousand.form
    assert thousand.peak == pytest.approx(1000 * one.peak) and thousand.residual == pytest.approx(
        one.residual
    )


def test_the_interval_covers_the_peak_as_often_as_it_says():
    peak, inside = math.exp(1 / 0.6 - 1), 0
    for seed in range(100):
        curve = fit_curve(DRIFT, _points(LOGARITHMIC, 1.0, 0.6, noise=0.5, seed=seed), resamples=400)
        inside += curve.low <= peak <= curve.high
    assert 88 <= inside <= 100


def test_what_only_rises_has_no_peak_and_what_only_falls_has_it_at_the_start():
    rising = fit_curve(DRIFT, _points(QUADRATIC, 1.0, -0.1))
    assert math.isinf(rising.peak) and math.isinf(rising.high)
    falling = fit_curve(DRIFT, _points(QUADRATIC, -1.0, 0.1))
    assert falling.peak == falling.high == 0
    flattening = fit_curve(DRIFT, _points(QUADRATIC, -1.0, -0.1))  # would rise again, beyond what was seen
    assert flattening.peak == flattening.high == 0
    late = fit_curve(DRIFT, _points(QUADRATIC, 1.0, 0.05))  # turns at 10, beyond what was seen
    assert math.isinf(late.peak) and math.isinf(late.low)
    straight = fit_curve(DRIFT, _points(QUADRATIC, 1.0, 0.0, noise=0.5))
    assert math.isinf(straight.high)  # some resampled curves turn, some do not


def test_two_checkpoints_fit_anything_and_say_nothing():
    values = _points(QUADRATIC, 1.0, 0.2)
    assert fit_curve(DRIFT[:3], values[:3]) is None
    assert fit_curve(np.array([0, 1.0, 1.0, 1.0]), values[:4]) is None
