from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from unifl.errors import UserError
from unifl.metrics.preference_accuracy import preference_accuracy


def drawn(number=4000, scale=2.0, ties=0.0, seed=0):
    """People who prefer by sigmoid(lead / scale), and see no difference in small leads now and then."""
    rng = np.random.default_rng(seed)
    lead = 3 * rng.normal(size=number)
    label = (rng.random(number) < expit(lead / scale)).astype(float)
    small = (np.abs(lead) < 0.8) & (rng.random(number) < ties)
    return lead, np.where(small, 0.5, label), rng.integers(0, number // 4, number)


def test_the_scale_and_the_calibration_are_found():
    lead, label, units = drawn()
    found = preference_accuracy(lead, label, units)
    assert found.scale == pytest.approx(2, rel=0.1)
    expected = expit(np.abs(lead) / 2).mean()
    assert found.decided.value == pytest.approx(expected, abs=0.02)
    assert found.decided.low < expected < found.decided.high and found.decided.n == len(set(units.tolist()))
    assert len(found.calibration) == 10 and sum(one.pairs for one in found.calibration) == 4000
    for one in found.calibration:
        assert one.observed == pytest.approx(one.expected, abs=0.08)
    assert [one.expected for one in found.calibration] == sorted(one.expected for one in found.calibration)
    assert found.log_loss < np.log(2) and found.ties == 0


def test_sides_and_the_unit_of_scores_are_names_for_the_same():
    lead, label, units = drawn(500, ties=0.5)
    found = preference_accuracy(lead, label, units)
    turned = preference_accuracy(-lead, 1 - label, units)
    scaled = preference_accuracy(10 * lead, label, units)
    assert turned == found
    assert scaled.decided == found.decided and scaled.with_ties == found.with_ties
    assert scaled.scale == pytest.approx(10 * found.scale, rel=1e-3)
    assert scaled.threshold == pytest.approx(10 * found.threshold)


def test_ties_are_called_at_the_best_threshold():
    lead, label, units = drawn(300, ties=0.7, seed=3)
    found = preference_accuracy(lead, label, units)
    called = [
        np.mean(np.where(np.abs(lead) <= t, label == 0.5, (label != 0.5) & ((lead > 0) == (label > 0.5))))
        for t in [-1, *np.abs(lead)]
    ]
    assert found.with_ties == pytest.approx(max(called)) and found.ties == (label == 0.5).sum() > 10
    assert 0.2 < found.threshold < 1.5


def test_equal_scores_count_half_and_say_nothing():
    found = preference_accuracy(np.zeros(8), np.array([1, 0] * 4), np.arange(8))
    assert (
        found.decided.value == 0.5
        and found.log_loss == pytest.approx(np.log(2))
        and found.scale == float("inf")
    )
    assert [one.expected for one in found.calibration] == [0.5] * 8


def test_pairs_of_one_prompt_widen_the_interval():
    lead, label, _ = drawn(200)
    alone = preference_accuracy(lead, label, np.arange(200)).decided
    many = preference_accuracy(np.repeat(lead, 9), np.repeat(label, 9), np.repeat(np.arange(200), 9)).decided
    assert many.value == pytest.approx(alone.value)
    assert many.high - many.low == pytest.approx(alone.high - alone.low, rel=0.02)


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(UserError, match="no pair has a preference"):
        preference_accuracy(np.ones(2), np.full(2, 0.5), np.arange(2))
    with pytest.raises(UserError, match="not finite"):
        preference_accuracy(np.array([np.nan]), np.ones(1), np.arange(1))
