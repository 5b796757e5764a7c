"""Features of transformers: a block of Stable Diffusion 3."""

from __future__ import annotations

import pytest
import torch

from unifl.errors import UserError
from unifl.models import FullTraining, LoraTraining, make_generator
from unifl.models.features import EncoderFeatures
from unifl.testing import FLOW_FAMILIES, tiny_pipeline

T = torch.tensor([0.8, 0.3])
PROMPTS = ["a red circle", "a photo of a cat"]
LORA = LoraTraining(rank=4)


def latents(seed=0):
    return torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(seed))


def make(family="sd3", train=LORA, *, dtype=torch.float32, checkpointing=False, **changes):
    generator = make_generator(
        tiny_pipeline(family).to(dtype), train=train, roles=("reference", "ema"), **changes
    )
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for role in ("student", "ema"):
            for parameter in generator.roles.parameters(role).values():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=noise).to(parameter))
    if checkpointing:
        generator.enable_gradient_checkpointing()
    return generator


def told(generator):
    return generator.encode_prompts(PROMPTS, role="reference")


@pytest.mark.parametrize("family", FLOW_FAMILIES)
@pytest.mark.parametrize("train", [LORA, FullTraining()], ids=["lora", "full"])
def test_features_are_those_of_the_start_bit_for_bit(family, train):
    generator = make(family, train)
    network, seen, calls = generator.roles.module("transformer", "reference"), [], []
    hooks = [
        block.register_forward_hook(lambda _m, _a, out: seen.append(out[1]))
        for block in network.transformer_blocks
    ]
    with torch.no_grad():
        generator.denoise("reference", latents(), T, told(generator))
    for hook in hooks:
        hook.remove()
    network.proj_out.register_forward_hook(lambda *_: calls.append(1))
    for number in (0, 1):
        x = latents().requires_grad_(True)
        (found,) = EncoderFeatures(generator, layer=number)(x, T, told(generator))
        assert torch.equal(found, seen[number]) and found.shape == (2, 16, 16)
        found.square().mean().backward()
        assert float(x.grad.abs().max()) > 0
    assert not calls and all(p.grad is None for p in network.parameters())


def gradients(generator, **settings):
    cond = told(generator)
    own = generator.denoise("student", latents(), T, cond)
    EncoderFeatures(generator, layer=0, **settings)(own.x0, T / 2, cond)[0].square().mean().backward()
    return {name: parameter.grad for name, parameter in generator.roles.parameters("student").items()}


@pytest.mark.parametrize("settings", [{}, {"encoder": "random"}], ids=["start", "random"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
def test_the_gradient_with_checkpointing_is_that_without(dtype, settings):
    changes = {"dtype": dtype, "mixed_precision": "no" if dtype == torch.float64 else "bf16"}
    plain = gradients(make(**changes), **settings)
    again = gradients(make(checkpointing=True, **changes), **settings)
    scale = max(gradient.abs().max() for gradient in plain.values())
    assert scale > 0 and all((plain[name] - again[name]).abs().max() < 1e-6 * scale for name in plain)


def test_weights_in_half_precision_see_in_float32():
    generator = make(dtype=torch.bfloat16, mixed_precision="bf16")
    before = dict(generator.pipeline.transformer.named_parameters())
    wide = tiny_pipeline("sd3")
    wide.transformer.load_state_dict(
        {n: t.bfloat16().float() for n, t in wide.transformer.state_dict().items()}
    )
    cond = told(generator)
    for number in (0, 1):
        found = EncoderFeatures(generator, layer=number)(latents(), T, cond)[0]
        exact = make_generator(wide, roles=("reference",))
        assert torch.equal(found, EncoderFeatures(exact, layer=number)(latents(), T, cond)[0])
    assert all(
        dict(generator.pipeline.transformer.named_parameters())[name] is p for name, p in before.items()
    )


def test_layers_that_are_not_there_are_refused():
    generator = make()
    for layer in ("down_last", "mid"):
        with pytest.raises(
            UserError, match=f"layer is {layer}, which is of UNets.*its number, 0 to 1 .half-way is 1"
        ):
            EncoderFeatures(generator, layer=layer)
    with pytest.raises(UserError, match="layer is 2, and this transformer has the blocks 0 to 1"):
        EncoderFeatures(generator, layer=2)
