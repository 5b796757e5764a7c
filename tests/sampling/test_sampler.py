from __future__ import annotations

import pytest
import torch

from unifl.errors import UserError
from unifl.models import UserTraining, make_generator, sampling_scheduler
from unifl.randomness import Key
from unifl.sampling import sample
from unifl.testing import tiny_pipeline

PROMPTS = ["a red circle", "two cats", "a dog"]


@pytest.fixture(scope="module")
def generator():
    return make_generator(tiny_pipeline("sd15"))


def test_noise_belongs_to_seed_and_index(generator):
    progress = []
    together = sample(generator, PROMPTS, seed=1, num_steps=2, progress=lambda *done: progress.append(done))
    apart = sample(
        generator, PROMPTS, seed=1, num_steps=2, batch_size=2, progress=lambda *d: progress.append(d)
    )
    assert progress == [(3, 3), (2, 3), (3, 3)]
    assert together.shape == (3, 3, 32, 32) and 0 <= float(together.min()) and float(together.max()) <= 1
    assert torch.allclose(together, apart, atol=1e-5)
    last = sample(generator, PROMPTS[2:], seed=1, indices=[2], num_steps=2)
    assert torch.allclose(together[2:], last, atol=1e-5)
    assert not torch.allclose(
        last, sample(generator, PROMPTS[2:], seed=2, indices=[2], num_steps=2), atol=1e-3
    )


@pytest.mark.parametrize(
    ("num_steps", "spacing", "equal"),
    # 6 does not divide T: diffusers' DDIM then misses the next timestep of its own trailing grid
    [(5, "leading", True), (5, "trailing", True), (6, "leading", True), (6, "trailing", False)],
)
def test_equals_the_ddim_pipeline_of_diffusers(num_steps, spacing, equal):
    pipeline = tiny_pipeline("sd21")
    noise = Key(0, 0, (0, 1)).normal("sample", (4, 8, 8))
    generator = make_generator(pipeline)
    pipeline.scheduler = sampling_scheduler(generator, spacing)
    expected = pipeline(
        PROMPTS[:2], latents=noise, num_inference_steps=num_steps, guidance_scale=3.0, output_type="pt"
    ).images
    found = sample(generator, PROMPTS[:2], num_steps=num_steps, guidance=3.0, spacing=spacing)
    assert ((found - expected).abs().max() < 2e-5) == equal


def test_each_picture_is_for_its_user():
    generator = make_generator(
        tiny_pipeline("sd15"), train=UserTraining(embedding_dim=6), roles=("reference",)
    )
    with torch.no_grad():
        for parameter in generator.trainable_parameters().values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    users = torch.randn(3, 1, 6, generator=torch.Generator().manual_seed(0))
    users[2] = 0
    together = sample(generator, PROMPTS, num_steps=2, users=users)
    apart = sample(generator, PROMPTS[1:], num_steps=2, indices=[1, 2], users=users[1:])
    assert torch.allclose(together[1:], apart, atol=1e-5)
    nobody = sample(generator, PROMPTS, num_steps=2)
    differences = (together - nobody).abs().amax((1, 2, 3))
    assert (differences[:2] > 1e-2).all() and differences[2] < 1e-5
    start = sample(make_generator(tiny_pipeline("sd15")), PROMPTS, num_steps=2)
    told = sample(generator, PROMPTS, num_steps=2, users=users, role="reference")
    assert torch.allclose(told, start, atol=1e-6)


def test_errors(generator):
    with pytest.raises(UserError, match="no prompt"):
        sample(generator, [])
    with pytest.raises(UserError, match="2 indices for 1 prompts"):
        sample(generator, ["a"], indices=[0, 1])
    with pytest.raises(UserError, match="guidance is"):
        sample(generator, ["a"], guidance=-1.0)
    with pytest.raises(UserError, match="num_steps is 0"):
        sample(generator, ["a"], num_steps=0)
    with pytest.raises(UserError, match="2 users for 1 prompts"):
        sample(generator, ["a"], users=torch.zeros(2, 1, 6))
    with pytest.raises(UserError, match="no adapter for them"):
        sample(generator, ["a"], users=torch.zeros(1, 1, 6), num_steps=1)
    with pytest.raises(UserError, match="batch_size"):
        sample(generator, ["a"], batch_size=0)
