"""Reward models: what they are made of, and that a folder gives back the same."""

from __future__ import annotations

import json
import math

import pytest
import torch
import transformers as hf
from scorers.tiny_scorers import PROCESSOR, SIDE, clip, spread

from unifl.errors import UserError
from unifl.feedback import require_gradient
from unifl.feedback.latent_proxy import LatentProxyConfig
from unifl.feedback.reward_models import (
    RewardModelConfig,
    is_reward_model,
    load_reward_model,
    make_reward_model,
    save_reward_model,
)
from unifl.feedback.reward_models.backbones import TIME_CHANNELS, time_waves, unlock_last
from unifl.feedback.scorers.looking import Looking, looking_of, settings_of

PROMPTS = ["a red circle", "two dogs on a bench"]
LATENTS = LatentProxyConfig(
    channels=4,
    size=8,
    tower="resnet",
    width=8,
    depth=2,
    embedding=12,
    text="hashed",
    text_width=16,
    text_depth=1,
)


def pictures(n=2, side=SIDE, channels=3):
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    for kind, make in (("clip", clip), ("siglip", _siglip), ("blip", _blip)):
        make(folder / kind)
    return folder


def _tokenizer(folder):
    from unifl.testing import tiny_pipeline

    tokenizer = tiny_pipeline("sd15").tokenizer
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return tokenizer


_SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def _siglip(folder):
    folder.mkdir()
    vocabulary = {"vocab_size": len(_tokenizer(folder)), "max_position_embeddings": 64}
    vision = {**_SIZES, "image_size": SIDE, "patch_size": 8}
    config = hf.SiglipConfig(
        text_config={**_SIZES, **vocabulary, "projection_size": 16}, vision_config=vision
    )
    torch.manual_seed(0)
    spread(hf.SiglipModel(config)).save_pretrained(folder)


def _blip(folder):
    folder.mkdir()
    text = {
        **_SIZES,
        "vocab_size": len(_tokenizer(folder)),
        "encoder_hidden_size": 16,
        "max_position_embeddings": 64,
    }
    vision = {**_SIZES, "image_size": SIDE, "patch_size": 8}
    config = hf.BlipConfig(
        text_config=text, vision_config=vision, projection_dim=16, image_text_hidden_size=8
    )
    torch.manual_seed(0)
    spread(hf.BlipForImageTextRetrieval(config)).save_pretrained(folder)


def config_of(kind, bases, **changes):
    base = str(bases / kind) if kind in ("clip", "siglip", "blip") else None
    latents = LATENTS if kind == "latent" else None
    return RewardModelConfig(backbone=kind, base=base, latents=latents, **changes)


def inputs_of(kind):
    return pictures(channels=4, side=8) if kind == "latent" else pictures()


@pytest.mark.parametrize("kind", ["small", "clip", "siglip", "blip", "latent"])
def test_a_folder_opens_as_the_same_feedback(kind, bases, tmp_path):
    model = make_reward_model(
        config_of(kind, bases, train_blocks=1 if kind in ("clip", "siglip", "blip") else 0)
    )
    with torch.no_grad():
        for parameter in model.parameters():  # as if it had been trained
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    expected = model.eval()(inputs_of(kind), PROMPTS).detach()
    assert expected.std() > 0
    folder = save_reward_model(model, tmp_path / "reward", name="mine")
    assert is_reward_model(folder) and not is_reward_model(tmp_path)
    reward = load_reward_model(folder)
    torch.testing.assert_close(reward(inputs_of(kind), PROMPTS), expected, rtol=1e-5, atol=1e-5)
    assert (reward.name, reward.space) == ("mine", "latent" if kind == "latent" else "pixel")
    require_gradient(reward, method="refl", example=inputs_of(kind), space=reward.space)
    assert not any(parameter.requires_grad for parameter in reward.network.parameters())
    # the prompt is read, and rows do not depend on their neighbours
    assert (reward(inputs_of(kind), PROMPTS[::-1]) != expected).all()
    torch.testing.assert_close(reward(inputs_of(kind)[1:], PROMPTS[1:]), expected[1:], rtol=1e-4, atol=1e-5)


def test_cosine_starts_as_what_the_towers_know(bases):
    model = make_reward_model(config_of("clip", bases, head="cosine", dropout=0.0))
    from unifl.feedback.scorers import open_scorer

    pick = open_scorer("pickscore", weights=str(bases / "clip"), base=str(bases / "clip"))
    torch.testing.assert_close(model(pictures(), PROMPTS), pick(pictures(), PROMPTS))
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names == ["head.log_scale"]


def test_blip_reads_the_picture_through_its_words(bases):
    model = make_reward_model(config_of("blip", bases)).eval()
    inner = model.backbone.model
    words = model.backbone.tokenizer(
        PROMPTS, padding="max_length", truncation=True, max_length=35, return_tensors="pt"
    )
    shown = model.backbone.looking(pictures())
    answer = inner(input_ids=words.input_ids, attention_mask=words.attention_mask, pixel_values=shown)
    matched = inner.itm_head(model.features(pictures(), PROMPTS))
    torch.testing.assert_close(matched, answer.itm_score, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("blocks", "expected"), [(0, set()), (1, {"1"}), (-1, {"0", "1"})])
def test_last_blocks_train_with_what_follows_them(blocks, expected, bases):
    model = hf.CLIPModel.from_pretrained(bases / "clip")
    unlock_last(model, blocks)
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for tower in ("vision_model", "text_model"):
        inside = {
            name.split(".layers.")[1][0] for name in trains if name.startswith(f"{tower}.encoder.layers.")
        }
        assert inside == expected
    assert ("visual_projection.weight" in trains) == (blocks != 0)
    assert any("embeddings" in name for name in trains) == (blocks == -1)
    assert "logit_scale" not in trains


def test_a_text_tower_that_trains_gets_a_gradient_and_is_not_remembered(bases):
    model = make_reward_model(config_of("clip", bases, head="cosine", train_blocks=1))
    model(pictures(), PROMPTS).sum().backward()
    text = dict(model.backbone.towers.model.text_model.named_parameters())
    slope = text["encoder.layers.1.mlp.fc2.weight"].grad
    assert slope is not None and slope.abs().max() > 0
    assert not model.backbone.towers._texts


def test_time_is_seen_and_zero_is_clean(bases, tmp_path):
    model = make_reward_model(config_of("latent", bases, timed=True)).eval()
    latents, t = inputs_of("latent"), torch.tensor([0.3, 0.9])
    clean = model(latents, PROMPTS)
    torch.testing.assert_close(model(latents, PROMPTS, torch.zeros(2)), clean)
    assert ((model(latents, PROMPTS, t) - clean).abs() > 1e-5).all()
    reward = load_reward_model(save_reward_model(model, tmp_path / "timed", name="timed"))
    torch.testing.assert_close(reward(latents, PROMPTS, t), model(latents, PROMPTS, t).detach())
    with pytest.raises(UserError, match="knows no time"):
        make_reward_model(config_of("latent", bases))(latents, PROMPTS, t)


def test_waves_tell_times_apart():
    waves = time_waves(torch.tensor([0.0, 0.5, 1.0]))
    assert waves.shape == (3, TIME_CHANNELS)
    assert waves[0].tolist() == pytest.approx([0, 0, 0, 0, 1, 1, 1, 1], abs=1e-6)
    assert waves[1, 0] == pytest.approx(1) and waves[2, 4] == pytest.approx(math.cos(math.pi))


def test_processors_are_written_as_they_are_read():
    for looking in (
        Looking(size=32),
        Looking(size=24, fit="squash", mean=(0.5,) * 3, std=(0.5,) * 3, mode="bilinear"),
    ):
        assert looking_of(settings_of(looking), model="x") == looking
    for looking in (
        Looking(size=32, fit="pad"),
        Looking(size=32, half="even"),
        Looking(size=32, antialias=False),
    ):
        with pytest.raises(UserError, match="no image processor"):
            settings_of(looking)


def test_damaged_and_mixed_folders_are_errors(bases, tmp_path):
    folder = save_reward_model(make_reward_model(config_of("clip", bases)), tmp_path / "a", name="a")
    card = (folder / "README.md").read_text()
    assert "log-odds" in card and "clip" in card
    prints = json.loads((folder / "fingerprints.json").read_text())
    assert {"weights.safetensors", "base/model.safetensors", "base/config.json"} <= prints.keys()
    other = save_reward_model(make_reward_model(config_of("clip", bases), seed=1), tmp_path / "b", name="b")
    (folder / "weights.safetensors").write_bytes((other / "weights.safetensors").read_bytes())
    with pytest.raises(UserError, match="is not the file that was saved"):
        load_reward_model(folder)
    (other / "reward.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        load_reward_model(other)
    (other / "reward.json").write_text('{"kind": "poem"}')
    with pytest.raises(UserError, match="describes no reward model"):
        load_reward_model(other)
    with pytest.raises(UserError, match="there is no"):
        load_reward_model(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "clip"}, "needs `base`"),
        ({"base": "x"}, "leave out base"),
        ({"head": "cosine"}, "small has none"),
        ({"timed": True}, "timed is for noisy latents"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"hidden": 0}, "hidden must be"),
        ({"backbone": "latent", "latents": LatentProxyConfig()}, "hashed"),
    ],
)
def test_shapes_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        RewardModelConfig(**settings)


def test_a_model_on_latents_needs_their_shape():
    with pytest.raises(UserError, match="needs `latents`"):
        make_reward_model(RewardModelConfig(backbone="latent"))
