from __future__ import annotations

import copy
import math

import pytest
import torch

from unifl.errors import UserError
from unifl.feedback import Feedback, LatentProxyConfig, make_proxy, require_gradient
from unifl.testing import tiny_pipeline

TINY = dict(channels=4, size=8, width=16, depth=3, heads=2, patch=2, embedding=8)
WORDS = dict(text="hashed", text_width=16, text_depth=3, text_heads=2)
PROMPTS = ["a red circle", "two cats", "a red circle"]


def hashed(**settings):
    return make_proxy(LatentProxyConfig(**TINY | WORDS | settings))


@pytest.fixture(scope="module")
def pipelines():
    return {family: tiny_pipeline(family) for family in ("sd15", "sd21", "sdxl")}


@pytest.fixture(scope="module")
def clip(pipelines):
    def build(family="sd15", encoder="text_encoder"):
        pipeline = pipelines[family]
        tokenizer = getattr(pipeline, encoder.replace("text_encoder", "tokenizer"))
        config = LatentProxyConfig(**TINY, text="clip")
        return make_proxy(config, text_encoder=getattr(pipeline, encoder), tokenizer=tokenizer)

    return build


def latents(b=3, side=8, **settings):
    return torch.randn(b, 4, side, side, generator=torch.Generator().manual_seed(0), **settings)


def proxies(clip):
    return {
        "vit": hashed(),
        "resnet": hashed(tower="resnet"),
        "sd15": clip(),
        "sdxl": clip("sdxl", "text_encoder_2"),
    }


def test_it_is_a_differentiable_feedback_on_latents(clip):
    for name, proxy in proxies(clip).items():
        assert isinstance(proxy, Feedback), name
        require_gradient(proxy, method="RG-LCD", example=latents(2), space="latent")
        scores = proxy(latents(), PROMPTS)
        assert scores.shape == (3,) and bool((scores.abs() <= 1 + 1e-6).all()), name
        assert torch.equal(scores, proxy.cosine(latents(), PROMPTS))
        assert torch.allclose(proxy.logits(latents(), PROMPTS), scores / 0.07, rtol=1e-5)
        other = proxy(latents(), ["two cats", "a red circle", "a dog"])
        assert (scores - other).abs().min() > 1e-4, name  # the prompt counts
        assert torch.allclose(proxy(latents()[:1], PROMPTS[:1]), scores[:1], atol=1e-5), name


def test_it_reads_latents_as_the_autoencoder_made_them():
    plain = hashed(scaling_factor=1.0)
    scaled = hashed(scaling_factor=0.5, shift=0.25)
    expected = plain(latents() / 0.5 + 0.25, PROMPTS)
    assert torch.allclose(scaled(latents(), PROMPTS), expected, atol=1e-6)


def test_places_are_interpolated_for_latents_of_another_size():
    proxy = hashed()
    for side in (4, 12):
        assert proxy(latents(side=side), PROMPTS).isfinite().all()
    wide = torch.randn(2, 4, 8, 16, generator=torch.Generator().manual_seed(1))
    assert proxy(wide, PROMPTS[:2]).shape == (2,)
    # places that are a ramp stay that ramp: the interpolation runs along the right axes
    with torch.no_grad():
        proxy.image.places.zero_()
        proxy.image.places[0, 0] = torch.linspace(0, 1, 4)[:, None].expand(4, 4)
        proxy.image.patches.weight.zero_()
        proxy.image.patches.bias.zero_()
    seen = []
    proxy.image.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    proxy(latents(1, side=16), ["a"])
    grid = seen[0].detach()[0, :, 0].view(8, 8)
    assert bool((grid.diff(dim=0) > 0)[1:-1].all()) and float(grid.diff(dim=1).abs().max()) < 1e-6


def test_a_text_model_is_copied(clip, pipelines):
    encoder = pipelines["sd15"].text_encoder
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    proxy = clip()
    with torch.no_grad():
        for parameter in proxy.text.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_it_pools_as_clip_does(clip, pipelines):
    pipeline, proxy = pipelines["sd21"], clip("sd21")
    tokens = pipeline.tokenizer(PROMPTS, padding="max_length", max_length=77, return_tensors="pt")
    pooled = pipeline.text_encoder(tokens.input_ids).pooler_output
    expected = torch.nn.functional.normalize(proxy.text.projection(pooled), dim=1)
    assert torch.allclose(proxy.embed_prompts(PROMPTS), expected, atol=1e-5)
    proxy.unlock(text_blocks=0)
    assert torch.allclose(proxy.embed_prompts(PROMPTS), expected, atol=1e-5)


def test_judge_gives_gradients_to_latents_only(clip):
    for proxy in proxies(clip).values():
        x = latents().requires_grad_()
        scores = proxy.judge(x, PROMPTS)
        assert torch.allclose(scores, proxy(latents(), PROMPTS), atol=1e-6)
        scores.sum().backward()
        assert float(x.grad.abs().min(dim=0).values.max()) > 0
        assert all(parameter.grad is None for parameter in proxy.parameters())
        assert all(parameter.requires_grad for parameter in proxy.parameters())


@pytest.mark.parametrize("kind", ["vit", "resnet", "sd15"])
def test_unlocked_blocks_train_and_no_other_weight_changes_by_a_bit(clip, kind):
    proxy = proxies(clip)[kind]
    unlocked = proxy.unlock(image_blocks=1, text_blocks=1)
    prefixes = {
        "vit": ("image.blocks.2.", "image.norm", "image.proj", "text.blocks.2.", "text.norm", "text.proj"),
        "resnet": ("image.blocks.2.", "image.norm", "image.proj", "text.blocks.2.", "text.norm", "text.proj"),
        "sd15": (
            "image.blocks.2.",
            "image.norm",
            "image.proj",
            "text.model.encoder.layers.1.",
            "text.model.final_layer_norm",
            "text.proj",
        ),
    }[kind]
    everything = dict(proxy.named_parameters())
    assert set(unlocked) == {n for n in everything if n.startswith(prefixes)} | {"logit_scale"}
    before = {name: value.clone() for name, value in proxy.state_dict().items()}
    optimizer = torch.optim.AdamW(list(unlocked.values()), lr=1e-2, weight_decay=0.1)
    noise = torch.Generator().manual_seed(3)
    for _ in range(3):
        # the student's update uses the proxy as a frozen reward in between
        x = torch.randn(3, 4, 8, 8, generator=noise, requires_grad=True)
        proxy.judge(x, PROMPTS).sum().backward()
        assert all(parameter.grad is None for parameter in everything.values())
        optimizer.zero_grad(set_to_none=True)
        proxy.logits(x.detach(), ["a", "two cats", "dog"]).square().sum().backward()
        assert {name for name, value in everything.items() if value.grad is not None} == set(unlocked)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    for name, value in proxy.state_dict().items():
        if name in unlocked:
            assert not torch.equal(value, before[name]), name
        else:
            assert torch.equal(value, before[name]), name


def test_unlock_counts_from_the_end_and_zero_freezes_the_projection():
    proxy = hashed()
    assert set(proxy.unlock(image_blocks=0, text_blocks=0)) == {"logit_scale"}
    assert not proxy.unlock(image_blocks=0, text_blocks=0, logit_scale=False)
    assert set(proxy.unlock()) == {name for name, _ in proxy.named_parameters()}
    found = proxy.unlock(image_blocks=99, text_blocks=0)
    assert "image.blocks.0.look.weight" in found and "image.places" not in found
    with pytest.raises(UserError, match="cannot unlock -1 blocks"):
        proxy.unlock(image_blocks=-1)


def test_prompts_are_encoded_once_while_the_text_tower_is_frozen(clip):
    proxy, seen = clip(), []
    proxy.text.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    proxy.unlock(text_blocks=0)
    first = proxy(latents(), PROMPTS)
    assert seen == [1, 1]  # each distinct prompt, alone
    assert torch.equal(proxy.judge(latents(), PROMPTS), first) and len(seen) == 2
    with torch.no_grad():  # as a checkpoint does that is read into the weights
        proxy.text.projection.weight.copy_(torch.randn_like(proxy.text.projection.weight))
    assert not torch.allclose(proxy(latents(), PROMPTS), first) and len(seen) == 4
    proxy.unlock(text_blocks=1)
    proxy(latents(), PROMPTS).sum().backward()
    assert seen[4:] == [2] and proxy.text.projection.weight.grad is not None
    before = proxy.judge(latents(), PROMPTS)
    with torch.no_grad():
        proxy.text.projection.weight.mul_(-1)
    assert torch.allclose(proxy.judge(latents(), PROMPTS), -before, atol=1e-6)  # nothing is remembered now


def test_prompts_that_were_read_in_inference_mode_serve_training_too():
    proxy = hashed()
    proxy.unlock(text_blocks=0)
    with torch.inference_mode():
        remembered = proxy(latents(), PROMPTS).clone()
    again = proxy(latents(), PROMPTS)
    again.sum().backward()
    torch.testing.assert_close(again.detach(), remembered)
    assert any(parameter.grad is not None for parameter in proxy.image.parameters())


def test_the_factor_on_cosines_is_bounded_and_comes_back():
    proxy = hashed()
    assert float(proxy.scale().detach()) == pytest.approx(1 / 0.07, rel=1e-5)
    with torch.no_grad():
        proxy.logit_scale.fill_(9.0)
    assert float(proxy.scale().detach()) == pytest.approx(100.0, rel=1e-4)
    proxy.scale().backward()
    assert float(proxy.logit_scale.grad) > 0
    assert float(proxy.logit_scale.detach()) == pytest.approx(math.log(100.0))


def test_it_stays_in_eval_mode_and_can_be_copied():
    proxy = hashed().train()
    assert not any(module.training for module in proxy.modules())
    proxy.unlock(text_blocks=0)
    expected = proxy(latents(), PROMPTS)
    assert torch.equal(copy.deepcopy(proxy)(latents(), PROMPTS), expected)


def test_the_seed_decides_the_weights_and_nothing_else_moves():
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    config = LatentProxyConfig(**TINY, **WORDS)
    one, two, other = make_proxy(config, seed=1), make_proxy(config, seed=1), make_proxy(config, seed=2)
    assert torch.equal(torch.random.get_rng_state(), state)
    scores = [proxy(latents(), PROMPTS) for proxy in (one, two, other)]
    assert torch.equal(scores[0], scores[1]) and not torch.allclose(scores[0], scores[2])


@pytest.mark.parametrize(
    ("shape", "scaling", "message"),
    [
        ((8, 8, 8), 0.18215, "reads 4 channels, but the latents have 8"),
        ((4, 8, 9), 0.18215, "not cut by the proxy's patches of 2"),
        ((4, 8, 8), 0.13025, "scale and shift"),
    ],
)
def test_latents_that_do_not_fit(shape, scaling, message):
    with pytest.raises(UserError, match=message):
        hashed().require_fit(shape, scaling_factor=scaling)
    hashed().require_fit((4, 12, 8), scaling_factor=0.18215)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "width of a latent proxy is 0"),
        ({"heads": 3}, "multiple of its heads"),
        ({"patch": 3}, "not cut by patches of 3"),
        ({"tower": "resnet", "width": 12}, "multiple of 8"),
        ({"scaling_factor": 0.0}, "must be above 0"),
    ],
)
def test_shapes_that_make_no_sense(settings, message):
    with pytest.raises(UserError, match=message):
        LatentProxyConfig(**TINY | WORDS | settings)


def test_a_clip_is_needed_for_clip_and_for_nothing_else(pipelines):
    pipeline = pipelines["sd15"]
    with pytest.raises(UserError, match="needs a text encoder and its tokenizer"):
        make_proxy(LatentProxyConfig(**TINY, text="clip"))
    with pytest.raises(UserError, match="takes none"):
        make_proxy(
            LatentProxyConfig(**TINY, **WORDS),
            text_encoder=pipeline.text_encoder,
            tokenizer=pipeline.tokenizer,
        )
    with pytest.raises(UserError, match="is no CLIP text model"):
        make_proxy(
            LatentProxyConfig(**TINY, text="clip"),
            text_encoder=pipeline.vae,
            tokenizer=pipeline.tokenizer,
        )
