from __future__ import annotations

import pytest
import torch

from unifl.assembly.resolve import networks_of
from unifl.errors import UserError
from unifl.feedback import (
    Feedback,
    NetworkFeedback,
    as_feedback,
    at_step,
    one_at_random,
    require_gradient,
)
from unifl.randomness import Key

IMAGES = torch.stack([torch.full((3, 4, 4), 0.25), torch.full((3, 4, 4), 0.75)])
LIGHT = as_feedback(lambda images, prompts: images.mean((1, 2, 3)), name="light", range=(0.0, 1.0))
DARK = as_feedback(lambda images, prompts: 2 - 2 * images.mean((1, 2, 3)), name="dark", range=(0.0, 2.0))


def key(step, *, seed=0, indices=(0, 1)):
    return Key(seed, step, indices)


def test_each_step_has_one_part_at_the_probability_of_its_weight():
    found = one_at_random({"light": LIGHT, "dark": DARK}, {"light": 1.0, "dark": 3.0})
    names = [at_step(found, key(step)).name for step in range(400)]
    assert 0.68 < names.count("dark") / 400 < 0.82 and set(names) == {"light", "dark"}
    # all processes and micro-batches of a step agree, and another seed draws otherwise
    assert names == [found.at(key(step, indices=(17,))).name for step in range(400)]
    assert names != [found.at(key(step, seed=1)).name for step in range(400)]
    other = one_at_random({"light": LIGHT, "dark": DARK}, {"light": 1.0, "dark": 3.0}, name="other")
    assert names != [other.at(key(step)).name for step in range(400)]


def test_without_a_step_it_is_the_mean_that_draws_have():
    found = one_at_random({"light": LIGHT, "dark": DARK}, {"light": 1.0, "dark": 3.0})
    assert isinstance(found, Feedback) and found.range == (0, 2) and found.differentiable
    expected = 0.25 * LIGHT(IMAGES, ["", ""]) + 0.75 * DARK(IMAGES, ["", ""])
    torch.testing.assert_close(found(IMAGES, ["", ""]), expected)
    draws = torch.stack([found.at(key(step))(IMAGES, ["", ""]) for step in range(4000)]).mean(0)
    torch.testing.assert_close(draws, expected, rtol=0.05, atol=0)
    require_gradient(found, method="ReFL", example=IMAGES[:1])
    assert at_step(LIGHT, key(0)) is LIGHT


def test_parts_of_weight_0_are_never_asked_and_networks_are_found():
    network = torch.nn.Linear(1, 1)
    parts = {"light": LIGHT, "net": NetworkFeedback(network, name="net")}
    assert networks_of({"one": one_at_random(parts, {"light": 1.0, "net": 1.0})}) == [network]
    alone = one_at_random(parts, {"light": 1.0, "net": 0.0})
    assert networks_of({"one": alone}) == [] and {alone.at(key(step)).name for step in range(50)} == {"light"}


def test_what_cannot_be_drawn_from():
    with pytest.raises(UserError, match=r"weights are given for \['b'\] but the feedbacks are \['a'\]"):
        one_at_random({"a": LIGHT}, {"b": 1.0})
    for weights in ({"a": 0.0}, {"a": -1.0}):
        with pytest.raises(UserError, match="give some above 0 and none below"):
            one_at_random({"a": LIGHT}, weights)
