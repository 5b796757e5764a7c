from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unifl.config import load
from unifl.data import Batch
from unifl.errors import UserError
from unifl.feedback import Critic, DenoiserConfig, require_critic_gradient
from unifl.feedback.denoiser_perception import DenoiserCritic
from unifl.models import FullTraining, LoraTraining, make_generator
from unifl.testing import FAMILIES, tiny_pipeline

PROMPTS = ["a red circle", "a cat", "a photo of a dog"]


def pictures(n=3, seed=0):
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


LORA = LoraTraining(rank=2)


def make(family="sd15", train=LORA, dtype=torch.float32, **settings):
    generator = make_generator(tiny_pipeline(family).to(dtype), train=train)
    return DenoiserCritic(generator, DenoiserConfig(**settings))


@pytest.fixture
def batch():
    return Batch(images=pictures(), prompts=PROMPTS)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_difference_of_features_at_one_noise(family, batch):
    critic, drawn = make(family, layer="all_down"), pictures(seed=1)
    assert isinstance(critic, Critic) and critic.needs == {"image"} and critic.pseudo(batch) is batch
    generator = critic.generator
    z, real = generator.encode(drawn), generator.encode(batch.images)
    t, eps = critic._draws(PROMPTS, real)
    cond = generator.encode_prompts(PROMPTS, role="reference")
    maps = [critic.features(generator.process.add_noise(x, eps, t), t, cond) for x in (z, real)]
    a, b = (torch.cat([found.flatten(1) for found in each], 1) for each in maps)
    torch.testing.assert_close(critic(drawn, batch), (a - b).square().mean(1))
    assert torch.equal(critic(batch.images, batch), torch.zeros(3))
    worse = critic(batch.images + 0.5 * (drawn - batch.images), batch), critic(drawn, batch)
    assert bool((0 < worse[0]).all() and (worse[0] < worse[1]).all())


def test_the_gradient_is_that_of_finite_differences(batch):
    critic, way = make(dtype=torch.float64), pictures(seed=2).double()
    network = critic.generator._autoencoder.vae
    drawn = pictures(seed=1).double().requires_grad_(True)
    exact = replace(batch, images=batch.images.double())
    real_encode = critic.generator.encode
    assert not real_encode(drawn).requires_grad and real_encode(drawn, grad=True).requires_grad
    critic(drawn, exact).sum().backward()
    with torch.no_grad():
        assert not real_encode(drawn, grad=True).requires_grad
        ahead, behind = (critic(drawn + h * way, exact).sum() for h in (1e-2, -1e-2))
    slope = (drawn.grad * way).sum()
    torch.testing.assert_close(slope, ((ahead - behind) / 2e-2).double(), rtol=2e-2, atol=0)
    assert all(p.grad is None for m in (network, critic.generator.pipeline.unet) for p in m.parameters())


@pytest.mark.parametrize("layer", ["mid", "down_last", "all_down"])
def test_checkpointing_changes_nothing(layer, batch):
    drawn, found = pictures(seed=1), []
    for checkpointing in (False, True):
        leaf = drawn.clone().requires_grad_(True)
        critic = make(layer=layer, checkpointing=checkpointing)
        loss = critic(leaf, batch)
        loss.sum().backward()
        found.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-7)
    assert float(found[0][1].abs().max()) > 0


def test_draws_follow_from_caption_and_seed_alone(batch):
    critic, drawn = make(), pictures(seed=1)
    whole = critic(drawn, batch)
    for row in range(3):
        rows = slice(row, row + 1)
        alone = critic(drawn[rows], Batch(images=batch.images[rows], prompts=PROMPTS[rows]))
        torch.testing.assert_close(alone, whole[rows], rtol=1e-4, atol=1e-7)
    latents = critic.generator.encode(batch.images)
    t, eps = critic._draws(PROMPTS, latents)
    assert len(set(t.tolist())) == 3 and bool(((t >= 0.1) & (t <= 0.7)).all())
    assert (eps[0] - eps[1]).abs().max() > 1
    again = make(seed=1)._draws(PROMPTS, latents)
    assert not torch.equal(again[0], t) and not torch.equal(again[1], eps)
    fixed, _ = make(times=(0.25, 0.25))._draws(PROMPTS, latents)
    assert fixed.tolist() == [0.25] * 3
    many, _ = critic._draws([f"a cat {n}" for n in range(500)], latents[:1].expand(500, -1, -1, -1))
    assert many.min() < 0.12 and many.max() > 0.68 and abs(float(many.mean()) - 0.4) < 0.03


@pytest.mark.parametrize("train", [LORA, FullTraining()], ids=["lora", "full"])
def test_the_eye_stays_as_it_was(train, batch):
    critic, drawn = make(train=train), pictures(seed=1)
    assert critic.generator.roles.num_copies == isinstance(train, FullTraining)
    before = critic(drawn, batch)
    with torch.no_grad():
        for parameter in critic.generator.trainable_parameters().values():
            parameter.add_(0.1)
    assert torch.equal(critic(drawn, batch), before)


def test_sizes_of_buckets_count(batch):
    critic, drawn = make("sdxl"), pictures(seed=1)
    cropped = replace(batch, time_ids=torch.tensor([[64.0, 48, 8, 0, 32, 32]] * 3))
    assert not torch.equal(critic(drawn, cropped), critic(drawn, batch))


def test_mistakes_are_named(batch):
    with pytest.raises(UserError, match=r"times is \[0.5, 0.2\]; it must be a rising range above 0"):
        load({"times": [0.5, 0.2]}, DenoiserConfig)
    with pytest.raises(UserError, match="layer is 2: blocks go by number in transformers"):
        make(layer=2)
    with pytest.raises(UserError, match=r"compares pictures of \(16, 16\) px with real ones of \(32, 32\)"):
        make()(pictures()[..., ::2, ::2], batch)
    require_critic_gradient(make(), batch)
