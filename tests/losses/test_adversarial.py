from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from unifl.losses.adversarial import (
    discriminator_bce,
    generator_bounded,
    generator_linear,
    generator_logsigmoid,
)

LOGITS = [-30.0, -1.0, 0.0, 2.0, 30.0]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_discriminator_equals_cross_entropy():
    real, fake = np.array([-3.0, 0.0, 4.0]), np.array([1.0, 0.0, -2.0])
    expected = -np.log(sigmoid(real)) - np.log(1 - sigmoid(fake))
    loss = discriminator_bce(torch.tensor(real), torch.tensor(fake))
    assert loss.tolist() == pytest.approx(expected.tolist())
    assert loss[1].item() == pytest.approx(2 * math.log(2))


def test_discriminator_pushes_real_up_and_fake_down():
    real, fake = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    up, down = torch.autograd.grad(discriminator_bce(real, fake).sum(), (real, fake))
    assert up.tolist() == [-0.5, -0.5] and down.tolist() == [0.5, 0.5]


def test_generator_losses():
    fake = torch.tensor(LOGITS, requires_grad=True)
    assert generator_linear(fake).tolist() == [30, 1, 0, -2, -30]
    assert generator_bounded(fake, 1.0).tolist() == [31, 2, 1, 0, 0]
    expected = [math.log1p(math.exp(-x)) if x > -20 else -x for x in LOGITS]
    assert generator_logsigmoid(fake).tolist() == pytest.approx(expected)
    for loss in (generator_linear, generator_logsigmoid, lambda f: generator_bounded(f, 1.0)):
        slope = torch.autograd.grad(loss(fake).sum(), fake)[0]
        assert (slope <= 0).all() and slope[:3].max() < -0.4


def test_the_bound_is_a_constant():
    fake, real = torch.tensor([0.0, 5.0], requires_grad=True), torch.tensor([1.0, 3.0], requires_grad=True)
    loss = generator_bounded(fake, real.mean())
    assert loss.tolist() == [2.0, 0.0]
    slopes = torch.autograd.grad(loss.sum(), (fake, real), allow_unused=True)
    assert slopes[0].tolist() == [-1, 0] and slopes[1] is None
