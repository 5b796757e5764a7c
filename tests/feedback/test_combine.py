from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unifl.assembly.resolve import networks_of
from unifl.errors import UserError
from unifl.feedback import (
    Feedback,
    NetworkFeedback,
    as_feedback,
    clipped,
    ensemble,
    normalised,
    towards,
    weighted_sum,
)

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


def test_a_target_is_best_where_it_is_met():
    near = towards(_brightness(), 0.5)
    assert isinstance(near, Feedback) and near(IMAGES, ["", ""]).tolist() == [-0.25, -0.25]
    assert near.range == (-0.5, 0) and towards(_brightness(), 2.0).range == (-2, 0)
    leaf = IMAGES.clone().requires_grad_()
    near(leaf, ["", ""]).sum().backward()
    assert leaf.grad[0].min() > 0 > leaf.grad[1].max()  # lighter where it is too dark, darker where too light


def test_an_ensemble_is_careful_where_its_parts_differ():
    dark = as_feedback(lambda images, prompts: 1 - images.mean((1, 2, 3)), name="dark", range=(-1.0, 1.0))
    parts = {"light": _brightness(), "dark": dark}
    values = torch.tensor([[0.25, 0.75], [0.75, 0.25]])
    for cautious, expected in (
        ("none", values.mean(0)),
        ("least", values.amin(0)),
        ("variance", values.mean(0) - 2 * 0.0625),
    ):
        both = ensemble(parts, cautious=cautious, penalty=2.0)
        assert isinstance(both, Feedback) and both.differentiable
        torch.testing.assert_close(both(IMAGES, ["", ""]), expected)
        assert both.range == (None if cautious == "variance" else (-1, 1))
    torch.testing.assert_close(both.scores(IMAGES, ["", ""]), values)
    with pytest.raises(UserError, match="two or more feedbacks, got 1"):
        ensemble({"a": dark})
    with pytest.raises(UserError, match="penalty is 0"):
        ensemble(parts, penalty=0.0)
    with pytest.raises(UserError, match="cannot mix"):
        ensemble({"a": dark, "b": replace(dark, space="latent")})


def test_networks_of_an_ensemble_are_found():
    nets = [NetworkFeedback(torch.nn.Linear(1, 1), name=name) for name in "ab"]
    both = towards(ensemble({net.name: net for net in nets}), 1.0)
    assert networks_of({"both": both}) == [net.network for net in nets]


def test_errors():
    with pytest.raises(UserError, match="weights are given for"):
        weighted_sum({"a": _brightness()}, {"b": 1.0})
    with pytest.raises(UserError, match="not 0"):
        weighted_sum({"a": _brightness()}, {"a": 0.0})
    with pytest.raises(UserError, match="must be positive"):
        normalised(_brightness(), mean=0.0, std=0.0)
    with pytest.raises(UserError, match="low must be below high"):
        clipped(_brightness(), low=1.0, high=0.0)
