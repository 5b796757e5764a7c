"""Stable Diffusion 3 beside its plain pipeline: prompts, evaluations, roles, gradients and files."""

from __future__ import annotations

from dataclasses import replace

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from unifl.errors import UserError
from unifl.models import (
    FullTraining,
    LoraTraining,
    Sampling,
    UserTraining,
    load_generator,
    load_pipeline,
    make_generator,
    merged_pipeline,
    model_card,
    save_lora,
    save_pipeline,
)
from unifl.models.lora import JOINT_ATTENTION
from unifl.models.save import KOHYA_FILE, LORA_FILE
from unifl.models.shapes import shaped_pipeline
from unifl.process import ConsistencySampler
from unifl.testing import FLOW_FAMILIES, tiny_folder, tiny_pipeline

PROMPTS = ["a red circle", "a photo of a cat"]
T = torch.tensor([0.9, 0.25])
LORA = LoraTraining(rank=4, alpha=6, text_encoder=True, target_modules=list(JOINT_ATTENTION))
FULL = FullTraining(text_encoder=True)


def latents(seed=0, dtype=torch.float32):
    return torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)


def plain(family):
    """As diffusers gives it, frozen: torch folds linear layers otherwise where weights need a gradient."""
    pipeline = tiny_pipeline(family)
    for module in (
        pipeline.transformer,
        pipeline.text_encoder,
        pipeline.text_encoder_2,
        pipeline.text_encoder_3,
    ):
        if module is not None:
            module.requires_grad_(False)
    return pipeline


def disturb(generator, *, seed=1):
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in generator.trainable_parameters().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype))


@torch.no_grad()
def raw(generator, role="student"):
    cond = generator.encode_prompts(PROMPTS, role=role)
    return generator.denoise(role, latents(), T, cond).raw


def draw(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        PROMPTS, num_inference_steps=2, guidance_scale=3.0, output_type="pt", latents=latents()
    ).images


def difference(a, b):
    return (a - b).abs().max().item()


# --- one evaluation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_prompts_are_encoded_as_by_the_pipeline(family):
    pipeline, generator = plain(family), make_generator(tiny_pipeline(family))
    for negative in (None, "blue"):
        with torch.no_grad():
            embeds, other, pooled, other_pooled = pipeline.encode_prompt(
                PROMPTS[:1], None, None, negative_prompt=negative
            )
        cond, unconditional = generator.encode_prompts(PROMPTS[:1]), generator.encode_negative(negative, 3)
        assert torch.equal(cond.embeds, embeds) and torch.equal(cond.pooled, pooled)
        assert torch.equal(unconditional.embeds[2:], other)
        assert torch.equal(unconditional.pooled[2:], other_pooled)
    assert cond.embeds.shape == (1, 77 + 256, 96) and cond.pooled.shape == (1, 64) and cond.time_ids is None
    assert (cond.embeds[:, 77:] == 0).all() == (family == "sd3")  # zeros where there is no T5


@pytest.mark.parametrize("train", [None, LoraTraining(rank=4), FullTraining()], ids=["none", "lora", "full"])
@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_student_starts_as_the_plain_transformer_bit_for_bit(family, train):
    pipeline = plain(family)
    generator = make_generator(tiny_pipeline(family), train=train)
    for name, parameter in pipeline.transformer.named_parameters():
        parameter.requires_grad_(
            generator.pipeline.transformer.get_parameter(_path(generator, name)).requires_grad
        )
    cond = generator.encode_prompts(PROMPTS)
    with torch.no_grad():
        got = generator.denoise("student", latents(), T, cond)
        expected = pipeline.transformer(latents(), cond.embeds, cond.pooled, timestep=1000 * T).sample
    assert torch.equal(got.raw, expected)
    # the straight path: x_t = (1 - t) x0 + t eps, and the network says eps - x0
    torch.testing.assert_close(got.eps - got.x0, got.raw, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.x0, latents() - T[:, None, None, None] * got.raw, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        generator.process.add_noise(got.x0, got.eps, T), latents(), rtol=1e-5, atol=1e-5
    )
    assert generator.kind == "flow" and generator.denoiser == "transformer" and not generator.is_xl


def _path(generator, name):
    owner, _, leaf = name.rpartition(".")
    return (
        name
        if not hasattr(generator.pipeline.transformer.get_submodule(owner), "base_layer")
        else f"{owner}.base_layer.{leaf}"
    )


def test_the_whole_prompt_reaches_the_network():
    generator = make_generator(tiny_pipeline("sd3_t5"))
    cond = generator.encode_prompts(PROMPTS)
    seen = []
    generator.pipeline.transformer.register_forward_pre_hook(
        lambda _m, _a, told: seen.append(told), with_kwargs=True
    )
    with torch.no_grad():
        generator.denoise("student", latents(), T, cond, guidance=3.0)
    (told,) = seen
    negative = generator.encode_negative(None, 2)
    assert torch.equal(told["encoder_hidden_states"], torch.cat([negative.embeds, cond.embeds]))
    assert torch.equal(told["pooled_projections"], torch.cat([negative.pooled, cond.pooled]))
    assert torch.equal(told["timestep"], torch.cat([1000 * T, 1000 * T]))


def test_pictures_are_scaled_and_shifted_as_by_the_pipeline():
    pipeline, generator = tiny_pipeline("sd3"), make_generator(tiny_pipeline("sd3"))
    assert generator.latent_shape == (16, 8, 8) and generator.image_size == (32, 32)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        mean = pipeline.vae.encode(images * 2 - 1).latent_dist.mean
        decoded = pipeline.vae.decode(latents() / 1.5305 + 0.0609).sample
    torch.testing.assert_close(generator.encode(images), (mean - 0.0609) * 1.5305)
    expected = (decoded / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(generator.decode(latents()), expected, rtol=1e-4, atol=1e-5)


def test_half_precision_ends_in_float32():
    rough = make_generator(tiny_pipeline("sd3"), train=FullTraining(), mixed_precision="bf16")
    cond = rough.encode_prompts(PROMPTS)
    found = rough.denoise("student", latents(), T, cond)
    found.raw.square().mean().backward()
    assert found.raw.dtype == torch.float32
    assert all(p.grad is not None for p in rough.trainable_parameters().values())
    assert 0 < difference(found.raw, raw(make_generator(tiny_pipeline("sd3")))) < 0.1
    whole = make_generator(tiny_pipeline("sd3_t5").to(torch.bfloat16), train=LoraTraining(rank=2))
    assert {p.dtype for p in whole.trainable_parameters().values()} == {torch.float32}
    assert difference(raw(whole), raw(make_generator(tiny_pipeline("sd3_t5")))) < 0.1


# --- roles and gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [LORA, FULL], ids=["lora", "full"])
@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_training_moves_the_student_and_nobody_else(family, train):
    roles = ("reference", "teacher", "ema")
    generator = make_generator(tiny_pipeline(family), train=train, roles=roles)
    before = {role: raw(generator, role) for role in generator.roles.names}
    disturb(generator)
    assert difference(raw(generator), before["student"]) > 1e-2
    assert all(torch.equal(raw(generator, role), before[role]) for role in roles)
    start, student = generator.roles.state("ema"), generator.trainable_state()
    start = {name: tensor.clone() for name, tensor in start.items()}
    generator.roles.ema_update(0.75)
    for name, tensor in generator.roles.state("ema").items():
        torch.testing.assert_close(tensor, 0.75 * start[name] + 0.25 * student[name])


@pytest.mark.parametrize("train", [LORA, FULL], ids=["lora", "full"])
@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_every_trainable_parameter_gets_a_gradient_and_no_other(family, train):
    generator = make_generator(tiny_pipeline(family), train=train, roles=("reference", "ema"))
    disturb(generator)  # away from B = 0, where A has no gradient
    cond = generator.encode_prompts(PROMPTS, grad=True)
    generator.denoise("student", latents(), T, cond).x0.square().mean().backward()
    own = generator.trainable_parameters()
    assert not [name for name, p in own.items() if p.grad is None or p.grad.abs().max() == 0]
    ids = {id(parameter) for parameter in own.values()}
    for module in generator.modules().values():
        assert all(p.grad is None for p in module.parameters() if id(p) not in ids)
    # what the last block does with its text tokens is thrown away; the T5 is never trained
    assert any("transformer_blocks.0.attn.add_q_proj" in name for name in own)
    assert not any("transformer_blocks.1.attn.add_q_proj" in name or "text_encoder_3" in name for name in own)
    assert any(name.startswith("text_encoder_2.") for name in own)


def test_the_default_adapters_are_on_the_attention_of_the_picture():
    generator = make_generator(tiny_pipeline("sd3"), train=LoraTraining(rank=2))
    names = set(generator.trainable_parameters())
    assert len(names) == 2 * 4 * 2 and all(".attn." in name and "add" not in name for name in names)
    with pytest.raises(
        UserError, match=r"'to_qq' is not in the transformer; did you mean 'to_q'.*to_add_out"
    ):
        make_generator(tiny_pipeline("sd3"), train=LoraTraining(target_modules=["to_qq"]))


@pytest.mark.parametrize("second_role", ["ema", "reference"])
@pytest.mark.parametrize("train", [LORA, FULL], ids=["lora", "full"])
def test_checkpointing_recomputes_under_the_role_of_the_forward_pass(train, second_role):
    def gradients(checkpointing):
        generator = make_generator(
            tiny_pipeline("sd3_t5").to(torch.float64), train=train, roles=("reference", "ema")
        )
        disturb(generator)
        if checkpointing:
            generator.enable_gradient_checkpointing()
        calls = []
        block = generator.roles.module("transformer", "student").transformer_blocks[0]
        block.register_forward_pre_hook(lambda *_: calls.append(generator.roles.current))
        cond = generator.encode_prompts(PROMPTS, grad=True)
        own = generator.denoise("student", latents(dtype=torch.float64), T, cond)
        other = generator.encode_prompts(PROMPTS, role=second_role)
        generator.denoise(second_role, own.x0, T / 2, other).raw.square().mean().backward()
        return {n: p.grad for n, p in generator.roles.parameters("student").items()}, calls

    expected, once = gradients(False)
    found, again = gradients(True)
    scale = max(gradient.abs().max() for gradient in expected.values())
    assert max((found[n] - expected[n]).abs().max() for n in expected) / scale < 1e-6
    assert len(again) == 2 * len(once) and again.count("student") == 2


# --- files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_a_trained_pipeline_loads_in_diffusers(family, tmp_path):
    generator = make_generator(tiny_pipeline(family), train=FULL)
    start = draw(generator.pipeline)
    disturb(generator)
    trained = draw(generator.pipeline)
    assert difference(trained, start) > 0.05
    folder = save_pipeline(generator, tmp_path / "out", spacing="trailing")
    without = {"text_encoder_3": None, "tokenizer_3": None} if family == "sd3" else {}
    loaded = diffusers.StableDiffusion3Pipeline.from_pretrained(folder, **without)
    assert type(loaded.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    assert difference(draw(loaded), trained) <= 1e-5
    again = load_generator(folder)
    assert (again.pipeline.text_encoder_3 is None) == (family == "sd3")
    assert difference(raw(again), raw(generator)) <= 1e-5


@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_a_lora_loads_in_plain_diffusers_and_is_a_start(family, tmp_path):
    base = tiny_folder(family, tmp_path / "base")
    generator = load_generator(base, train=LORA, roles=("ema",))
    start = draw(generator.pipeline)
    disturb(generator)
    trained = draw(generator.pipeline)
    assert difference(trained, start) > 0.05
    assert difference(draw(merged_pipeline(generator)), trained) <= 1e-5
    assert difference(draw(merged_pipeline(generator, role="ema")), start) <= 1e-5
    assert difference(draw(load_pipeline(save_pipeline(generator, tmp_path / "fused"))), trained) <= 1e-5

    folder = save_lora(generator, tmp_path / "lora")
    assert not (folder / KOHYA_FILE).exists()
    assert all(key.startswith(("transformer.", "text_encoder")) for key in load_file(folder / LORA_FILE))
    pipeline = tiny_pipeline(family)
    pipeline.load_lora_weights(str(folder))
    assert difference(draw(pipeline), trained) <= 1e-5

    second = load_generator(base, train=LoraTraining(rank=2), lora=folder, roles=("reference",))
    assert difference(draw(second.pipeline), trained) <= 1e-5
    disturb(second, seed=2)
    with second.roles.use("reference"):
        assert difference(draw(second.pipeline), trained) <= 1e-5
    both = tiny_pipeline(family)
    both.load_lora_weights(str(save_lora(second, tmp_path / "both")))
    assert difference(draw(both), draw(second.pipeline)) <= 1e-5 < difference(draw(both), trained)


def test_the_card_leaves_the_scheduler_as_it_is(tmp_path):
    generator = make_generator(tiny_pipeline("sd3"), train=LoraTraining(rank=2))
    how = Sampling(steps=7, guidance=3.0, spacing="trailing")
    text = model_card(tmp_path, generator, kind="lora", sampling=how, base_model="someone/sd3").read_text()
    assert "stable-diffusion-3" in text and "pipe.scheduler" not in text and "kohya" not in text
    assert "| 7 | 3 | FlowMatchEulerDiscreteScheduler | trailing | 32 x 32 |" in text
    assert "from diffusers import StableDiffusion3Pipeline\n" in text and "DDIM" not in text


# --- what is refused -------------------------------------------------------------------------------------


def test_what_does_not_go_with_a_transformer(tmp_path):
    with pytest.raises(UserError, match="embed_guidance adds an embedding.*this model has a transformer"):
        make_generator(tiny_pipeline("sd3"), train=FullTraining(embed_guidance=True))
    with pytest.raises(UserError, match="resolution is 36; this model needs a multiple of 8 pixels"):
        make_generator(tiny_pipeline("sd3"), resolution=36)
    with pytest.raises(UserError, match="resolution is 128; the positions of this model end at 64 pixels"):
        make_generator(tiny_pipeline("sd3"), resolution=128)
    assert make_generator(tiny_pipeline("sd3"), resolution=64).latent_shape == (16, 16, 16)
    with pytest.raises(UserError, match="a user adapter needs a UNet"):
        make_generator(tiny_pipeline("sd3"), train=UserTraining(embedding_dim=4))
    generator = make_generator(tiny_pipeline("sd3"))
    cond = replace(generator.encode_prompts(PROMPTS), user=torch.zeros(2, 1, 4))
    with pytest.raises(UserError, match="embeddings of users were given to a model that has no adapter"):
        generator.denoise("student", latents(), T, cond)
    with pytest.raises(UserError, match="a consistency sampler counts in the timesteps of a diffusion model"):
        merged_pipeline(generator, consistency=ConsistencySampler())
    with pytest.raises(UserError, match="spacing is 'leading'"):
        merged_pipeline(generator, spacing="leading")


def test_files_that_are_not_read(tmp_path):
    single = tmp_path / "sd3.safetensors"
    save_file({"model.diffusion_model.joint_blocks.0.x.weight": torch.ones(1)}, str(single))
    with pytest.raises(UserError, match="single file of Stable Diffusion 3.*diffusers folder"):
        load_generator(single)
    with pytest.raises(
        UserError, match="shapes of pipelines of class StableDiffusion3Pipeline are not supported"
    ):
        shaped_pipeline(str(tiny_folder("sd3", tmp_path / "folder")))
