from __future__ import annotations

import shutil
from collections import namedtuple

import diffusers
import pytest
import torch
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file

from unifl.errors import UserError
from unifl.models import (
    FullTraining,
    LoraTraining,
    load_generator,
    load_pipeline,
    make_generator,
    merged_pipeline,
    save_lora,
    save_pipeline,
)
from unifl.models.save import KOHYA_FILE, LORA_FILE
from unifl.testing import FAMILIES, tiny_folder, tiny_pipeline

LORA = LoraTraining(rank=4, alpha=6, text_encoder=True, conv=True)


def disturb(generator, *, seed=1):
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in generator.trainable_parameters().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))


def draw(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    return pipeline(
        "a red circle", num_inference_steps=2, guidance_scale=3.0, output_type="pt", generator=noise
    ).images


def under_equal_conditions(loaded, pipeline):
    """The loaded pipeline, with weights where torch put them and not within a mapped file, frozen where the other is.

    torch picks another kernel for weights that are not aligned or need a gradient; that costs the last bit.
    """
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if getattr(pipeline, name, None) is not None:
            own, other = getattr(pipeline, name), getattr(loaded, name)
            for a, b in zip(own.parameters(), other.parameters(), strict=True):
                assert torch.equal(a, b)
                b.data = b.data.clone()
                b.requires_grad_(a.requires_grad)
    return loaded


def difference(a, b):
    return (a - b).abs().max().item()


@pytest.mark.parametrize("family", FAMILIES)
def test_full_pipeline_loads_with_identical_output(family, tmp_path):
    generator = make_generator(tiny_pipeline(family), train=FullTraining(text_encoder=True), roles=())
    start = draw(generator.pipeline)
    disturb(generator)
    trained = draw(generator.pipeline)
    assert difference(trained, start) > 0.05
    loaded = diffusers.DiffusionPipeline.from_pretrained(save_pipeline(generator, tmp_path / "out"))
    assert type(loaded) is type(generator.pipeline)
    assert difference(draw(loaded), trained) <= 2e-6
    assert difference(draw(under_equal_conditions(loaded, generator.pipeline)), trained) == 0
    assert not list((tmp_path / "out").rglob("*.bin"))


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_loads_in_diffusers_fused_and_in_both_formats(family, tmp_path):
    base = tiny_folder(family, tmp_path / "base")
    generator = load_generator(base, train=LORA)
    start = draw(generator.pipeline)
    disturb(generator)
    trained = draw(generator.pipeline)
    assert difference(trained, start) > 0.05

    fused = diffusers.DiffusionPipeline.from_pretrained(save_pipeline(generator, tmp_path / "fused"))
    assert difference(draw(fused), trained) <= 1e-5
    assert "lora" not in " ".join(fused.unet.state_dict())

    folder = save_lora(generator, tmp_path / "lora")
    for options in ({}, {"weight_name": KOHYA_FILE}):
        plain = diffusers.DiffusionPipeline.from_pretrained(base)
        plain.load_lora_weights(str(folder), **options)
        assert difference(draw(plain), trained) <= 1e-5


def test_merging_leaves_the_generator_alone():
    generator = make_generator(tiny_pipeline("sd15"), train=LORA, roles=("reference", "ema"))
    start = draw(generator.pipeline)
    disturb(generator)
    trained = draw(generator.pipeline)
    assert difference(draw(merged_pipeline(generator)), trained) <= 1e-5
    assert difference(draw(merged_pipeline(generator, role="ema")), start) <= 1e-5
    assert difference(draw(merged_pipeline(generator, role="reference")), start) <= 1e-5
    assert difference(draw(generator.pipeline), trained) == 0
    merged = merged_pipeline(generator)
    assert merged.vae is generator.pipeline.vae
    assert merged.unet.conv_norm_out.weight is generator.pipeline.unet.conv_norm_out.weight


def test_ema_can_be_saved(tmp_path):
    base = tiny_folder("sd15", tmp_path / "base")
    for train in (LORA, FullTraining()):
        generator = load_generator(base, train=train, roles=("ema",))
        disturb(generator)
        generator.roles.ema_update(0.5)
        generator.load_trainable_state(
            {n: torch.zeros_like(t) for n, t in generator.trainable_state().items()}
        )
        folder = save_pipeline(generator, tmp_path / train.kind, role="ema")
        generator.load_trainable_state({n: t.clone() for n, t in generator.roles.state("ema").items()})
        assert difference(draw(load_pipeline(folder)), draw(generator.pipeline)) <= 1e-5


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_starting_from_a_lora(family, tmp_path):
    base = tiny_folder(family, tmp_path / "base")
    first = load_generator(base, train=LORA)
    disturb(first)
    start = draw(first.pipeline)
    lora = save_lora(first, tmp_path / "first")

    # fewer layers and another rank than the user's LoRA
    train = LoraTraining(rank=2, target_modules=["to_q", "to_v"])
    generator = load_generator(base, train=train, lora=lora, roles=("reference", "ema"))
    assert difference(draw(generator.pipeline), start) == 0
    assert not any("start" in name for name in generator.trainable_parameters())
    disturb(generator, seed=2)
    trained = draw(generator.pipeline)
    assert difference(trained, start) > 0.01
    for role in ("reference", "ema"):
        with generator.roles.use(role):
            assert difference(draw(generator.pipeline), start) == 0

    # one file holds both, so that nobody needs to know what it was made of
    both = save_lora(generator, tmp_path / "both")
    for options in ({}, {"weight_name": KOHYA_FILE}):
        plain = load_pipeline(base)
        plain.load_lora_weights(str(both), **options)
        assert difference(draw(plain), trained) <= 1e-5
    assert difference(draw(load_pipeline(save_pipeline(generator, tmp_path / "fused"))), trained) <= 1e-5


def test_full_training_starts_from_a_lora_by_fusing_it(tmp_path):
    base = tiny_folder("sd15", tmp_path / "base")
    first = load_generator(base, train=LORA)
    disturb(first)
    lora = save_lora(first, tmp_path / "first")
    generator = load_generator(base, train=FullTraining(), lora=lora / LORA_FILE)
    assert difference(draw(generator.pipeline), draw(first.pipeline)) <= 1e-5
    assert not any("lora" in name for name in generator.trainable_parameters())


def test_kohya_keys_are_those_of_diffusers_converter(tmp_path):
    generator = make_generator(
        tiny_pipeline("sdxl"), train=LoraTraining(rank=4, conv=True, text_encoder=True)
    )
    disturb(generator)
    saved = load_file(save_lora(generator, tmp_path) / KOHYA_FILE)
    expected = {}
    for name in ("unet", "text_encoder", "text_encoder_2"):
        state = get_peft_model_state_dict(getattr(generator.pipeline, name), adapter_name="student")
        prefix = {"unet": "unet.", "text_encoder": "text_encoder.text_model."}.get(name, f"{name}.")
        expected |= convert_state_dict_to_kohya({prefix + key: tensor for key, tensor in state.items()})
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[key], expected[key].to(saved[key].dtype)) for key in saved)
    block = "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    assert f"lora_unet_{block}.lora_down.weight" in saved
    assert "lora_te2_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight" in saved


def test_kohya_prefix_and_alpha_of_stable_diffusion(tmp_path):
    generator = make_generator(tiny_pipeline("sd15"), train=LoraTraining(rank=4, alpha=6, text_encoder=True))
    saved = load_file(save_lora(generator, tmp_path) / KOHYA_FILE)
    assert {key.split("_text_model")[0] for key in saved if key.startswith("lora_te")} == {"lora_te"}
    assert {tensor.item() for key, tensor in saved.items() if key.endswith(".alpha")} == {6.0}


def test_metadata_carries_rank_and_alpha(tmp_path):
    generator = make_generator(tiny_pipeline("sd15"), train=LoraTraining(rank=4, alpha=6))
    save_lora(generator, tmp_path)
    plain = tiny_pipeline("sd15")
    plain.load_lora_weights(str(tmp_path), adapter_name="x")
    config = plain.unet.peft_config["x"]
    assert (config.r, config.lora_alpha) == (4, 6)


def test_saving_lora_needs_adapters(tmp_path):
    with pytest.raises(UserError, match="not trained with LoRA"):
        save_lora(make_generator(tiny_pipeline("sd15"), train=FullTraining(), roles=()), tmp_path)


@pytest.mark.parametrize(
    ("save", "train"), [(save_pipeline, LORA), (save_pipeline, FullTraining()), (save_lora, LORA)]
)
def test_a_role_that_was_not_made_is_not_saved_as_another(save, train, tmp_path):
    generator = make_generator(tiny_pipeline("sd15"), train=train)
    with pytest.raises(UserError, match="no role 'ema' here"):
        save(generator, tmp_path / "out", role="ema")
    assert not (tmp_path / "out").exists()


def test_the_reference_without_a_lora_has_none_to_save(tmp_path):
    generator = make_generator(tiny_pipeline("sd15"), train=LORA, roles=("reference",))
    with pytest.raises(UserError, match="'reference' is the model without any LoRA; save the student"):
        save_lora(generator, tmp_path / "out", role="reference")
    assert not (tmp_path / "out").exists()


def test_dora_cannot_be_stacked(tmp_path):
    first = tiny_pipeline("sd15")
    first.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], use_dora=True))
    first.save_lora_weights(
        str(tmp_path / "dora"),
        unet_lora_layers=get_peft_model_state_dict(first.unet, adapter_name="default"),
        unet_lora_adapter_metadata=first.unet.peft_config["default"].to_dict(),
    )
    generator = make_generator(tiny_pipeline("sd15"), train=LoraTraining(rank=2), lora=tmp_path / "dora")
    with pytest.raises(UserError, match="DoRA.*save the full pipeline"):
        save_lora(generator, tmp_path)
    save_pipeline(generator, tmp_path / "full")


@pytest.mark.parametrize("save", [save_pipeline, save_lora])
def test_a_full_disk_is_noticed_before_anything_is_written(save, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10**6, 10**6, 10))
    generator = make_generator(tiny_pipeline("sd15"), train=LoraTraining(rank=2))
    with pytest.raises(UserError, match="not enough room on the disk"):
        save(generator, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_saved_pipeline_ships_the_scheduler_to_use(tmp_path):
    generator = make_generator(tiny_pipeline("sdxl"), train=LoraTraining(rank=2))
    loaded = load_pipeline(save_pipeline(generator, tmp_path, spacing="trailing"))
    assert type(loaded.scheduler).__name__ == "DDIMScheduler"
    loaded.scheduler.set_timesteps(4)
    assert loaded.scheduler.timesteps.tolist() == [999, 749, 499, 249]
    assert type(generator.pipeline.scheduler).__name__ == "EulerDiscreteScheduler"
