from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from unifl.data import PreferencePairs
from unifl.errors import UserError
from unifl.feedback import FitConfig, NetworkFeedback, calibrate_level, fit_reward, preferred_batches
from unifl.feedback.fit import preference_loss


class Reward(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1)
        )

    def forward(self, images, prompts):
        return self.layers(images)[:, 0]


def _pairs(n=200, *, wrong=0.0):
    """The brighter picture wins, except in a share of pairs."""
    generator = torch.Generator().manual_seed(1)
    level = torch.rand(n, 2, 1, 1, 1, generator=generator).sort(1, descending=True).values
    images = (level + 0.1 * torch.rand(n, 2, 3, 6, 6, generator=generator)).clamp(0, 1)
    flip = torch.rand(n, generator=generator) < wrong
    images[flip] = images[flip].flip(1)
    return PreferencePairs.from_tensors(["x"] * n, images[:, 0], images[:, 1])


CONFIG = dict(steps=60, batch_size=32, learning_rate=1e-2, warmup_steps=5, evaluate_every=20, held_out=0.2)


def test_learns_the_preference_despite_noise():
    network, seen = Reward(), []
    config = FitConfig(**CONFIG, label_noise=0.15)
    result = fit_reward(network, _pairs(400, wrong=0.15), config=config, progress=seen.append)
    clean = _pairs(100)
    right = [
        float(network(p.win[None], ["x"]) > network(p.lose[None], ["x"]))
        for p in map(clean.__getitem__, range(100))
    ]
    assert sum(right) >= 93
    assert [row.step for row in result.history] == [0, 20, 40, 60] and seen == result.history[1:]
    assert result.best.held_out_accuracy > 0.75 and len(result.held_out) == 80 and not network.training
    assert result.best.held_out_loss == min(row.held_out_loss for row in result.history)


def test_the_same_seed_gives_the_same_network():
    networks = [Reward(), Reward()]
    for network in networks:
        fit_reward(network, _pairs(60), config=FitConfig(**CONFIG | {"steps": 5}))
    a, b = (torch.cat([p.flatten() for p in network.parameters()]) for network in networks)
    assert torch.equal(a, b)


def test_keep_best_goes_back_to_the_best_weights():
    network = Reward()
    start = [p.detach().clone() for p in network.parameters()]
    # labels of held-out and training pairs contradict each other: no step helps
    pairs = _pairs(40)
    rows = fit_reward(Reward(), pairs, config=FitConfig(**CONFIG | {"steps": 1})).held_out
    for row in rows:
        prompt, win, lose, axis = pairs.rows[row]
        pairs.rows[row] = (prompt, lose, win, axis)
    result = fit_reward(network, pairs, config=FitConfig(**CONFIG))
    assert result.best.step == 0
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), start, strict=True))


def test_label_noise_is_the_expectation_over_flipped_labels():
    network, pairs = Reward(), _pairs(4)
    some = [pairs[row] for row in range(4)]
    win = torch.cat([network(pair.win[None], ["x"]) for pair in some])
    lose = torch.cat([network(pair.lose[None], ["x"]) for pair in some])
    margin = win - lose
    expected = -(0.8 * nn.functional.logsigmoid(margin) + 0.2 * nn.functional.logsigmoid(-margin)).mean()
    assert torch.allclose(preference_loss(network, some, label_noise=0.2), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"label_noise": 0.5}, "below 0.5"),
        ({"held_out": 0.0}, "cannot keep back"),
        ({"held_out": 0.99}, "no pair to train on"),
    ],
)
def test_settings_out_of_range(change, message):
    with pytest.raises(UserError, match=message):
        fit_reward(Reward(), _pairs(4), config=FitConfig(**CONFIG | change))


def test_a_fit_that_diverges_says_so():
    pairs = _pairs(20)
    prompt, win, lose, axis = pairs.rows[0]
    pairs.rows[0] = (prompt, torch.full_like(win, float("nan")), lose, axis)
    with pytest.raises(UserError, match="the loss of the fit is nan by step 20; lower its learning_rate"):
        fit_reward(Reward(), pairs, config=FitConfig(**CONFIG))


def test_a_frozen_network_cannot_be_fitted():
    with pytest.raises(UserError, match="no trainable parameter"):
        fit_reward(Reward().requires_grad_(False), _pairs(4), config=FitConfig(**CONFIG))


def test_hinge_level_is_the_mean_over_preferred_pictures():
    pairs = _pairs(10)
    network = Reward()
    with torch.no_grad():
        expected = sum(float(network(pairs[row].win[None], ["x"])) for row in range(10)) / 10
    feedback = NetworkFeedback(network, name="bright")
    # batches of unequal size count by their pictures
    assert math.isclose(
        calibrate_level(feedback, preferred_batches(pairs, batch_size=4)), expected, abs_tol=1e-6
    )
    with pytest.raises(UserError, match="no preferred pictures"):
        calibrate_level(feedback, [])
    with torch.no_grad():
        network.layers[-1].bias.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        calibrate_level(feedback, preferred_batches(pairs))
