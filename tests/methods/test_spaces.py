from __future__ import annotations

import pytest
import torch

from unifl.methods.counting import Evaluations
from unifl.methods.spaces import LatentSpaceConfig, make_space
from unifl.models import LoraTraining, make_generator
from unifl.randomness import Key
from unifl.testing import FAMILIES, tiny_pipeline

T = torch.tensor([0.8, 0.3])


@pytest.fixture(params=FAMILIES)
def case(request):
    generator = make_generator(tiny_pipeline(request.param), train=LoraTraining(rank=2))
    draws = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(2, 4, 8, 8, generator=draws) for _ in range(2))
    x_t = generator.process.add_noise(x0, eps, T)
    cond = generator.encode_prompts(["a red circle", "a cat"])
    said = generator.denoise("student", x_t, T, cond)
    return make_space(LatentSpaceConfig(), generator), (x0, eps, x_t, T, cond, Key(0, 0, (0, 1))), said


def target(case):
    space, (x0, eps, *_), _ = case
    alpha, sigma = (w[:, None, None, None] for w in space.generator.process.weights(T))
    return eps if space.generator.kind == "epsilon" else alpha * eps - sigma * x0


def test_the_latent_distance_is_the_denoising_error(case):
    space, args, said = case
    found = space.distance(said, space.truth(*args))
    torch.testing.assert_close(found, (said.raw - target(case)).square().mean((1, 2, 3)))
    assert found.requires_grad


def test_a_mask_keeps_the_mean_inside_it(case):
    space, args, said = case
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, :3, 2:] = 1.0
    error = (said.raw - target(case)).square()
    found = space.distance(said, space.truth(*args, mask=mask))
    torch.testing.assert_close(found, error[:, :, :3, 2:].mean((1, 2, 3)))
    ones = space.distance(said, space.truth(*args, mask=torch.ones_like(mask)))
    torch.testing.assert_close(ones, error.mean((1, 2, 3)))


def test_it_asks_no_network(case):
    space = case[0]
    count = Evaluations(2, trains_text=False)
    space.count(count, 2, reference=True)
    assert count.per_step == {} and space.roles == () and space.earliest == 0
