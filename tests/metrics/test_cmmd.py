from __future__ import annotations

import numpy as np
import pytest
import torch

from unifl.errors import UserError
from unifl.metrics import blocks
from unifl.metrics.cmmd import cmmd, cmmd_interval


def brute_force(a, b, sigma=10.0):
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))

    def mean(x, y):
        return np.mean([np.exp(-((p - q) ** 2).sum() / (2 * sigma**2)) for p in x for q in y])

    return 1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b))


def test_equals_the_double_sum(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 5)), rng.normal(size=(4, 5)) + 1
    assert cmmd(a, b) == pytest.approx(brute_force(a, b), rel=1e-9)
    assert cmmd(torch.tensor(a), torch.tensor(b), sigma=0.5) == pytest.approx(
        brute_force(a, b, 0.5), rel=1e-9
    )
    monkeypatch.setattr(blocks, "_NUMBERS", 12)  # rows by three: a part that is cut short at the end
    assert cmmd(a, b) == pytest.approx(brute_force(a, b), rel=1e-9)


def test_lengths_do_not_count_and_a_shift_does():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(200, 8)), rng.normal(size=(200, 8))
    assert cmmd(a, 3 * a) == pytest.approx(0, abs=1e-9)
    near, far = cmmd(a, b + 0.3), cmmd(a, b + 1)
    assert 0 < near < far and cmmd(a, b) < near


def test_high_dimensions_are_taken():
    rng = np.random.default_rng(2)
    assert cmmd(rng.normal(size=(20, 768)), rng.normal(size=(30, 768))) > 0


def test_what_has_no_direction_is_refused():
    with pytest.raises(UserError, match="feature 1 is all zeros"):
        cmmd(np.array([[1.0, 0], [0, 0]]), np.eye(2))
    with pytest.raises(UserError, match="sigma is 0"):
        cmmd(np.eye(2), np.eye(2), sigma=0.0)


def test_the_interval_covers_as_often_as_it_says():
    """95 % within two points, of the mean value at this n against a fixed reference."""
    rng = np.random.default_rng(3)
    reference = rng.normal(size=(200, 6)) + 0.5
    found = [cmmd_interval(rng.normal(size=(200, 6)), reference) for _ in range(2000)]
    mean = np.mean([one.value for one in found])
    assert np.mean([one.low <= mean <= one.high for one in found]) == pytest.approx(0.95, abs=0.02)


def test_the_interval_holds_the_value_and_grows_with_prompts_of_like_samples():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(200, 6)) + 0.5, rng.normal(size=(200, 6))
    units = np.repeat(np.arange(50), 4)
    x += 2 * rng.normal(size=(50, 6))[units]
    alone, together = cmmd_interval(x, y), cmmd_interval(x, y, units=units)
    assert alone.value == together.value == pytest.approx(cmmd(x, y), rel=1e-9)
    assert together.n == 50 and together.high - together.low > 1.3 * (alone.high - alone.low)
