from __future__ import annotations

import time

import diffusers
import pytest
import torch

from unifl.testing import FAMILIES, FLOW_FAMILIES, tiny_folder, tiny_pipeline


@pytest.mark.parametrize("family", FAMILIES + FLOW_FAMILIES)
def test_builds_quickly_and_draws(family):
    tiny_pipeline(family)  # the first one pays for lazy imports
    seconds = []
    for _ in range(3):  # the best of three, as a busy machine slows single ones
        start = time.process_time()
        pipeline = tiny_pipeline(family)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.5
    images = pipeline("a red circle", num_inference_steps=2, output_type="pt").images
    assert images.shape == (1, 3, 32, 32)
    assert images.std() > 0.02


@pytest.mark.parametrize("family", FAMILIES + FLOW_FAMILIES)
def test_folder_loads_in_diffusers_with_the_same_weights(family, tmp_path):
    folder = tiny_folder(family, tmp_path / family, seed=3)
    without = {"text_encoder_3": None, "tokenizer_3": None} if family == "sd3" else {}
    loaded = diffusers.DiffusionPipeline.from_pretrained(folder, **without)
    built = tiny_pipeline(family, seed=3)
    for name in ("transformer" if family in FLOW_FAMILIES else "unet", "vae", "text_encoder"):
        pairs = zip(getattr(built, name).parameters(), getattr(loaded, name).parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    prompt = "a photo of a small red circle!"
    assert loaded.tokenizer(prompt).input_ids == built.tokenizer(prompt).input_ids


def test_seed_decides_the_weights_and_nothing_else_changes():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (tiny_pipeline("sd15", seed=seed).unet.conv_in.weight for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_families_differ_as_the_real_ones_do():
    assert tiny_pipeline("sd15").scheduler.config.prediction_type == "epsilon"
    assert tiny_pipeline("sd21").scheduler.config.prediction_type == "v_prediction"
    assert tiny_pipeline("sdxl").unet.config.addition_embed_type == "text_time"
    assert tiny_pipeline("sd3").scheduler.config.shift == 3.0 and tiny_pipeline("sd3").text_encoder_3 is None
    assert tiny_pipeline("sd3").vae.config.shift_factor > 0
    with_t5 = tiny_pipeline("sd3_t5")
    red, blue = with_t5.tokenizer_3(["red circle", "blue circle"]).input_ids
    assert red != blue and red[-7:] == blue[-7:]  # one piece a character, and the end of the text


def test_tokenizer_tells_prompts_apart():
    tokenizer = tiny_pipeline("sd15").tokenizer
    red, blue = tokenizer("a red circle").input_ids, tokenizer("a blue circle").input_ids
    assert red != blue
    assert len(red) == 5  # begin, three whole words, end
