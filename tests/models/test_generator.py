from __future__ import annotations

import itertools

import diffusers
import pytest
import torch

from unifl.errors import UserError
from unifl.models import Conditioning, FullTraining, LoraTraining, make_generator, merged_pipeline
from unifl.process import ddim_step, time_grid
from unifl.randomness import Key
from unifl.testing import FAMILIES, tiny_pipeline

PROMPTS = ["a red circle", "a photo of a cat"]


def latents(batch=2, seed=0):
    return torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def plain(family):
    """A pipeline as diffusers gives it, frozen: torch folds linear layers otherwise where weights need a gradient."""
    pipeline = tiny_pipeline(family)
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        module.requires_grad_(False)
    return pipeline


def encode_plainly(pipeline, prompts, **changes):
    options = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True, **changes}
    with torch.no_grad():
        return pipeline.encode_prompt(prompts, **options)


def unet_output(pipeline, x, indices, cond):
    added = {"text_embeds": cond.pooled, "time_ids": cond.time_ids}
    with torch.no_grad():
        return pipeline.unet(x, indices, cond.embeds, added_cond_kwargs=added).sample


# --- prompts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_encoded_as_by_the_pipeline(family):
    pipeline = plain(family)
    generator = make_generator(tiny_pipeline(family))
    cond = generator.encode_prompts(PROMPTS)
    for position, prompt in enumerate(PROMPTS):
        expected = encode_plainly(pipeline, [prompt])
        assert torch.equal(cond.embeds[position], expected[0][0])
        if family == "sdxl":
            assert torch.equal(cond.pooled[position], expected[2][0])
            assert cond.time_ids[position].tolist() == [32, 32, 0, 0, 32, 32]
        else:
            assert cond.pooled is None and cond.time_ids is None


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_negative_prompts_are_those_of_the_pipeline(family):
    pipeline = plain(family)
    generator = make_generator(tiny_pipeline(family))
    for text in (None, "blue"):
        negative = None if text is None else [text]
        expected = encode_plainly(pipeline, PROMPTS[:1], negative_prompt=negative)
        cond = generator.encode_negative(text, 3)
        assert len(cond) == 3
        torch.testing.assert_close(cond.embeds[2:], expected[1], rtol=0, atol=0)
        if family == "sdxl":
            torch.testing.assert_close(cond.pooled[2:], expected[3], rtol=0, atol=0)
            assert (cond.embeds == 0).all() == (text is None)


def test_a_prompt_is_encoded_once_and_alone():
    generator = make_generator(tiny_pipeline("sd15"), train=LoraTraining(), roles=("reference",))
    batches = []
    generator.pipeline.text_encoder.register_forward_hook(lambda _m, _a, out: batches.append(len(out[0])))
    first = generator.encode_prompts(["red", "blue", "red"])
    second = generator.encode_prompts(["blue", "red"], role="reference")
    assert batches == [1, 1]
    assert torch.equal(first.embeds[[1, 2]], second.embeds)


def test_a_training_text_encoder_is_asked_every_time_and_its_reference_once():
    train = LoraTraining(text_encoder=True)
    generator = make_generator(tiny_pipeline("sd15"), train=train, roles=("reference",))
    batches = []
    generator.pipeline.text_encoder.register_forward_hook(lambda _m, _a, out: batches.append(len(out[0])))
    for _ in range(2):
        assert generator.encode_prompts(["red", "blue"], grad=True).embeds.requires_grad
        assert not generator.encode_prompts(["red", "blue"]).embeds.requires_grad
        assert not generator.encode_prompts(["red", "blue"], role="reference", grad=True).embeds.requires_grad
    assert batches == [2, 2, 1, 1, 2, 2]


def test_the_cache_stays_within_its_bytes():
    from unifl.models.prompts import PromptCache

    entry = Conditioning(torch.zeros(1, 4, 4))  # 64 bytes
    cache = PromptCache(max_bytes=128)
    cache.put("a", entry)
    cache.put("b", entry)
    assert cache.get("a") is entry
    cache.put("c", entry)
    assert cache.get("b") is None  # used least recently
    assert cache.get("a") is entry and cache.get("c") is entry


# --- denoising -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [None, LoraTraining(rank=4), FullTraining()], ids=["none", "lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_student_starts_as_the_plain_unet_bit_for_bit(family, train):
    pipeline = plain(family)
    pipeline.unet.requires_grad_(isinstance(train, FullTraining))
    generator = make_generator(tiny_pipeline(family), train=train)
    cond = generator.encode_prompts(PROMPTS)
    indices = torch.tensor([999, 20])
    with torch.no_grad():
        prediction = generator.denoise("student", latents(), (indices + 1) / 1000, cond)
    assert torch.equal(prediction.raw, unet_output(pipeline, latents(), indices, cond))


@pytest.mark.parametrize("family", FAMILIES)
def test_prediction_agrees_with_itself_and_with_the_scheduler(family):
    generator = make_generator(tiny_pipeline(family))
    scheduler = diffusers.DDIMScheduler.from_config(generator.pipeline.scheduler.config, clip_sample=False)
    scheduler.set_timesteps(1000)
    cond = generator.encode_prompts(PROMPTS[:1])
    for index in (0, 400, 999):
        x_t = latents(1)
        with torch.no_grad():
            got = generator.denoise("student", x_t, torch.tensor([(index + 1) / 1000]), cond)
        expected = scheduler.step(got.raw, index, x_t).pred_original_sample
        torch.testing.assert_close(got.x0, expected, rtol=2e-4, atol=2e-4)
        again = generator.process.add_noise(got.x0, got.eps, got.t)
        torch.testing.assert_close(again, x_t, rtol=1e-4, atol=1e-4)
    assert generator.kind == ("v_prediction" if family == "sd21" else "epsilon")


def test_time_zero_asks_the_network_for_its_cleanest_index():
    generator = make_generator(tiny_pipeline("sd15"))
    seen = []
    generator.pipeline.unet.register_forward_pre_hook(lambda _m, args: seen.append(args[1].tolist()))
    cond = generator.encode_prompts(PROMPTS)
    generator.denoise("student", latents(), torch.tensor([0.0, 0.0255]), cond)
    assert seen[0] == pytest.approx([0.0, 24.5])


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_guidance_is_one_batch_of_both_halves(family):
    generator = make_generator(tiny_pipeline(family))
    batches = []
    generator.pipeline.unet.register_forward_pre_hook(lambda _m, args: batches.append(len(args[0])))
    cond, negative = generator.encode_prompts(PROMPTS), generator.encode_negative("blue", 2)
    t = torch.tensor([0.9, 0.2])
    with torch.no_grad():
        guided = generator.denoise("student", latents(), t, cond, guidance=3.0, negative=negative).raw
        with_prompt = generator.denoise("student", latents(), t, cond, guidance=1.0, negative=negative).raw
        without = generator.denoise("student", latents(), t, negative).raw
        default = generator.denoise("student", latents(), t, cond, guidance=3.0).raw
    assert batches == [4, 2, 2, 4]
    torch.testing.assert_close(guided, without + 3.0 * (with_prompt - without), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(guided, default)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_ddim_loop_draws_what_diffusers_draws(family):
    generator = make_generator(tiny_pipeline(family), train=LoraTraining(rank=2))
    pipeline = merged_pipeline(generator, spacing="trailing")
    expected = pipeline(
        PROMPTS, num_inference_steps=4, guidance_scale=2.5, latents=latents(), output_type="pt"
    ).images
    x, cond = latents(), generator.encode_prompts(PROMPTS)
    times = time_grid(4, "trailing")
    with torch.no_grad():
        for t, s in itertools.pairwise(times):
            p = generator.denoise("student", x, t.repeat(2), cond, guidance=2.5)
            x = ddim_step(p.x0, p.eps, s.repeat(2), generator.process)
        images = generator.decode(x)
    torch.testing.assert_close(images, expected, rtol=0, atol=2e-4)


def test_half_precision_evaluations_end_in_float32_and_keep_their_gradient():
    generator = make_generator(tiny_pipeline("sd15"), train=FullTraining(), mixed_precision="bf16")
    exact = make_generator(tiny_pipeline("sd15"))
    cond, t = generator.encode_prompts(PROMPTS), torch.tensor([0.9, 0.4])
    with torch.autocast(
        "cpu", dtype=torch.bfloat16
    ):  # as a training loop may do; its weight cache must not matter
        with torch.no_grad():
            generator.denoise("student", latents(), t, cond)
        rough = generator.denoise("student", latents(), t, cond)
    rough.raw.square().mean().backward()
    assert rough.raw.dtype == rough.x0.dtype == rough.eps.dtype == torch.float32
    assert all(
        p.grad is not None and p.grad.dtype == torch.float32
        for p in generator.trainable_parameters().values()
    )
    precise = exact.denoise("student", latents(), t, cond).raw
    assert 0 < (rough.raw - precise).abs().max() < 0.1
    assert generator.decode(latents()).dtype == torch.float32


def test_predict_noise_at_zero_signal_is_refused():
    pipeline = tiny_pipeline("sd15")
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(
        pipeline.scheduler.config, rescale_betas_zero_snr=True
    )
    with pytest.raises(UserError, match="zero terminal SNR"):
        make_generator(pipeline)


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_zero_terminal_snr_is_exact_for_every_scheduler(scheduler):
    pipeline = tiny_pipeline("sd21")
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(
        pipeline.scheduler.config, rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    generator = make_generator(pipeline)
    assert generator.process.alpha(torch.ones(1)).item() == 0.0
    assert generator.spacing == "trailing"
    cond = generator.encode_prompts(PROMPTS)
    assert generator.denoise("student", latents(), torch.ones(2), cond).x0.isfinite().all()


def test_a_scheduler_without_betas_is_refused():
    pipeline = tiny_pipeline("sd15")
    pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    with pytest.raises(UserError, match="FlowMatchEulerDiscreteScheduler is not built from betas"):
        make_generator(pipeline)


def test_an_inpainting_unet_is_refused():
    pipeline = tiny_pipeline("sd15")
    pipeline.unet.register_to_config(in_channels=9)
    with pytest.raises(UserError, match="inpainting"):
        make_generator(pipeline)


def test_resolution_sets_the_shape_of_latents():
    generator = make_generator(tiny_pipeline("sdxl"), resolution=64)
    assert generator.latent_shape == (4, 16, 16)
    assert generator.image_size == (64, 64)
    assert generator.time_ids(1).tolist() == [[64, 64, 0, 0, 64, 64]]
    with pytest.raises(UserError, match="multiple of 8"):
        make_generator(tiny_pipeline("sd15"), resolution=36)


# --- pictures --------------------------------------------------------------------------------------------


def test_decode_is_that_of_diffusers():
    pipeline = plain("sd15")
    generator = make_generator(tiny_pipeline("sd15"))
    z = 3 * latents()
    with torch.no_grad():
        decoded = pipeline.vae.decode(z / 0.18215).sample
    expected = pipeline.image_processor.postprocess(decoded, output_type="pt")
    images = generator.decode(z)
    assert torch.equal(images, expected)
    assert not images.requires_grad


def test_encode_scales_and_shifts_as_the_config_says():
    pipeline = tiny_pipeline("sd15")
    generator = make_generator(pipeline)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        posterior = pipeline.vae.encode(images * 2 - 1).latent_dist
    torch.testing.assert_close(generator.encode(images), posterior.mean * 0.18215)
    pipeline.vae.register_to_config(shift_factor=0.5)
    torch.testing.assert_close(generator.encode(images), (posterior.mean - 0.5) * 0.18215)
    with torch.no_grad():
        decoded = pipeline.vae.decode(posterior.mean).sample
    shifted = generator.decode((posterior.mean - 0.5) * 0.18215)
    torch.testing.assert_close(shifted, (decoded / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-5)


def test_an_autoencoder_that_overflows_in_float16_stays_out_of_it():
    half = make_generator(tiny_pipeline("sdxl"), mixed_precision="fp16")
    exact = make_generator(tiny_pipeline("sdxl"))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(half.decode(latents()), exact.decode(latents()))
    assert torch.equal(half.encode(images), exact.encode(images))
    z, loss = latents().requires_grad_(True), torch.zeros(())
    for options in ({}, {"checkpoint": True}):
        loss = loss + half.decode(z, grad=True, **options).square().mean()
    (gradient,) = torch.autograd.grad(loss, z)
    (expected,) = torch.autograd.grad(exact.decode(z, grad=True).square().mean(), z)
    torch.testing.assert_close(gradient, 2 * expected, rtol=1e-4, atol=1e-6)
    half.pipeline.vae.register_to_config(force_upcast=False)
    assert not torch.equal(half.decode(latents()), exact.decode(latents()))


def _overflowing(**options):
    """An SDXL pipeline whose decoder passes 65504 on the way, as the real one does."""
    pipeline = tiny_pipeline("sdxl")
    pipeline.vae.register_to_config(force_upcast=options.pop("force_upcast", True))
    with torch.no_grad():
        pipeline.vae.decoder.conv_in.weight.mul_(1e7)
    return make_generator(pipeline, **options)


def test_the_precision_of_decoding():
    exact = _overflowing().decode(latents())
    assert bool(_overflowing(force_upcast=False, mixed_precision="fp16").decode(latents()).isnan().any())
    half = _overflowing(mixed_precision="fp16")
    for dtype, tolerance in (("auto", 0.0), ("float32", 0.0), ("bfloat16", 0.05)):
        found = half.decode(latents(), dtype=dtype)
        assert found.dtype == torch.float32 and float((found - exact).abs().max()) <= tolerance
    # bfloat16 is really used, in the graph as well
    z = latents().requires_grad_(True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: stored.append(t.dtype) or t, lambda t: t):
        stored = []
        half.decode(z, grad=True, dtype="bfloat16").sum().backward()
    assert torch.bfloat16 in stored and bool(z.grad.isfinite().all()) and float(z.grad.norm()) > 0
    mixed = make_generator(tiny_pipeline("sd15"), mixed_precision="bf16")
    plain = make_generator(tiny_pipeline("sd15"))
    assert torch.equal(mixed.decode(latents(), dtype="float32"), plain.decode(latents()))
    assert torch.equal(mixed.decode(latents()), plain.decode(latents(), dtype="bfloat16"))
    assert not torch.equal(mixed.decode(latents()), plain.decode(latents()))


def test_float32_cannot_be_had_of_half_precision_weights():
    pipeline = tiny_pipeline("sd15")
    pipeline.vae.to(torch.bfloat16)
    generator = make_generator(pipeline, mixed_precision="bf16")
    with pytest.raises(
        UserError, match=r"decode\.dtype is float32, but the autoencoder was loaded in bfloat16"
    ):
        generator.decode(latents(), dtype="float32")
    assert bool(generator.decode(latents(), dtype="bfloat16").isfinite().all())


def test_encoding_with_a_key_draws_from_the_posterior_by_sample():
    generator = make_generator(tiny_pipeline("sd15"))
    images = torch.rand(3, 3, 32, 32)
    mode, drawn = generator.encode(images), generator.encode(images, key=Key(0, 1, (4, 5, 6)))
    assert (drawn - mode).std() > 1e-3
    alone = generator.encode(images[1:2], key=Key(0, 1, (5,)))
    torch.testing.assert_close(drawn[1:2], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("family", "shift"), [("sd15", None), ("sdxl", 0.4)])
def test_the_posterior_is_what_encode_draws_from(family, shift):
    generator = make_generator(tiny_pipeline(family))
    generator.pipeline.vae.register_to_config(shift_factor=shift)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    mean, std = generator.posterior(images)
    key = Key(0, 1, (4, 5, 6))
    noise = key.normal("posterior", (4, 8, 8))
    assert torch.equal(generator.encode(images), mean) and bool((std > 0).all())
    torch.testing.assert_close(generator.encode(images, key=key), mean + std * noise, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        raw = generator.pipeline.vae.encode(images * 2 - 1).latent_dist
    drawn = (raw.mean + raw.std * noise - (shift or 0.0)) * generator.pipeline.vae.config.scaling_factor
    assert torch.equal(generator.encode(images, key=key), drawn)  # scaled after the draw, bit for bit


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("slicing", [False, True])
def test_decode_gradient_is_the_same_however_it_is_stored(checkpoint, slicing):
    generator = make_generator(tiny_pipeline("sd15"))
    weights = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))

    def gradient(**options):
        z = latents().requires_grad_(True)
        (generator.decode(z, grad=True, **options) * weights).sum().backward()
        return z.grad

    torch.testing.assert_close(
        gradient(checkpoint=checkpoint, slicing=slicing), gradient(), rtol=1e-4, atol=1e-4
    )
    assert not generator.pipeline.vae.decoder.gradient_checkpointing


def test_checkpointed_decode_runs_blocks_twice_and_slices_see_one_picture():
    generator = make_generator(tiny_pipeline("sd15"))
    calls = []
    block = generator.pipeline.vae.decoder.up_blocks[1]
    block.register_forward_pre_hook(lambda _m, args: calls.append(len(args[0])))
    z = latents(3).requires_grad_(True)
    generator.decode(z, grad=True, checkpoint=True).sum().backward()
    assert calls == [3, 3]
    calls.clear()
    generator.decode(z, grad=True, slicing=True).sum().backward()
    assert calls == [1, 1, 1]
    calls.clear()
    # forward, then per picture: the decoder once more up to its blocks, and each block once more
    generator.decode(z, grad=True, slicing=True, checkpoint=True).sum().backward()
    assert set(calls) == {1} and len(calls) > 6
    calls.clear()
    generator.decode(z, checkpoint=True)
    assert calls == [3]


def test_saturated_pixels_keep_their_gradient():
    generator = make_generator(tiny_pipeline("sd15"))
    with torch.no_grad():
        generator.pipeline.vae.decoder.conv_out.bias.add_(50.0)
    z = latents().requires_grad_(True)
    images = generator.decode(z, grad=True)
    assert (images == 1).all()
    images.sum().backward()
    assert z.grad.abs().max() > 0


def test_decode_under_no_grad_has_no_gradient():
    generator = make_generator(tiny_pipeline("sd15"))
    with torch.no_grad():
        assert not generator.decode(latents(), grad=True).requires_grad


# --- conditioning ----------------------------------------------------------------------------------------


def test_conditioning_is_handled_row_by_row():
    generator = make_generator(tiny_pipeline("sdxl"))
    cond = generator.encode_prompts(["red", "blue", "green"])
    twice = cond.repeat(2)
    assert len(twice) == 6
    assert torch.equal(twice.embeds[4], cond.embeds[1]) and torch.equal(twice.pooled[4], cond.pooled[1])
    joined = Conditioning.cat([cond, generator.encode_prompts(["green", "red"])])
    assert torch.equal(joined.embeds[3], cond.embeds[2]) and joined.time_ids.shape == (5, 6)
    assert cond.to(dtype=torch.float64).pooled.dtype == torch.float64
