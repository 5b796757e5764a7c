"""Divergence of samplers, against Gaussians worked out one by one."""

from __future__ import annotations

import pytest
import torch

from unifl.evaluation.path_kl import path_kl, step_kl
from unifl.models import LoraTraining, make_generator
from unifl.process import DiscreteVP, Flow
from unifl.process.reverse import _weights
from unifl.testing import tiny_pipeline

ABAR = torch.linspace(0.999, 0.01, 50, dtype=torch.float64)


def test_one_step_is_the_divergence_of_its_two_gaussians():
    process = DiscreteVP(ABAR)
    t, s = torch.full((3,), 0.8, dtype=torch.float64), torch.full((3,), 0.5, dtype=torch.float64)
    now, start = (torch.randn(3, 2, 4, 4, dtype=torch.float64) for _ in range(2))
    _, gained, deviation = _weights(t, s, process)
    means = [torch.distributions.Normal(gained[0] * x0, deviation[0]) for x0 in (now, start)]
    wanted = torch.distributions.kl_divergence(*means).flatten(1).sum(1)
    torch.testing.assert_close(step_kl(now, start, t, s, process), wanted)


def test_of_a_flow_it_is_that_of_its_posterior():
    """q(x_s | x_t, x0) of alpha = 1 - t, sigma = t, by Bayes' rule."""
    t, s = 0.8, 0.5
    ratio = (1 - t) / (1 - s)
    added = t**2 - ratio**2 * s**2
    gained = added / t**2 * (1 - s)
    variance = added * s**2 / t**2
    now, start = torch.randn(2, 6), torch.randn(2, 6)
    wanted = (gained**2 / (2 * variance)) * (now - start).double().square().sum(1)
    found = step_kl(now, start, torch.full((2,), t), torch.full((2,), s), Flow())
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)


@pytest.fixture(scope="module")
def generators():
    """Two of equal weights, of which the first has a LoRA."""
    model = make_generator(tiny_pipeline("sd15"), train=LoraTraining(rank=2))
    return model, make_generator(tiny_pipeline("sd15"), train=None)


def _kl(model, start, **changes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        images = torch.rand(3, 3, *start.image_size)
    options = {"seed": 1, "num_steps": 4, "guidance": 2.0, "batch_size": 2} | changes
    return path_kl(model, start, images, ["a cat", "a dog", "a cow"], **options)


def test_it_is_zero_for_the_start_and_grows_with_the_distance_squared(generators):
    model, start = generators
    assert torch.all(_kl(model, start) < 1e-6)
    found = []
    weights = [p for name, p in model.trainable_parameters().items() if "lora_B" in name]
    assert weights
    with torch.no_grad():
        for scale in (1e-3, 2e-3):
            for number, weight in enumerate(weights):
                torch.manual_seed(number)
                weight.copy_(scale * torch.randn_like(weight))
            found.append(_kl(model, start))
    assert torch.all(found[0] > 0)
    torch.testing.assert_close(
        found[1] / found[0], torch.full((3,), 4.0, dtype=torch.float64), rtol=0.1, atol=0
    )
    torch.testing.assert_close(_kl(model, start, batch_size=3), found[1], rtol=1e-3, atol=0)
    assert not torch.allclose(_kl(model, start, guidance=1.0), found[1], rtol=0.1)
