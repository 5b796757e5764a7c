from __future__ import annotations

import pytest
import torch

from unifl import config as configs
from unifl.errors import UserError
from unifl.feedback import as_feedback
from unifl.methods.anchors import AnchorConfig
from unifl.methods.base import Method
from unifl.methods.refl import ReFL, ReFLConfig


def _config(**settings):
    return ReFLConfig(**{"num_steps": 4, "stop": (0, 1), "reward": "color", "grad_scale": 1.0} | settings)


def test_defaults_are_those_of_the_published_code():
    config = ReFLConfig()
    assert (config.num_steps, config.stop, config.margin, config.grad_scale) == (40, (0, 9), 2.0, 1e-3)
    assert config.evaluations() == (34.5, 1.0)  # 30 to 39 evaluations without a graph, then one with
    assert configs.load(configs.dump(config), ReFLConfig) == config


def test_loss_is_the_hinge_of_the_reward_of_the_predicted_picture(make, rewards, sources, micro):
    method = ReFL(make(), _config(margin=0.4, grad_scale=0.5), rewards=rewards, sources=sources)
    output = method.step("student", micro())
    assert isinstance(method, Method)
    reward = rewards["color"](output.previews["aesthetic"], [])
    assert torch.allclose(output.losses["reward/color"], 0.5 * (0.4 - reward).relu().mean())
    assert torch.allclose(output.metrics["reward/color"], reward.mean())


@pytest.mark.parametrize("stop", [0, 3])
def test_evaluations_are_exact(make, rewards, sources, micro, run_step, counted, stop):
    anchors = AnchorConfig(denoising_weight=0.1, distance_weight=0.1)
    method = ReFL(make(), _config(stop=(stop, stop), anchors=anchors), rewards=rewards, sources=sources)
    run_step(method, micro())  # fills the cache of prompts
    with counted(method) as found:
        run_step(method, micro())
    expected = method.evaluations(2)
    assert expected.pop("reward/color forward+backward") == 2
    assert dict(found) == expected


def test_the_reward_rises(make, rewards, sources, micro):
    method = ReFL(make("sd21"), _config(num_steps=2, stop=(0, 0)), rewards=rewards, sources=sources)
    optimizer = torch.optim.AdamW(method.parameters["student"], lr=5e-2)
    scores = []
    for _ in range(15):
        output = method.step("student", micro())
        optimizer.zero_grad()
        sum(output.losses.values()).backward()
        optimizer.step()
        scores.append(float(output.metrics["reward/color"]))
    assert scores[-1] > scores[0] + 0.01


def test_a_saturated_margin_gives_no_gradient(make, rewards, sources, micro, run_step):
    method = ReFL(make(), _config(margin=-5.0), rewards=rewards, sources=sources)
    run_step(method, micro())
    assert all(float(p.grad.abs().max()) == 0 for p in method.parameters["student"] if p.grad is not None)


def test_anchors_are_zero_at_the_start_where_they_should_be(make, rewards, sources, micro, run_step):
    anchors = AnchorConfig(denoising_weight=0.1, distance_weight=1.0)
    method = ReFL(make(), _config(anchors=anchors), rewards=rewards, sources=sources)
    assert method.roles == ("reference",)
    losses = run_step(method, micro())["student"].losses
    assert (
        float(losses["anchor/distance"].detach()) < 1e-10
        and float(losses["anchor/denoising"].detach()) > 0.01
    )
    with torch.no_grad():
        for parameter in method.parameters["student"]:
            parameter.add_(0.1)
    assert float(method.step("student", micro()).losses["anchor/distance"].detach()) > 1e-6


def test_errors(make, rewards, sources):
    with pytest.raises(UserError, match="refl.reward names the reward 'colour'.*did you mean 'color'"):
        ReFL(make(), _config(reward="colour"), rewards=rewards, sources=sources)
    with pytest.raises(UserError, match="names the source 'prompts'"):
        ReFL(make(), _config(), rewards=rewards, sources={})
    blind = {"color": as_feedback(lambda i, p: i.detach().mean((1, 2, 3)), name="color")}
    with pytest.raises(UserError, match="ReFL needs a gradient through the feedback 'color'"):
        ReFL(make(), _config(), rewards=blind, sources=sources)
    with pytest.raises(UserError, match=r"refl.stop is \[0, 4\]"):
        _config(stop=(0, 4))
    with pytest.raises(UserError, match="grad_scale is 0"):
        _config(grad_scale=0.0)
    with pytest.raises(UserError, match="distance_weight is -1"):
        _config(anchors=AnchorConfig(distance_weight=-1.0))
