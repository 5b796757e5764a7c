from __future__ import annotations

import pytest
import torch

from unifl.assembly.recipe import SamplingConfig
from unifl.errors import UserError
from unifl.models.load import make_generator
from unifl.models.lora import LoraTraining
from unifl.process import time_grid
from unifl.randomness import Key
from unifl.sampling import FixedGuidance, RangeGuidance, RolloutConfig, image_rollout, prompt_rollout, sample
from unifl.testing import tiny_pipeline

KEY = Key(0, 0, (0, 1))
PROMPTS = ["a red circle", "two cats"]


@pytest.fixture(scope="module", params=["sd15", "sd21", "sdxl"])
def generator(request):
    return make_generator(tiny_pipeline(request.param), train=LoraTraining(rank=2))


@pytest.fixture(scope="module")
def small():
    return make_generator(tiny_pipeline("sd15"), train=LoraTraining(rank=2))


class Calls:
    """What passes through a network: (samples, gradients recorded) per call."""

    def __init__(self, module):
        self.rows = []
        self.handle = module.register_forward_hook(self._record)

    def _record(self, module, inputs, output):
        out = output[0] if isinstance(output, tuple) else output
        self.rows.append((len(inputs[0]), out.requires_grad))

    def __enter__(self):
        return self.rows

    def __exit__(self, *_):
        self.handle.remove()


@pytest.mark.parametrize("stop", [0, 2, 5])
def test_one_evaluation_has_a_graph(generator, stop):
    cond = generator.encode_prompts(PROMPTS)
    with Calls(generator.pipeline.unet) as calls:
        rollout = prompt_rollout(generator, cond, KEY, num_steps=6, stop=stop)
    assert calls == [(2, False)] * (5 - stop) + [(2, True)]
    grid = time_grid(6, "trailing", 1000)
    assert rollout.times == tuple(grid[: 6 - stop].tolist())
    assert torch.allclose(rollout.prediction.t, grid[5 - stop].expand(2))
    assert not rollout.prediction.x_t.requires_grad


def test_image_rollout_starts_half_way(generator):
    cond = generator.encode_prompts(PROMPTS)
    latents = torch.randn(2, *generator.latent_shape, generator=torch.Generator().manual_seed(0))
    with Calls(generator.pipeline.unet) as calls:
        rollout = image_rollout(generator, latents, cond, KEY, num_steps=20, start=10, stop=5)
    assert calls == [(2, False)] * 4 + [(2, True)]
    grid = time_grid(20, "trailing", 1000)
    assert rollout.times == tuple(grid[10:15].tolist())


def test_first_state_of_an_image_rollout_is_the_diffused_picture(generator):
    cond = generator.encode_prompts(PROMPTS)
    latents = torch.randn(2, *generator.latent_shape, generator=torch.Generator().manual_seed(0))
    state = image_rollout(generator, latents, cond, KEY, start=10, stop=9, purpose="p").prediction
    noise = KEY.normal("p/noise", generator.latent_shape)
    t = time_grid(20, "trailing", 1000)[10].expand(2)
    assert torch.allclose(state.x_t, generator.process.add_noise(latents, noise, t))
    assert 0.2 < float(generator.process.alpha(t)[0]) < 0.8


def test_a_rollout_to_the_end_is_the_sampler(small):
    cond, negative = small.encode_prompts(PROMPTS), small.encode_negative(None, 2)
    settings = dict(num_steps=4, guidance=3.0, spacing="trailing")
    rollout = prompt_rollout(
        small, cond, KEY, stop=0, grad_guidance=None, negative=negative, purpose="x", **settings
    )
    pictures = small.decode(rollout.prediction.x0)
    x_t = KEY.normal("x/noise", small.latent_shape)
    small_key_normal = Key.normal
    try:  # the sampler with the rollout's noise
        Key.normal = lambda self, *a, **k: x_t  # type: ignore[method-assign]
        drawn = sample(small, PROMPTS, **settings)
    finally:
        Key.normal = small_key_normal  # type: ignore[method-assign]
    assert rollout.guidance == 3.0 and torch.allclose(pictures, drawn, atol=1e-5)


def test_guidance_evaluates_both_halves_where_it_is_asked_for(small):
    cond, negative = small.encode_prompts(PROMPTS), small.encode_negative("blue", 2)
    with Calls(small.pipeline.unet) as calls:
        prompt_rollout(small, cond, KEY, num_steps=3, stop=0, guidance=2.0, negative=negative)
        prompt_rollout(
            small, cond, KEY, num_steps=2, stop=0, guidance=2.0, grad_guidance=None, negative=negative
        )
    assert calls == [(4, False), (4, False), (2, True), (4, False), (4, True)]


def test_rollouts_do_not_depend_on_the_batch(small):
    cond = small.encode_prompts(PROMPTS)
    both = prompt_rollout(small, cond, KEY, num_steps=4, stop=1).prediction.x0
    second = prompt_rollout(
        small, small.encode_prompts(PROMPTS[1:]), Key(0, 0, (1,)), num_steps=4, stop=1
    ).prediction.x0
    assert torch.allclose(both[1:], second, atol=1e-5)
    other = prompt_rollout(small, cond, KEY, num_steps=4, stop=1, purpose="other").prediction.x0
    assert not torch.allclose(both, other, atol=1e-2)


def test_training_visits_the_timesteps_of_sampling_unless_told_otherwise(small):
    cond = small.encode_prompts(PROMPTS)
    latents = torch.zeros(2, *small.latent_shape)
    visited = []
    hook = small.pipeline.unet.register_forward_pre_hook(
        lambda _, inputs: visited.append(float(inputs[1][0]))
    )
    sample(small, PROMPTS, num_steps=4)
    sampled, visited[:] = list(visited), []
    hook.remove()
    assert sampled == [999, 749, 499, 249]
    trained = [*prompt_rollout(small, cond, KEY, num_steps=4, stop=0).times]
    assert trained == [*image_rollout(small, latents, cond, KEY, num_steps=4, start=4, stop=0).times]
    assert [round(1000 * t - 1) for t in trained] == sampled
    for spacing in ("leading", "trailing"):
        rollout = prompt_rollout(small, cond, KEY, num_steps=6, stop=3, spacing=spacing)
        assert rollout.times == tuple(time_grid(6, spacing, 1000, small.steps_offset)[:3].tolist())
    assert RolloutConfig().spacing == SamplingConfig().spacing == "trailing"


def test_config_counts_and_draws():
    config = RolloutConfig(num_steps=20, stop=(0, 5))
    assert config.evaluations() == (16.5, 1.0) and config.evaluations(start=10) == (6.5, 1.0)
    guided = RolloutConfig(num_steps=4, stop=None, guidance=FixedGuidance(scale=3.0), grad_guidance=None)
    assert guided.evaluations() == (3.0, 2.0) and guided.needs_negative
    assert RolloutConfig(guidance=RangeGuidance()).evaluations() == (33.0, 1.0)
    drawn = {RolloutConfig(num_steps=4, stop=None).draw_stop(Key(0, step, (0,)), "x") for step in range(60)}
    assert drawn == {0, 1, 2, 3}
    assert {config.draw_stop(Key(0, step, (0,)), "x") for step in range(200)} == {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize(
    ("settings", "start", "message"),
    [
        ({"num_steps": 0, "stop": None}, None, "num_steps is 0"),
        ({"stop": (0, 20)}, None, r"stop is \[0, 20\]; choose 0 <= low <= high <= 19"),
        ({"stop": (3, 2)}, None, r"stop is \[3, 2\]"),
        ({"stop": (0, 10)}, 10, "starts with 10 of 20 steps left"),
        ({}, 21, "start is 21; choose 1 to 20"),
        ({"grad_guidance": -1.0}, None, "grad_guidance"),
    ],
)
def test_schedules_that_make_no_sense(settings, start, message):
    with pytest.raises(UserError, match=message):
        RolloutConfig(**settings).check("aesthetic", start=start)


def test_rollouts_refuse_what_the_schedule_does_not_have(small):
    cond, latents = small.encode_prompts(PROMPTS), torch.zeros(2, *small.latent_shape)
    with pytest.raises(UserError, match="stop is 4"):
        prompt_rollout(small, cond, KEY, num_steps=4, stop=4)
    with pytest.raises(UserError, match="start is 30"):
        image_rollout(small, latents, cond, KEY, start=30, stop=0)
