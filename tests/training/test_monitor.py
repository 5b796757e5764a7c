"""Means over micro-batches, and numbers that stop a run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from unifl.errors import TrainingStopped
from unifl.methods.base import StepOutput
from unifl.training.ema import ema_decay
from unifl.training.monitor import Means, all_finite, require_finite


def test_a_missing_loss_counts_as_zero_and_a_missing_metric_does_not_count():
    means = Means()
    means.add(StepOutput({"a": torch.tensor(2.0)}, {"m": 4.0, "rows": torch.tensor([1.0, 2.0])}))
    means.add(StepOutput({"a": torch.tensor(4.0), "b": torch.tensor(6.0)}))
    assert means.gather() == ({"a": 3.0, "b": 3.0}, {"m": 4.0, "rows": 1.5})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_message_names_what_is_wrong(value):
    with pytest.raises(
        TrainingStopped, match=r"stopped at step 3: .*'bad' is .*; the last good checkpoint is here"
    ):
        require_finite({"good": 1.0, "bad": value}, kind="loss term", step=3, last=Path("here"))
    require_finite({"good": 1.0}, kind="loss term", step=3, last=None)


def test_all_finite():
    assert all_finite([torch.ones(2), torch.zeros(())])
    assert not all_finite([torch.ones(2), torch.tensor([1.0, math.nan])])


def test_the_decay_grows_to_its_value():
    assert ema_decay(1, 0.999) == pytest.approx(2 / 11)
    assert ema_decay(100, 0.999) == pytest.approx(101 / 110)
    assert ema_decay(10**6, 0.999) == 0.999
