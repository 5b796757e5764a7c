from __future__ import annotations

import pytest
import torch

from unifl.models import FullTraining, LoraTraining, make_generator
from unifl.testing import tiny_pipeline

T = torch.tensor([0.7, 0.4])
PROMPTS = ["a red circle", "a cat"]


def two_adapters(family, *, checkpointing, train=None):
    """Student and ema are adapters of equal rank with different values."""
    train = train or LoraTraining(rank=4, text_encoder=True)
    generator = make_generator(
        tiny_pipeline(family).to(torch.float64), train=train, roles=("reference", "ema")
    )
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for role in ("student", "ema"):
            for parameter in generator.roles.parameters(role).values():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype))
    if checkpointing:
        generator.enable_gradient_checkpointing()
    return generator


def gradients(generator, second_role):
    """The gradient of every student parameter, when a second weight set sees what the student answers."""
    x_t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    cond = generator.encode_prompts(PROMPTS, grad=True)
    own = generator.denoise("student", x_t, T, cond)
    other = generator.encode_prompts(PROMPTS, role=second_role)
    seen = generator.denoise(second_role, own.x0, T / 2, other)
    seen.raw.square().mean().backward()
    return {name: parameter.grad for name, parameter in generator.roles.parameters("student").items()}


def largest_difference(a, b):
    scale = max(gradient.abs().max() for gradient in a.values())
    assert scale > 0
    return max((a[name] - b[name]).abs().max() for name in a) / scale


@pytest.mark.parametrize("second_role", ["ema", "reference"])
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_gradient_through_a_second_role_is_that_without_checkpointing(family, second_role):
    plain = gradients(two_adapters(family, checkpointing=False), second_role)
    again = gradients(two_adapters(family, checkpointing=True), second_role)
    assert largest_difference(plain, again) < 1e-6


def test_full_training_gives_the_same_gradient_too():
    train = FullTraining(text_encoder=True)
    plain = gradients(two_adapters("sd15", checkpointing=False, train=train), "ema")
    again = gradients(two_adapters("sd15", checkpointing=True, train=train), "ema")
    assert largest_difference(plain, again) < 1e-6


def test_checkpointing_that_ignores_roles_would_be_noticed():
    plain = gradients(two_adapters("sd15", checkpointing=False), "ema")
    wrong = two_adapters("sd15", checkpointing=False)
    wrong.pipeline.unet.enable_gradient_checkpointing()  # diffusers' own: recomputes as the student
    for parameter in wrong.roles.parameters("ema").values():
        parameter.requires_grad_(True)  # else torch notices that fewer tensors are stored
    assert largest_difference(plain, gradients(wrong, "ema")) > 1e-2


@pytest.mark.parametrize("network", ["unet", "text_encoder"])
def test_blocks_are_run_again_during_backward(network):
    generator = two_adapters("sd15", checkpointing=True)
    module = getattr(generator.pipeline, network)
    inner = next(
        m for name, m in module.named_modules() if name.endswith(("to_q.base_layer", "q_proj.base_layer"))
    )
    calls = []
    inner.register_forward_hook(lambda *_: calls.append(generator.roles.current))
    cond = generator.encode_prompts(PROMPTS, grad=True)
    loss = generator.denoise("student", torch.zeros(2, 4, 8, 8), T, cond).raw.square().mean()
    assert calls == ["student"]
    loss.backward()
    assert calls == ["student", "student"]


def test_nothing_is_stored_or_repeated_without_gradient():
    generator = two_adapters("sd15", checkpointing=True)
    calls = []
    generator.pipeline.unet.mid_block.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        cond = generator.encode_prompts(PROMPTS)
        generator.denoise("reference", torch.zeros(2, 4, 8, 8), T, cond)
    assert len(calls) == 1
