from __future__ import annotations

import pytest
import torch

from unifl.errors import UserError
from unifl.models import FullTraining, LoraTraining, make_generator, save_lora
from unifl.models.features import EncoderFeatures
from unifl.testing import FAMILIES, tiny_pipeline

T = torch.tensor([0.8, 0.3])
PROMPTS = ["a red circle", "a photo of a cat"]
LORA = LoraTraining(rank=4)
LAYERS = ("down_last", "mid", "all_down")


def latents(seed=0):
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def make(family="sd15", train=LORA, *, dtype=torch.float32, checkpointing=False, **changes):
    """Two adapters (or copies) beside the reference, with values of their own."""
    pipeline = tiny_pipeline(family).to(dtype)
    generator = make_generator(pipeline, train=train, roles=("reference", "ema"), **changes)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for role in ("student", "ema") if train else ():
            for parameter in generator.roles.parameters(role).values():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=noise).to(parameter))
    if checkpointing:
        generator.enable_gradient_checkpointing()
    return generator


def told(generator):
    return generator.encode_prompts(PROMPTS, role="reference")


def as_the_network_goes(generator, layer):
    """What passes by in a whole evaluation of the reference."""
    unet, found = generator.roles.module("unet", "reference"), []
    parts = [unet.conv_in, *unet.down_blocks] if layer == "all_down" else [unet.down_blocks[-1]]
    parts = [unet.mid_block] if layer == "mid" else parts

    def keep(_module, _inputs, output):
        passed = (output,) if isinstance(output, torch.Tensor) else output[1]
        found.extend(passed if layer == "all_down" else passed[-1:])

    hooks = [part.register_forward_hook(keep) for part in parts]
    with torch.no_grad():
        generator.denoise("reference", latents(), T, told(generator))
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("train", [None, LORA, FullTraining()], ids=["none", "lora", "full"])
def test_features_are_those_of_the_start_bit_for_bit(family, layer, train):
    generator = make(family, train)
    expected = as_the_network_goes(generator, layer)
    with torch.no_grad():
        found = EncoderFeatures(generator, layer=layer)(latents(), T, told(generator))
    assert len(found) == len(expected) == (4 if layer == "all_down" else 1)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    if train is not None:
        moved = EncoderFeatures(make(family, None), layer=layer)(latents(), T, told(generator))
        torch.testing.assert_close(found, moved, rtol=0, atol=2e-6)  # nothing of the student is in them


def test_a_lora_that_training_starts_from_is_part_of_the_eye(tmp_path):
    first = make()
    save_lora(first, tmp_path / "lora")
    generator = make(lora=tmp_path / "lora")
    with torch.no_grad():
        found = EncoderFeatures(generator)(latents(), T, told(generator))[0]
        assert torch.equal(found, as_the_network_goes(generator, "down_last")[0])
        assert (found - EncoderFeatures(first)(latents(), T, told(first))[0]).abs().max() > 1e-3


@pytest.mark.parametrize("layer", LAYERS)
def test_the_up_path_is_never_called(layer):
    generator, calls = make("sdxl"), []
    unet = generator.pipeline.unet
    for name, module in unet.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    x = latents().requires_grad_(True)
    EncoderFeatures(generator, layer=layer)(x, T, told(generator))[-1].sum().backward()
    assert not [
        name for name in calls if name.split(".")[0] in ("up_blocks", "conv_out", "conv_norm_out", "")
    ]
    assert calls.count("mid_block") == (layer == "mid")
    assert [
        calls.count(name) for name in ("conv_in", "down_blocks.0", "down_blocks.1", "time_embedding")
    ] == [1] * 4


@pytest.mark.parametrize("train", [LORA, FullTraining()], ids=["lora", "full"])
def test_the_gradient_goes_to_the_latents_alone(train):
    generator = make(train=train)
    x, cond = latents().requires_grad_(True), told(generator)
    cond.embeds.requires_grad_(True)
    for layer in LAYERS:
        maps = EncoderFeatures(generator, layer=layer)(x, T, cond)
        sum(found.square().mean() for found in maps).backward()
    assert float(x.grad.abs().max()) > 0 and cond.embeds.grad is None
    for role in ("student", "reference"):
        assert all(p.grad is None for p in generator.roles.module("unet", role).parameters())
    assert generator.roles.current == "student"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_that_of_finite_differences(family):
    generator = make(family, dtype=torch.float64)
    features, cond = EncoderFeatures(generator, layer="all_down"), told(generator)
    x, way = latents().double(), latents(seed=1).double()
    weights = [torch.randn_like(found) for found in features(x, T, cond)]

    def value(at):
        return sum((w * found).sum() for w, found in zip(weights, features(at, T, cond), strict=True))

    leaf = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(value(leaf), leaf)
    with torch.no_grad():
        slope = (value(x + 1e-5 * way) - value(x - 1e-5 * way)) / 2e-5
    torch.testing.assert_close((gradient * way).sum(), slope, rtol=1e-6, atol=0)


def gradients(generator, **settings):
    """Of every student parameter, when the frozen encoder sees what the student answers."""
    cond = told(generator)
    own = generator.denoise("student", latents(), T, cond)
    maps = EncoderFeatures(generator, layer="all_down", **settings)(own.x0, T / 2, cond)
    sum(found.square().mean() for found in maps).backward()
    return {name: parameter.grad for name, parameter in generator.roles.parameters("student").items()}


def largest_difference(a, b):
    scale = max(gradient.abs().max() for gradient in a.values())
    assert scale > 0
    return max((a[name] - b[name]).abs().max() for name in a) / scale


@pytest.mark.parametrize("train", [LORA, FullTraining()], ids=["lora", "full"])
@pytest.mark.parametrize("encoder", ["start", "random"])
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_gradient_with_checkpointing_is_that_without(family, encoder, train):
    plain = gradients(make(family, train, dtype=torch.float64), encoder=encoder, seed=1)
    again = gradients(make(family, train, dtype=torch.float64, checkpointing=True), encoder=encoder, seed=1)
    assert largest_difference(plain, again) < 1e-6


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_checkpointing_over_weights_in_half_precision(family):
    plain = gradients(make(family, dtype=torch.bfloat16, mixed_precision="bf16"))
    generator = make(family, dtype=torch.bfloat16, mixed_precision="bf16", checkpointing=True)
    assert largest_difference(plain, gradients(generator)) < 1e-6
    unet = generator.pipeline.unet
    assert all(block.gradient_checkpointing for block in (*unet.down_blocks, *unet.up_blocks))


@pytest.mark.parametrize("encoder", ["start", "random"])
def test_blocks_are_run_again_during_backward(encoder):
    for dtype in (torch.float32, torch.bfloat16):
        generator, roles = make(dtype=dtype, checkpointing=True), []
        features = EncoderFeatures(generator, encoder=encoder)
        cond = told(generator)
        features._encoder().down_blocks[0].resnets[0].conv1.register_forward_hook(
            lambda *_, r=roles, g=generator: r.append(g.roles.current)
        )
        loss = features(latents().requires_grad_(True), T, cond)[0].sum()
        assert len(roles) == 1
        loss.backward()
        assert len(roles) == 2 and len(set(roles)) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_in_half_precision_see_in_float32(family):
    generator = make(family, dtype=torch.bfloat16, mixed_precision="bf16")
    before = dict(generator.pipeline.unet.named_parameters())
    wide = tiny_pipeline(family)
    wide.unet.load_state_dict({n: t.bfloat16().float() for n, t in wide.unet.state_dict().items()})
    exact = make_generator(wide, roles=("reference",))
    cond = told(generator)
    for layer in LAYERS:
        found = EncoderFeatures(generator, layer=layer)(latents(), T, cond)
        expected = EncoderFeatures(exact, layer=layer)(latents(), T, cond)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    after = dict(generator.pipeline.unet.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    assert {p.dtype for p in generator.pipeline.unet.down_blocks[0].resnets.parameters()} >= {torch.bfloat16}


def test_mixed_precision_is_off_unless_asked_for():
    exact, mixed = make(), make(mixed_precision="bf16")
    cond = told(exact)
    full = EncoderFeatures(exact)(latents(), T, cond)[0]
    assert torch.equal(EncoderFeatures(mixed)(latents(), T, cond)[0], full)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(EncoderFeatures(exact)(latents(), T, cond)[0], full)
    half = EncoderFeatures(exact, precision="bfloat16")(latents(), T, cond)[0]
    assert 1e-3 < float((half.float() - full).norm() / full.norm()) < 0.1


def test_products_are_not_rounded_to_tf32():
    """cuDNN's convolutions are unless told otherwise, and TF32 has no more bits than float16."""
    generator, seen = make(), []

    def settings():
        names = ("cudnn.conv", "cuda.matmul", "mkldnn.conv", "mkldnn.matmul")
        return [torch.get_float32_matmul_precision()] + [
            getattr(getattr(torch.backends, a), b).fp32_precision
            for a, b in (name.split(".") for name in names)
        ]

    generator.pipeline.unet.conv_in.register_forward_hook(lambda *_: seen.append(settings()[1:]))
    plain = settings()
    try:
        for matmul in ("highest", "medium"):
            torch.set_float32_matmul_precision(matmul)
            before = settings()
            EncoderFeatures(generator)(latents(), T, told(generator))
            assert seen.pop() == ["ieee"] * 4 and settings() == before
            assert torch.backends.cudnn.allow_tf32  # raises where the older settings disagree
    finally:
        torch.set_float32_matmul_precision("highest")
    EncoderFeatures(generator, precision="bfloat16")(latents(), T, told(generator))
    assert seen.pop()[0] == plain[1]


def test_one_block_at_a_time_is_cast():
    generator, wide = make(dtype=torch.bfloat16), []
    unet = generator.pipeline.unet
    parameters = [p for block in (unet.down_blocks[0], unet.down_blocks[1]) for p in block.parameters()]

    def look(*_):
        now = [p for block in (unet.down_blocks[0], unet.down_blocks[1]) for p in block.parameters()]
        wide.append(
            sum(p.dtype == torch.float32 for p in now) - sum(p.dtype == torch.float32 for p in parameters)
        )

    unet.down_blocks[0].resnets[0].register_forward_hook(look)
    unet.down_blocks[1].resnets[0].register_forward_hook(look)
    EncoderFeatures(generator)(latents(), T, told(generator))
    own = [sum(p.dtype == torch.bfloat16 for p in block.parameters()) for block in unet.down_blocks]
    assert wide == own


@pytest.mark.parametrize("train", [LORA, FullTraining(embed_guidance=True)], ids=["told", "not told"])
def test_an_encoder_that_embeds_guidance_is_told_of_none(train):
    pipeline = tiny_pipeline("sd15")
    if train is LORA:
        from unifl.models.guidance_embedding import add_guidance_embedding

        add_guidance_embedding(pipeline.unet)
        with torch.no_grad():
            pipeline.unet.time_embedding.cond_proj.weight.normal_(std=0.1)
    generator = make_generator(pipeline, train=train, roles=("reference",))
    expected = as_the_network_goes(generator, "down_last")[0]
    with torch.no_grad():
        assert torch.equal(EncoderFeatures(generator)(latents(), T, told(generator))[0], expected)


def test_a_random_encoder_is_a_control():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    generator = make_generator(tiny_pipeline("sdxl"), train=FullTraining())
    found = [EncoderFeatures(generator, encoder="random", seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(1), expected)
    assert found[0].roles == () and generator.roles.num_copies == 0
    assert EncoderFeatures(generator).roles == ("reference",)
    with torch.no_grad():
        cond = generator.encode_prompts(PROMPTS)
        maps = [features(latents(), T, cond)[0] for features in found]
        generator.roles.add("reference")
        start = EncoderFeatures(generator)(latents(), T, told(generator))[0]
    assert torch.equal(maps[0], maps[1]) and maps[0].shape == start.shape
    assert all((maps[0] - other).std() > 0.1 * start.std() for other in (maps[2], start))


def test_layers_that_are_not_there_are_refused():
    generator = make()
    with pytest.raises(UserError, match="layer is 3: blocks go by number in transformers.*down_last, mid or"):
        EncoderFeatures(generator, layer=3)
    generator.pipeline.unet.mid_block = None
    with pytest.raises(UserError, match="layer is mid, and this UNet has no mid block; choose down_last"):
        EncoderFeatures(generator, layer="mid")
    EncoderFeatures(generator, layer="all_down")(latents(), T, told(generator))
