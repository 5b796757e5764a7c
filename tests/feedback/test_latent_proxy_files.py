from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from unifl.data.selection.embeddings import load_text_encoder
from unifl.errors import UserError
from unifl.feedback import LatentProxyConfig, load_proxy, make_proxy, save_proxy
from unifl.testing import tiny_folder, tiny_pipeline

SHAPE = dict(channels=4, size=8, width=16, depth=2, heads=2, patch=2, embedding=8)
WORDS = dict(text="hashed", text_width=16, text_depth=1, text_heads=2)
PROMPTS = ["a red circle", "two cats"]


def latents():
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def moved(proxy):
    """Weights that no seed gives."""
    with torch.no_grad():
        for parameter in proxy.parameters():
            parameter.mul_(1.1).add_(0.01)
    return proxy


@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_a_proxy_of_hashed_words_comes_back(tmp_path, tower):
    proxy = moved(make_proxy(LatentProxyConfig(**SHAPE, **WORDS, tower=tower, scaling_factor=0.3)))
    found = load_proxy(save_proxy(proxy, tmp_path / "proxy"))
    assert found.config == proxy.config
    proxy.requires_grad_(False)  # as the other one is, so that both encode prompts one by one
    assert torch.equal(found(latents(), PROMPTS), proxy(latents(), PROMPTS))
    assert not any(parameter.requires_grad for parameter in found.parameters())


@pytest.mark.parametrize(("family", "encoder"), [("sd15", "text_encoder"), ("sdxl", "text_encoder_2")])
def test_a_proxy_with_a_clip_needs_no_other_folder(tmp_path, family, encoder):
    pipeline = tiny_pipeline(family)
    tokenizer = getattr(pipeline, encoder.replace("text_encoder", "tokenizer"))
    config = LatentProxyConfig(**SHAPE)
    proxy = moved(make_proxy(config, text_encoder=getattr(pipeline, encoder), tokenizer=tokenizer))
    state = torch.random.get_rng_state()
    found = load_proxy(save_proxy(proxy, tmp_path / "proxy"))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.allclose(found(latents(), PROMPTS), proxy(latents(), PROMPTS), atol=1e-6)
    assert found.logit_scale.equal(proxy.logit_scale)


def test_the_text_tower_may_come_from_a_folder(tmp_path):
    encoder = load_text_encoder(tiny_folder("sd15", tmp_path / "model"))
    config = LatentProxyConfig(**SHAPE)
    proxy = make_proxy(config, text_encoder=encoder.model, tokenizer=encoder.tokenizer)
    pipeline = tiny_pipeline("sd15")
    same = make_proxy(config, text_encoder=pipeline.text_encoder, tokenizer=pipeline.tokenizer)
    assert torch.allclose(proxy(latents(), PROMPTS), same(latents(), PROMPTS), atol=1e-6)


def _rewrite(folder, change):
    path = folder / "config.json"
    shape = json.loads(path.read_text())
    change(shape)
    path.write_text(json.dumps(shape))


def _drop_a_weight(folder):
    weights = load_file(folder / "proxy.safetensors")
    del weights["image.norm.weight"]
    save_file(weights, folder / "proxy.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "there is no latent proxy"),
        (lambda folder: (folder / "config.json").write_text("{"), "is no JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "describes no latent proxy"),
        (lambda folder: _rewrite(folder, lambda shape: shape.pop("kind")), "describes no latent proxy"),
        (lambda folder: _rewrite(folder, lambda shape: shape.update(novel=1)), "is of another version"),
        (lambda folder: _rewrite(folder, lambda shape: shape.update(width="x")), "is of another version"),
        (lambda folder: _rewrite(folder, lambda shape: shape.update(channels=8)), "first at 'image.patches"),
        (lambda folder: (folder / "proxy.safetensors").unlink(), "cannot read"),
        (lambda folder: (folder / "proxy.safetensors").write_bytes(b"damaged"), "cannot read"),
        (_drop_a_weight, "does not fit config.json beside it, first at 'image.norm.weight'"),
    ],
)
def test_folders_that_are_no_proxies(tmp_path, spoil, message):
    folder = save_proxy(make_proxy(LatentProxyConfig(**SHAPE, **WORDS)), tmp_path / "proxy")
    spoil(folder)
    with pytest.raises(UserError, match=message):
        load_proxy(folder)


def test_a_clip_without_its_tokenizer_or_class(tmp_path):
    pipeline = tiny_pipeline("sd15")
    proxy = make_proxy(
        LatentProxyConfig(**SHAPE), text_encoder=pipeline.text_encoder, tokenizer=pipeline.tokenizer
    )
    folder = save_proxy(proxy, tmp_path / "proxy")
    _rewrite(folder, lambda shape: shape.update(text_class="BertModel"))
    with pytest.raises(UserError, match="names no CLIP text model"):
        load_proxy(folder)
    _rewrite(folder, lambda shape: shape.update(text_class="CLIPTextModel"))
    shutil.rmtree(folder / "text")
    with pytest.raises(UserError, match="cannot read the text model"):
        load_proxy(folder)
