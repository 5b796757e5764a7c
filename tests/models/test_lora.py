from __future__ import annotations

import pytest
import torch

from unifl.errors import UserError
from unifl.models import LoraTraining, load_generator, make_generator
from unifl.testing import tiny_pipeline


def adapted(**settings):
    generator = make_generator(tiny_pipeline(settings.pop("family", "sd15")), train=LoraTraining(**settings))
    return set(generator.trainable_parameters())


def test_attention_of_the_unet_is_the_default():
    names = adapted(rank=2)
    assert all(name.startswith("unet.") and ".attn" in name for name in names)
    assert len(names) == 4 * 2 * 2 * 4  # attention blocks, self and cross, A and B, projections


def test_convolutions_and_text_encoder_are_added_on_request():
    assert any("resnets.0.conv1" in name for name in adapted(rank=2, conv=True))
    names = adapted(rank=2, text_encoder=True, family="sdxl")
    assert any(name.startswith("text_encoder.encoder.layers.0") for name in names)
    # SDXL reads the first encoder's penultimate layer: an adapter on the last one would never move
    assert not any(name.startswith("text_encoder.encoder.layers.1") for name in names)
    assert any("layers.1" in name for name in names if name.startswith("text_encoder_2."))


def test_alpha_scales_the_update():
    outputs = []
    for alpha in (None, 4.0, 8.0):
        generator = make_generator(tiny_pipeline("sd15"), train=LoraTraining(rank=4, alpha=alpha))
        layer = generator.pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
        with torch.no_grad():
            layer.lora_B["student"].weight.fill_(0.1)
            outputs.append(layer(torch.ones(1, 16)) - layer.base_layer(torch.ones(1, 16)))
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[2], 2 * outputs[1])


@pytest.mark.parametrize(
    ("wrong", "near"), [("to_qq", "to_q"), ("attn3.to_k", "attn2.to_k"), ("conv_1", "conv1")]
)
def test_wrong_targets_name_near_ones(wrong, near):
    with pytest.raises(UserError, match=rf"'{wrong}' is not in the UNet; did you mean '{near}'"):
        adapted(target_modules=["to_v", wrong])


def test_rank_and_targets_must_make_sense():
    with pytest.raises(UserError, match="LoRA rank is 0"):
        adapted(rank=0)
    with pytest.raises(UserError, match="no target modules"):
        adapted(target_modules=[])


def test_load_generator_checks_before_training(tmp_path):
    with pytest.raises(UserError, match="no model at"):
        load_generator(tmp_path / "missing", train=LoraTraining())
