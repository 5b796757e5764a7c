from __future__ import annotations

import pytest
import torch

from unifl.errors import UserError
from unifl.feedback import Feedback, as_feedback, clipped, normalised, weighted_sum

IMAGES = torch.stack([torch.full((3, 4, 4), 0.25), torch.full((3, 4, 4), 0.75)])


def _brightness(**settings):
    return as_feedback(
        lambda images, prompts: images.mean((1, 2, 3)), name="brightness", range=(0.0, 1.0), **settings
    )


def test_weighted_sum():
    length = as_feedback(
        lambda i, p: torch.tensor([float(len(x)) for x in p]), name="len", differentiable=False
    )
    both = weighted_sum({"a": _brightness(), "b": length}, {"a": 2.0, "b": -1.0})
    assert isinstance(both, Feedback) and not both.differentiable and both.range is None
    assert both(IMAGES, ["x", "xyz"]).tolist() == [-0.5, -1.5]
    alone = weighted_sum({"a": _brightness(), "b": length}, {"a": -2.0, "b": 0.0})
    assert alone.differentiable and alone.range == (-2, 0)  # what has weight 0 is not there


def test_normalised_and_clipped():
    scaled = normalised(_brightness(), mean=0.5, std=0.25)
    assert scaled(IMAGES, ["", ""]).tolist() == [-1, 1] and scaled.range == (-2, 2)
    limited = clipped(scaled, low=-0.5, high=3.0)
    assert limited(IMAGES, ["", ""]).tolist() == [-0.5, 1] and limited.range == (-0.5, 3)
    assert limited.name == "brightness" and limited.differentiable


def test_errors():
    with pytest.raises(UserError, match="weights are given for"):
        weighted_sum({"a": _brightness()}, {"b": 1.0})
    with pytest.raises(UserError, match="not 0"):
        weighted_sum({"a": _brightness()}, {"a": 0.0})
    with pytest.raises(UserError, match="must be positive"):
        normalised(_brightness(), mean=0.0, std=0.0)
    with pytest.raises(UserError, match="low must be below high"):
        clipped(_brightness(), low=1.0, high=0.0)
