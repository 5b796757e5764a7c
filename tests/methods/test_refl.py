from __future__ import annotations

import pytest
import torch

from unifl import config as configs
from unifl.data import Sample
from unifl.errors import UserError
from unifl.feedback import FunctionFeedback, as_feedback
from unifl.methods.anchors import AnchorConfig
from unifl.methods.base import Method
from unifl.methods.refl import ReFL, ReFLConfig
from unifl.models import make_generator
from unifl.testing import tiny_pipeline

PROMPTS = ["a red circle", "two cats"]


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


@pytest.mark.parametrize("full", [False, True])
def test_the_distance_is_to_what_the_start_says_to_the_same_prompt(make, rewards, sources, micro, full):
    # guided, so that prompt and negative prompt both count; only the text encoder moves
    settings = dict(grad_guidance=3.0, negative_prompt="blue", anchors=AnchorConfig(distance_weight=1.0))
    generator = make(full=full, text_encoder=True)
    method = ReFL(generator, _config(**settings), rewards=rewards, sources=sources)
    with torch.no_grad():
        for name, parameter in generator.trainable_parameters().items():
            if name.startswith("text_encoder."):
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    denoise, seen = generator.denoise, {}

    def recorded(role, x_t, t, cond, **options):
        seen[role] = (x_t, t, options["guidance"], denoise(role, x_t, t, cond, **options))
        return seen[role][-1]

    generator.denoise = recorded
    loss = method.step("student", micro()).losses["anchor/distance"]
    x_t, t, guidance, student = seen["student"]
    start = make_generator(tiny_pipeline("sd15"))
    expected = start.denoise(
        "student",
        x_t,
        t,
        start.encode_prompts(PROMPTS[:2]),
        guidance=guidance,
        negative=start.encode_negative("blue", 2),
    )
    torch.testing.assert_close(loss, (student.raw - expected.raw).square().mean(), rtol=1e-4, atol=1e-8)
    assert float(loss.detach()) > 1e-4


def test_errors(make, rewards, sources):
    with pytest.raises(UserError, match="refl.reward names the reward 'colour'.*did you mean 'color'"):
        ReFL(make(), _config(reward="colour"), rewards=rewards, sources=sources)
    with pytest.raises(UserError, match="names the source 'prompts'"):
        ReFL(make(), _config(), rewards=rewards, sources={})
    blind = {"color": as_feedback(lambda i, p: i.detach().mean((1, 2, 3)), name="color")}
    with pytest.raises(UserError, match="ReFL needs a gradient through the feedback 'color'"):
        ReFL(make(), _config(), rewards=blind, sources=sources)
    latent = {"color": FunctionFeedback(function=rewards["color"], name="color", space="latent")}
    with pytest.raises(UserError, match="ReFL works in pixel space, but the feedback 'color' reads latent"):
        ReFL(make(), _config(), rewards=latent, sources=sources)
    with pytest.raises(UserError, match=r"refl.stop is \[0, 4\]"):
        _config(stop=(0, 4))
    with pytest.raises(UserError, match="grad_scale is 0"):
        _config(grad_scale=0.0)
    with pytest.raises(UserError, match="distance_weight is -1"):
        _config(anchors=AnchorConfig(distance_weight=-1.0))


def test_pictures_of_the_anchor_must_fit_the_model(make, rewards, images):
    config = _config(anchors=AnchorConfig(denoising_weight=1.0))
    small = [Sample(sample.image[:, :16, :16], sample.prompt) for sample in images]
    for pictures, message in (
        (small, "have 16 x 16 px but the model draws 32 x 32"),
        (["a cat"], "must hold pictures with captions, not str"),
        ([], "the source 'images' is empty"),
    ):
        with pytest.raises(UserError, match=message):
            ReFL(make(), config, rewards=rewards, sources={"prompts": ["a cat"], "images": pictures})
