from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from unifl.errors import UserError
from unifl.metrics.cmmd import cmmd


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
    monkeypatch.setattr(sys.modules["unifl.metrics.cmmd"], "_ROWS", 3)  # a part that is cut short at the end
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
