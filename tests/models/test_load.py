from __future__ import annotations

import json
import time

import pytest
import torch
from safetensors.torch import save_file

from unifl.errors import UserError
from unifl.models import FullTraining, LoraTraining, load_generator, make_generator, save_lora
from unifl.testing import FAMILIES, tiny_folder, tiny_pipeline


@pytest.mark.parametrize("family", FAMILIES)
def test_folders_of_every_family(family, tmp_path):
    generator = load_generator(tiny_folder(family, tmp_path))
    assert generator.kind == ("v_prediction" if family == "sd21" else "epsilon")
    assert generator.is_xl == (family == "sdxl")
    assert generator.latent_shape == (4, 8, 8) and generator.image_size == (32, 32)
    assert generator.num_train_timesteps == 1000 and generator.steps_offset == 1
    assert generator.trainable_parameters() == {}
    assert not any(p.requires_grad for m in generator.modules().values() for p in m.parameters())
    assert not any(m.training for m in generator.modules().values())


@pytest.mark.parametrize("source", ["/no/such/model", "./nothing", "folder/sub/model", "model.safetensors"])
def test_a_missing_path_is_an_error_at_once(source):
    start = time.perf_counter()
    with pytest.raises(UserError, match="no model at .*check the path"):
        load_generator(source)
    assert time.perf_counter() - start < 1


def test_a_hub_name_that_cannot_be_had_says_so():
    with pytest.raises(UserError, match="no folder somebody/something here.*hub"):
        load_generator("somebody/something")


@pytest.mark.parametrize("written", ["runs/reffl", "runs/refl@4"])
def test_a_folder_that_is_nearly_called_so_is_asked_for(tmp_path, monkeypatch, written):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/refl").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"no folder {written} here.*; did you mean runs/refl\? "):
        load_generator(written)


def test_a_folder_that_is_no_pipeline(tmp_path):
    with pytest.raises(UserError, match="not a diffusers folder.*model_index.json"):
        load_generator(tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as the index"):
        load_generator(tmp_path)


def test_an_unsupported_pipeline_is_named_with_those_that_are(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    message = (
        "FluxPipeline are not supported; supported are StableDiffusionPipeline, StableDiffusionXLPipeline"
    )
    with pytest.raises(UserError, match=message):
        load_generator(tmp_path)
    with pytest.raises(UserError, match="pipelines of class object are not supported"):
        make_generator(object())


def test_a_damaged_folder(tmp_path):
    folder = tiny_folder("sd15", tmp_path)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_generator(folder)


def test_loras_that_are_not_there_or_do_not_fit(tmp_path):
    pipeline = tiny_pipeline("sd15")
    with pytest.raises(UserError, match="no LoRA at"):
        make_generator(pipeline, train=LoraTraining(), lora=tmp_path / "missing.safetensors")
    save_file({"unet.somewhere.lora_A.weight": torch.ones(2, 2)}, str(tmp_path / "odd.safetensors"))
    with pytest.raises(UserError, match="of its family"):
        make_generator(pipeline, train=LoraTraining(), lora=tmp_path / "odd.safetensors")


def test_a_pipeline_with_adapters_is_refused(tmp_path):
    first = make_generator(tiny_pipeline("sd15"), train=LoraTraining(rank=2))
    with torch.no_grad():
        for parameter in first.trainable_parameters().values():
            parameter.fill_(0.2)
    lora = save_lora(first, tmp_path)
    pipeline = tiny_pipeline("sd15")
    pipeline.load_lora_weights(str(lora), adapter_name="mine")
    for train in (None, LoraTraining(rank=2), FullTraining()):
        with pytest.raises(UserError, match="carries LoRA adapters already.*`lora=`.*fuse_lora"):
            make_generator(pipeline, train=train)
    # what the message says to do keeps the LoRA
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    fused = make_generator(pipeline, train=LoraTraining(rank=2))
    torch.testing.assert_close(_raw(fused), _raw(first), rtol=0, atol=1e-5)
    assert (_raw(fused) - _raw(make_generator(tiny_pipeline("sd15")))).abs().max() > 0.01


@torch.no_grad()
def _raw(generator):
    cond = generator.encode_prompts(["a cat"])
    return generator.denoise("student", torch.ones(1, 4, 8, 8), torch.tensor([0.5]), cond).raw


def test_full_training_needs_float32(tmp_path):
    with pytest.raises(UserError, match=r"load them in float32 and set mixed_precision"):
        load_generator(tiny_folder("sd15", tmp_path), train=FullTraining(), dtype=torch.bfloat16)
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(UserError, match=r"load them in float32 and set mixed_precision"):
            make_generator(tiny_pipeline("sd15").to(dtype), train=FullTraining())


def test_lora_on_float16_needs_bf16_evaluations():
    for mixed_precision in ("no", "fp16"):
        with pytest.raises(UserError, match="weights in bfloat16, or set mixed_precision to bf16"):
            make_generator(
                tiny_pipeline("sd15").to(torch.float16),
                train=LoraTraining(rank=2),
                mixed_precision=mixed_precision,
            )
    half = tiny_pipeline("sd15").to(torch.float16)
    make_generator(half, train=LoraTraining(rank=2), mixed_precision="bf16")
    make_generator(tiny_pipeline("sd15").to(torch.float16))  # drawing alone loses nothing


def test_a_pipeline_stays_where_it_is():
    left = make_generator(tiny_pipeline("sd15").to("meta"))
    moved = make_generator(tiny_pipeline("sd15"), device="meta")
    assert [generator.pipeline.unet.device.type for generator in (left, moved)] == ["meta", "meta"]
    assert left.device.type == "cpu"  # shapes live nowhere: what is computed beside them is on the CPU


def test_the_autoencoder_that_overflows_in_float16_is_float32(tmp_path):
    loaded = load_generator(tiny_folder("sdxl", tmp_path), dtype=torch.float16)
    made = make_generator(tiny_pipeline("sdxl").to(torch.float16))
    for generator in (loaded, made):
        assert generator.pipeline.unet.dtype == torch.float16
        assert generator.pipeline.vae.dtype == torch.float32  # its config asks for it
    fixed = tiny_pipeline("sdxl").to(torch.float16)
    fixed.vae.register_to_config(force_upcast=False)
    assert make_generator(fixed).pipeline.vae.dtype == torch.float16


# --- single files ----------------------------------------------------------------------------------------


def renamed(state, prefix, names):
    """Applies the longest matching renaming of path heads to every key."""
    result = {}
    for key, tensor in state.items():
        head = max((old for old in names if key.startswith(f"{old}.")), key=len, default="")
        result[prefix + (names[head] + key[len(head) :] if head else key)] = tensor.contiguous()
    return result


RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def original_unet(state):
    """Key names of the original Stable Diffusion code, for two levels with one residual block each."""
    names = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "mid_block.attentions.0": "middle_block.1",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv",
        "down_blocks.0.attentions.0": "input_blocks.1.1",
    }
    resnets = {"mid_block.resnets.0": "middle_block.0", "mid_block.resnets.1": "middle_block.2"}
    for level in range(2):
        resnets[f"down_blocks.{level}.resnets.0"] = f"input_blocks.{2 * level + 1}.0"
        for block in range(2):
            resnets[f"up_blocks.{level}.resnets.{block}"] = f"output_blocks.{2 * level + block}.0"
            names[f"up_blocks.{level}.attentions.{block}"] = f"output_blocks.{2 * level + block}.1"
    names |= {f"{old}.{a}": f"{new}.{b}" for old, new in resnets.items() for a, b in RESNET.items()}
    return renamed(state, "model.diffusion_model.", names)


def original_vae(state):
    names = {}
    for part in ("encoder", "decoder"):
        middle = {"resnets.0": "block_1", "resnets.1": "block_2"}
        attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
        names |= {f"{part}.mid_block.{a}": f"{part}.mid.{b}" for a, b in middle.items()}
        names |= {
            f"{part}.mid_block.attentions.0.{a}": f"{part}.mid.attn_1.{b}" for a, b in attention.items()
        }
        names[f"{part}.conv_norm_out"] = f"{part}.norm_out"
    for level in range(3):
        names[f"encoder.down_blocks.{level}.downsamplers.0"] = f"encoder.down.{level}.downsample"
        names[f"decoder.up_blocks.{level}.upsamplers.0"] = f"decoder.up.{2 - level}.upsample"
        for block in range(2):
            for old, new in (
                (f"encoder.down_blocks.{level}.resnets.{block}", f"encoder.down.{level}.block.{block}"),
                (f"decoder.up_blocks.{level}.resnets.{block}", f"decoder.up.{2 - level}.block.{block}"),
            ):
                names |= {old: new, f"{old}.conv_shortcut": f"{new}.nin_shortcut"}
    attention = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")
    state = {k: t[:, :, None, None] if k.endswith(attention) else t for k, t in state.items()}
    return renamed(state, "first_stage_model.", names)


def original_checkpoint(pipeline, path):
    text = {
        f"cond_stage_model.transformer.text_model.{k}": t
        for k, t in pipeline.text_encoder.state_dict().items()
    }
    unet, vae = original_unet(pipeline.unet.state_dict()), original_vae(pipeline.vae.state_dict())
    save_file({**unet, **vae, **text}, str(path))
    return path


def test_single_file_with_local_configs(tmp_path):
    pipeline = tiny_pipeline("sd15", seed=1)
    path = original_checkpoint(pipeline, tmp_path / "model.safetensors")
    configs = tiny_folder("sd15", tmp_path / "configs", seed=2)
    generator = load_generator(path, config=str(configs), train=LoraTraining(rank=2))
    cond = generator.encode_prompts(["a cat"])
    with torch.no_grad():
        expected = pipeline.unet(torch.ones(1, 4, 8, 8), 499, cond.embeds).sample
        got = generator.denoise("student", torch.ones(1, 4, 8, 8), torch.tensor([0.5]), cond)
    torch.testing.assert_close(got.raw, expected, rtol=0, atol=2e-6)
    for name in ("vae", "text_encoder"):
        loaded, own = getattr(generator.pipeline, name).state_dict(), getattr(pipeline, name).state_dict()
        assert loaded.keys() == own.keys() and all(torch.equal(loaded[key], own[key]) for key in own)


def test_single_file_without_configs_or_network_says_what_to_set(tmp_path):
    path = original_checkpoint(tiny_pipeline("sd15"), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="set `config` to a local diffusers folder"):
        load_generator(path)


def test_files_that_are_no_checkpoint(tmp_path):
    lora = tmp_path / "lora.safetensors"
    save_file({"unet.x.lora_A.weight": torch.ones(1)}, str(lora))
    with pytest.raises(UserError, match="no complete Stable Diffusion checkpoint"):
        load_generator(lora)
    lora.write_bytes(b"\0" * 20)
    with pytest.raises(UserError, match="cannot be read as a safetensors file"):
        load_generator(lora)
    pickle = tmp_path / "model.ckpt"
    pickle.write_bytes(b"x")
    with pytest.raises(UserError, match=r"not a \.safetensors file"):
        load_generator(pickle)
