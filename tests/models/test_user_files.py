"""Saved user adapters draw the same in plain diffusers, and come back as a student."""

from __future__ import annotations

from dataclasses import replace

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from unifl.errors import UserError
from unifl.models import (
    LoraTraining,
    Sampling,
    UserTraining,
    load_generator,
    load_user_adapter,
    make_generator,
    model_card,
    save_lora,
    save_user_adapter,
    user_training_of,
)
from unifl.models.user_files import USER_FILE
from unifl.randomness import Key
from unifl.sampling import sample
from unifl.testing import FAMILIES, tiny_folder, tiny_pipeline

USER = UserTraining(embedding_dim=6, tokens=3, scale=0.5)


def disturb(generator, *, seed=1, scale=0.3):
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in generator.trainable_parameters().values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=noise))


def draw(pipeline, user, *, adapters=1, guidance=3.0):
    """Two pictures for one user (1, n, e), as a program would that knows diffusers alone.

    It takes one user per call: embeddings are repeated for every prompt, and several would be mixed up.
    """
    pipeline.set_progress_bar_config(disable=True)
    embeds = torch.cat([torch.zeros_like(user), user]) if guidance > 1 else user
    return pipeline(
        ["a red circle", "a cat"],
        num_inference_steps=2,
        guidance_scale=guidance,
        ip_adapter_image_embeds=[embeds] * adapters,
        output_type="pt",
        generator=torch.Generator().manual_seed(0),
    ).images


def users(count=1, seed=0):
    return torch.randn(count, 2, 6, generator=torch.Generator().manual_seed(seed))


def loaded(base, folder):
    pipeline = diffusers.DiffusionPipeline.from_pretrained(base)
    pipeline.load_ip_adapter(str(folder), subfolder="", weight_name=USER_FILE, image_encoder_folder=None)
    return pipeline


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_diffusers_draws_the_same(family, tmp_path):
    base = tiny_folder(family, tmp_path / "base")
    generator = load_generator(base, train=USER)
    start = draw(generator.pipeline, users())
    disturb(generator)
    plain = loaded(base, save_user_adapter(generator, tmp_path / "user"))
    for guidance in (1.0, 3.0):
        trained = draw(generator.pipeline, users(), guidance=guidance)
        assert (draw(plain, users(), guidance=guidance) - trained).abs().max() <= 1e-5
    assert (draw(plain, users()) - start).abs().max() > 0.02
    assert (draw(plain, users()) - draw(plain, users(seed=1))).abs().max() > 0.02
    # at scale 0, and without the adapter, it is the model again
    plain.set_ip_adapter_scale(0.0)
    torch.testing.assert_close(draw(plain, users()), start, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_sampler_draws_what_diffusers_draws(family, tmp_path):
    base = tiny_folder(family, tmp_path / "base")
    generator = load_generator(base, train=USER, roles=("reference",))
    disturb(generator)
    plain = loaded(base, save_user_adapter(generator, tmp_path / "user"))
    plain.scheduler = diffusers.DDIMScheduler.from_config(
        plain.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
    )
    plain.set_progress_bar_config(disable=True)
    prompts, three = ["a red circle", "a cat", "two dogs"], users(3)
    ours = sample(generator, prompts, num_steps=4, guidance=3.0, users=three, batch_size=2)
    for index, prompt in enumerate(prompts):
        user = three[index : index + 1]
        theirs = plain(
            prompt,
            latents=Key(0, 0, (index,)).normal("sample", generator.latent_shape),
            num_inference_steps=4,
            guidance_scale=3.0,
            ip_adapter_image_embeds=[torch.cat([torch.zeros_like(user), user])],
            output_type="pt",
        ).images
        assert (ours[index] - theirs[0]).abs().max() < 1e-4
    assert (ours - sample(generator, prompts, num_steps=4, guidance=3.0)).abs().max() > 0.01


def test_the_state_dict_loads_into_a_bare_unet(tmp_path):
    generator = make_generator(tiny_pipeline("sdxl"), train=USER)
    disturb(generator)
    state = load_file(save_user_adapter(generator, tmp_path) / USER_FILE)
    parts = {
        part: {name.removeprefix(f"{part}."): t for name, t in state.items() if name.startswith(f"{part}.")}
        for part in ("image_proj", "ip_adapter")
    }
    unet = tiny_pipeline("sdxl").unet.requires_grad_(False)
    unet._load_ip_adapter_weights(parts)
    x_t, cond = torch.randn(2, 4, 8, 8), generator.encode_prompts(["a cat", "a dog"])
    added = {"text_embeds": cond.pooled, "time_ids": cond.time_ids, "image_embeds": [users(2)]}
    with torch.no_grad():
        found = unet(x_t, torch.tensor([499, 499]), cond.embeds, added_cond_kwargs=added).sample
        expected = generator.denoise(
            "student", x_t, torch.tensor([0.5, 0.5]), replace(cond, user=users(2))
        ).raw
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_ema_can_be_saved(tmp_path):
    base = tiny_folder("sd15", tmp_path / "base")
    generator = load_generator(base, train=USER, roles=("ema", "reference"))
    disturb(generator)
    generator.roles.ema_update(0.5)
    saved = loaded(base, save_user_adapter(generator, tmp_path / "ema", role="ema"))
    with generator.roles.use("ema"):
        expected = draw(generator.pipeline, users(), adapters=2)
    torch.testing.assert_close(draw(saved, users()), expected, rtol=0, atol=1e-5)
    assert (draw(generator.pipeline, users(), adapters=2) - expected).abs().max() > 1e-3
    with pytest.raises(UserError, match="'reference' is the model without an adapter"):
        save_user_adapter(generator, tmp_path / "none", role="reference")
    with pytest.raises(UserError, match="no role 'old'"):
        save_user_adapter(generator, tmp_path / "none", role="old")


def test_a_student_starts_from_a_file(tmp_path):
    base = tiny_folder("sd15", tmp_path / "base")
    generator = load_generator(base, train=USER)
    start = draw(generator.pipeline, users())
    disturb(generator)
    folder = save_user_adapter(generator, tmp_path / "user")
    expected = draw(generator.pipeline, users())
    # once with the settings that the file tells, once with another scale while training
    assert user_training_of(folder) == UserTraining(embedding_dim=6, tokens=3)
    for train in (user_training_of(folder / USER_FILE), replace(USER, scale=2.0)):
        other = load_generator(base, train=train, roles=("reference", "teacher"), seed=9)
        load_user_adapter(other, folder)
        assert (draw(other.pipeline, users()) - expected).abs().max() <= 1e-5
        with other.roles.use("reference"):
            torch.testing.assert_close(draw(other.pipeline, users()), start, rtol=0, atol=1e-6)
        again = load_file(save_user_adapter(other, tmp_path / "again") / USER_FILE)
        for name, tensor in load_file(folder / USER_FILE).items():
            torch.testing.assert_close(again[name], tensor)


def test_files_that_do_not_fit(tmp_path):
    generator = make_generator(tiny_pipeline("sd15"), train=USER)
    folder = save_user_adapter(generator, tmp_path / "user")
    for other in (
        make_generator(tiny_pipeline("sd15"), train=replace(USER, tokens=2)),
        make_generator(tiny_pipeline("sdxl"), train=USER),
    ):
        with pytest.raises(UserError, match="does not fit this model, first at.*user_training_of"):
            load_user_adapter(other, folder)
    with pytest.raises(UserError, match="there is no user adapter at"):
        load_user_adapter(generator, tmp_path / "missing")
    save_file({"image_proj.latents": torch.zeros(1)}, tmp_path / "plus.safetensors")
    with pytest.raises(UserError, match="is no user adapter: it has no image_proj"):
        user_training_of(tmp_path / "plus.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot be read as a safetensors file"):
        load_user_adapter(generator, tmp_path / "torn.safetensors")


def test_only_a_user_adapter_is_saved_as_one(tmp_path):
    generator = make_generator(tiny_pipeline("sd15"), train=LoraTraining(rank=2))
    with pytest.raises(UserError, match="no user adapter.*UserTraining"):
        save_user_adapter(generator, tmp_path)
    with pytest.raises(UserError, match="not trained with LoRA"):
        save_lora(make_generator(tiny_pipeline("sd15"), train=USER), tmp_path)


def test_a_full_disk_is_noticed_before_writing(tmp_path, monkeypatch):
    generator = make_generator(tiny_pipeline("sd15"), train=USER)
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("unifl.disk.shutil.disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="not enough room"):
        save_user_adapter(generator, tmp_path / "user")
    assert not (tmp_path / "user").exists()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_example_of_the_card_runs(guidance, tmp_path):
    base = tiny_folder("sd15", tmp_path / "base")
    generator = load_generator(base, train=USER)
    disturb(generator)
    folder = save_user_adapter(generator, tmp_path / "out")
    how = Sampling(steps=4, guidance=guidance, spacing="trailing")
    text = model_card(folder, generator, kind="user", sampling=how).read_text()
    assert "ip-adapter" in text.split("---\n")[1] and "A text-to-image user adapter trained" in text
    code = text.split("```python\n")[1].split("```")[0]
    code = code.replace("path/to/this/folder", str(folder)).replace("path/to/base-model", str(base))
    scope = {}
    exec(code, scope)
    assert scope["image"].size == (32, 32)
    assert scope["pipe"].unet.config.encoder_hid_dim_type == "ip_image_proj"
