"""A saved few-step model draws the same pictures in plain diffusers."""

from __future__ import annotations

import pytest
import torch
from diffusers import DiffusionPipeline, LCMScheduler, StableDiffusionXLPipeline

from unifl.models.guidance_embedding import guidance_embedding
from unifl.models.load import FullTraining, load_generator, make_generator
from unifl.models.lora import LoraTraining
from unifl.models.save import save_lora, save_pipeline
from unifl.process import ConsistencySampler
from unifl.randomness import Key
from unifl.sampling import sample
from unifl.testing import tiny_pipeline

PROMPTS = ["a red circle", "two cats"]


def stirred(generator):
    """Weights that are not those of the start, the embedding of guidance among them."""
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in generator.trainable_parameters().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draws))
    return generator


def in_diffusers(pipeline, sampler, monkeypatch, *, steps, guidance):
    """What diffusers draws from our noise: it asks for noise in the order of the steps."""
    key = Key(0, 0, (0, 1))
    order = iter(range(steps))
    monkeypatch.setattr(
        f"diffusers.schedulers.scheduling_{sampler.kind}.randn_tensor",
        lambda *_, **__: key.normal(f"sample/{next(order)}", (4, 8, 8)),
    )
    eta = {"eta": sampler.gamma} if sampler.kind == "tcd" else {}
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt=PROMPTS, latents=key.normal("sample", (4, 8, 8)), num_inference_steps=steps, guidance_scale=guidance,
        output_type="pt", height=32, width=32, **eta,
    ).images  # fmt: skip


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
@pytest.mark.parametrize(
    "sampler", [ConsistencySampler(), ConsistencySampler(kind="tcd", gamma=0.4)], ids=str
)
@pytest.mark.parametrize("embed", [True, False])
def test_a_saved_pipeline(family, sampler, embed, tmp_path, monkeypatch):
    generator = stirred(make_generator(tiny_pipeline(family), train=FullTraining(embed_guidance=embed)))
    save_pipeline(generator, tmp_path, consistency=sampler)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    assert (pipeline.unet.config.time_cond_proj_dim == 256) == embed
    for steps in (1, 4):
        ours = sample(generator, PROMPTS, num_steps=steps, guidance=3.0, consistency=sampler)
        theirs = in_diffusers(pipeline, sampler, monkeypatch, steps=steps, guidance=3.0)
        torch.testing.assert_close(ours, theirs.float().cpu(), rtol=1e-3, atol=2e-4)
    again = load_generator(tmp_path)
    assert again.embeds_guidance() == embed
    drawn = sample(again, PROMPTS, num_steps=4, guidance=3.0, consistency=sampler)
    torch.testing.assert_close(drawn, ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_lora_on_the_model_that_it_was_distilled_from(family, tmp_path, monkeypatch):
    generator = stirred(make_generator(tiny_pipeline(family), train=LoraTraining(rank=2)))
    save_lora(generator, tmp_path)
    pipeline = tiny_pipeline(family)
    pipeline.load_lora_weights(tmp_path)
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config, original_inference_steps=50)
    sampler = ConsistencySampler()
    ours = sample(generator, PROMPTS, num_steps=4, guidance=1.0, consistency=sampler)
    theirs = in_diffusers(pipeline, sampler, monkeypatch, steps=4, guidance=1.0)
    torch.testing.assert_close(ours, theirs.float().cpu(), rtol=1e-3, atol=2e-4)


def test_the_embedding_is_that_of_diffusers():
    scale = torch.tensor([1.0, 2.5, 7.5, 16.0])
    theirs = StableDiffusionXLPipeline.get_guidance_scale_embedding(None, scale - 1, embedding_dim=256)
    # sines of thousands of radians: the two differ in the rounding of the angle
    torch.testing.assert_close(guidance_embedding(scale, 256), theirs, rtol=0, atol=2e-3)


def test_the_embedding_starts_without_effect_and_the_teacher_never_takes_notice_of_it():
    generator = make_generator(
        tiny_pipeline("sd15"), train=FullTraining(embed_guidance=True), roles=("teacher",)
    )
    plain = make_generator(tiny_pipeline("sd15"))
    cond, x, t = plain.encode_prompts(PROMPTS), torch.randn(2, 4, 8, 8), torch.tensor([0.4, 0.9])
    expected = plain.denoise("student", x, t, cond).raw
    assert torch.equal(generator.denoise("student", x, t, cond, guidance=7.0).raw, expected)
    assert generator.embeds_guidance("student") and not generator.embeds_guidance("teacher")
    stirred(generator)
    student = generator.denoise("student", x, t, cond, guidance=torch.tensor([2.0, 7.0])).raw
    assert not torch.allclose(generator.denoise("student", x, t, cond, guidance=2.0).raw[1], student[1])
    torch.testing.assert_close(generator.denoise("student", x, t, cond, guidance=2.0).raw[0], student[0])
    guided = generator.denoise("teacher", x, t, cond, guidance=torch.tensor([2.0, 7.0])).raw
    for row, scale in enumerate((2.0, 7.0)):  # one scale per sample
        alone = plain.denoise("student", x, t, cond, guidance=scale).raw
        torch.testing.assert_close(guided[row], alone[row])
