from __future__ import annotations

import pytest
import torch

from unifl.errors import UserError
from unifl.feedback import LatentProxyConfig, ProxyFitConfig, make_proxy, pretrain_proxy

WORDS = ["red", "blue", "green", "black", "white", "pink", "brown", "grey"]
SETTINGS = dict(steps=60, batch_size=24, learning_rate=3e-3, warmup_steps=5, held_out=40, evaluate_every=20)


def pairs(n=200):
    """A latent of a caption is a pattern of its word, with noise."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(len(WORDS), 4, 4, 4, generator=generator)
    rows = torch.arange(n) % len(WORDS)
    noise = 0.5 * torch.randn(n, 4, 4, 4, generator=generator)
    return 0.2 * (patterns[rows] + noise), [f"a {WORDS[row]} thing" for row in rows]


def proxy(**settings):
    shape = dict(channels=4, size=4, width=16, depth=1, heads=2, patch=2, embedding=16, scaling_factor=0.2)
    words = dict(text="hashed", text_width=16, text_depth=1, text_heads=2)
    return make_proxy(LatentProxyConfig(**shape | words | settings))


def test_latents_and_captions_find_each_other():
    network, seen = proxy(), []
    result = pretrain_proxy(network, *pairs(), config=ProxyFitConfig(**SETTINGS), progress=seen.append)
    assert [row.step for row in result.history] == [0, 20, 40, 60] and seen == result.history[1:]
    assert result.history[0].held_out_accuracy < 0.4
    assert result.best.held_out_accuracy > 0.9
    assert result.best.held_out_loss == min(row.held_out_loss for row in result.history)
    latents, prompts = pairs(8)
    right, wrong = network(latents, prompts), network(latents, prompts[1:] + prompts[:1])
    assert float((right - wrong).min()) > 0.1


def test_equal_seeds_and_any_sequence_of_latents_give_equal_weights():
    latents, prompts = pairs(60)
    config = ProxyFitConfig(**SETTINGS | {"steps": 4, "evaluate_every": 2})
    found = []
    for given in (latents, list(latents)):
        network = proxy()
        pretrain_proxy(network, given, prompts, config=config)
        found.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    assert torch.equal(found[0], found[1])


def test_what_is_frozen_stays_and_the_best_weights_come_back():
    network = proxy()
    pretrain_proxy(network, *pairs(), config=ProxyFitConfig(**SETTINGS | {"steps": 30}))
    network.unlock(image_blocks=1, text_blocks=0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    # a rate at which every step harms
    config = ProxyFitConfig(**SETTINGS | {"learning_rate": 5.0, "max_grad_norm": 1e9, "steps": 20})
    result = pretrain_proxy(network, *pairs(), config=config)
    assert result.best.step == 0
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    config = ProxyFitConfig(**SETTINGS | {"steps": 20, "keep_best": False})
    assert pretrain_proxy(network, *pairs(), config=config).best.step == 20
    changed = {n for n, value in network.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == set(network.trainable_parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps of a proxy's pre-training is 0"),
        ({"held_out": 1}, "must be at least 2"),
        ({"learning_rate": 0.0}, "must be above 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(UserError, match=message):
        ProxyFitConfig(**SETTINGS | settings)


def test_data_that_do_not_go_together():
    latents, prompts = pairs(60)
    config = ProxyFitConfig(**SETTINGS)
    with pytest.raises(UserError, match="60 latents and 59 captions"):
        pretrain_proxy(proxy(), latents, prompts[1:], config=config)
    with pytest.raises(UserError, match="leaves too few"):
        pretrain_proxy(proxy(), latents[:41], prompts[:41], config=config)
    with pytest.raises(UserError, match="reads 4 channels, but the latents have 3"):
        pretrain_proxy(proxy(), latents[:, :3], prompts, config=config)
    with pytest.raises(UserError, match="no trainable parameter"):
        pretrain_proxy(proxy().requires_grad_(False), latents, prompts, config=config)
