"""Flow models drawn beside the plain pipeline of diffusers, and their rollouts."""

from __future__ import annotations

import itertools

import pytest
import torch

from unifl.errors import UserError
from unifl.models import LoraTraining, make_generator
from unifl.process import ConsistencySampler
from unifl.randomness import Key
from unifl.sampling import image_rollout, prompt_rollout, sample
from unifl.testing import FLOW_FAMILIES, tiny_pipeline

PROMPTS = ["a red circle", "two cats"]
KEY = Key(0, 0, (0, 1))


@pytest.fixture(scope="module")
def generator():
    return make_generator(tiny_pipeline("sd3"), train=LoraTraining(rank=2))


@pytest.mark.parametrize("family", FLOW_FAMILIES)
@pytest.mark.parametrize(("num_steps", "guidance"), [(1, 1.0), (5, 1.0), (5, 3.0), (28, 3.0)])
def test_equals_the_plain_pipeline(family, num_steps, guidance):
    pipeline = tiny_pipeline(family)
    noise = KEY.normal("sample", (16, 8, 8))
    expected = pipeline(
        PROMPTS, latents=noise, num_inference_steps=num_steps, guidance_scale=guidance, output_type="pt"
    ).images
    found = sample(make_generator(tiny_pipeline(family)), PROMPTS, num_steps=num_steps, guidance=guidance)
    assert (found - expected).abs().max() < 1e-5
    assert found.std() > 0.02


def test_negative_prompts_are_those_of_the_pipeline(generator):
    noise = KEY.normal("sample", (16, 8, 8))
    settings = dict(num_inference_steps=3, guidance_scale=3.0, output_type="pt")
    expected = tiny_pipeline("sd3")(PROMPTS, negative_prompt=["blue"] * 2, latents=noise, **settings).images
    found = sample(generator, PROMPTS, num_steps=3, guidance=3.0, negative_prompt="blue")
    assert (found - expected).abs().max() < 1e-5
    assert (found - sample(generator, PROMPTS, num_steps=3, guidance=3.0)).abs().max() > 1e-3


@pytest.mark.parametrize("stop", [0, 2, 5])
def test_a_rollout_visits_the_times_of_sampling_and_ends_in_a_graph(generator, stop):
    cond = generator.encode_prompts(PROMPTS)
    graded = []
    hook = generator.pipeline.transformer.register_forward_hook(
        lambda _m, _a, out: graded.append(out[0].requires_grad)
    )
    rollout = prompt_rollout(generator, cond, KEY, num_steps=6, stop=stop)
    hook.remove()
    assert graded == [False] * (5 - stop) + [True]
    times = generator.schedule.times(6, "trailing")
    assert rollout.times == tuple(times[: 6 - stop].tolist())
    assert rollout.prediction.x0.requires_grad and not rollout.prediction.x_t.requires_grad
    rollout.prediction.x0.square().mean().backward()
    moved = [
        p for p in generator.trainable_parameters().values() if p.grad is not None and p.grad.abs().max() > 0
    ]
    assert moved  # B; A has no gradient while B is zero


def test_a_rollout_is_eulers_method(generator):
    cond = generator.encode_prompts(PROMPTS)
    rollout = prompt_rollout(generator, cond, KEY, num_steps=4, stop=0, purpose="x")
    times = generator.schedule.times(4, "trailing")
    x = KEY.normal("x/noise", generator.latent_shape)
    with torch.no_grad():
        for t, s in itertools.pairwise(times):
            x = x + (s - t) * generator.denoise("student", x, t.expand(2), cond).raw
    torch.testing.assert_close(rollout.prediction.x0.detach(), x, rtol=1e-4, atol=1e-5)


def test_a_rollout_from_a_picture_starts_on_the_straight_path(generator):
    cond = generator.encode_prompts(PROMPTS)
    latents = torch.randn(2, *generator.latent_shape, generator=torch.Generator().manual_seed(0))
    state = image_rollout(
        generator, latents, cond, KEY, num_steps=20, start=10, stop=9, purpose="p"
    ).prediction
    t = generator.schedule.times(20, "trailing")[10]
    assert 0.5 < float(t) < 1  # shifted towards noise
    torch.testing.assert_close(
        state.x_t, (1 - t) * latents + t * KEY.normal("p/noise", generator.latent_shape)
    )


def test_what_flow_models_are_not_sampled_with(generator):
    with pytest.raises(UserError, match="a consistency sampler counts in the timesteps of a diffusion model"):
        sample(generator, PROMPTS, num_steps=2, consistency=ConsistencySampler())
    with pytest.raises(UserError, match="spacing is 'leading'.*set spacing to trailing"):
        sample(generator, PROMPTS, num_steps=2, spacing="leading")
    with pytest.raises(UserError, match="spacing is 'leading'"):
        prompt_rollout(
            generator, generator.encode_prompts(PROMPTS), KEY, num_steps=2, stop=0, spacing="leading"
        )
