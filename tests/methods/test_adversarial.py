from __future__ import annotations

import pytest
import torch

from unifl.errors import UserError
from unifl.feedback import NetworkFeedback
from unifl.methods.adversarial import AdversarialConfig, ApproximateR1Config, Phase, R1Config
from unifl.methods.unifl import UniFL
from unifl.methods.unifl_config import AestheticConfig, UniFLConfig


def config(**settings):
    return AdversarialConfig(**{"num_steps": 3, "weight": 0.5} | settings)


@pytest.fixture
def build(make, rewards, detail, sources):
    def method(**settings):
        return UniFL(
            make(),
            UniFLConfig(
                adversarial=config(**settings),
                aesthetic=AestheticConfig(levels={"lighting": 0.9}, num_steps=2, stop=(0, 0)),
            ),
            rewards=rewards,
            sources=sources,
            discriminator=detail,
        )

    return method


def test_phases_come_first_and_the_schedule_stays():
    schedule = config(
        num_steps=4,
        stop=(0, 1),
        phases=[Phase(steps=2, num_steps=9, stop=(3, 5)), Phase(steps=1, num_steps=6)],
    )
    found = [(schedule.at(step).num_steps, schedule.at(step).stop) for step in range(5)]
    assert found == [(9, (3, 5)), (9, (3, 5)), (6, None), (4, (0, 1)), (4, (0, 1))]


def test_a_phase_decides_how_far_a_picture_is_denoised(build, micro):
    method = build(stop=(0, 0), phases=[Phase(steps=1, num_steps=7, stop=(4, 4))])
    stops = [method.step("student", micro(step=step)).metrics["stop/adversarial"] for step in (0, 1)]
    assert stops == [4.0, 0.0]


@pytest.mark.parametrize("every", [2, 3])
def test_the_student_trains_in_every_nth_step(build, micro, every):
    method = build(generator_every=every)
    for step in range(2 * every):
        batch = micro(step=step)
        output = method.step("student", batch)
        assert bool(output.losses) == (step % every == 0)
        assert set(output.losses) <= {"adversarial", "aesthetic/lighting"}
        assert not output.previews["adversarial"].requires_grad
        assert method.step("discriminator", batch).losses["discriminator"].requires_grad
        assert batch.scratch == {}


def test_the_discriminator_trains_in_every_nth_step(build, micro):
    method = build(discriminator_every=2)
    learned = []
    for step in range(4):
        batch = micro(step=step)
        assert method.step("student", batch).losses
        learned.append(bool(method.step("discriminator", batch).losses))
        assert batch.scratch == {}
    assert learned == [True, False, True, False]


@pytest.mark.parametrize(
    "settings",
    [
        {"generator_every": 2},
        {"generator_every": 2, "loss": "bounded", "real": "reconstruction"},
        {"generator_every": 2, "start": "image"},
        {"discriminator_every": 2, "real": "reconstruction"},
        {"regularization": ApproximateR1Config()},
        {"regularization": R1Config()},
    ],
)
def test_evaluations_are_the_mean_over_turns(build, micro, counted, settings):
    method = build(stop=(1, 1), **settings)
    method.step("student", micro())  # fills the cache of prompts
    with counted(method) as found:
        for step in range(2):
            batch = micro(step=step)
            method.step("student", batch)
            method.step("discriminator", batch)
    expected = {k: 2 * v for k, v in method.evaluations(2).items() if not k.startswith("reward/")}
    assert dict(found) == expected


def test_r1_is_the_squared_slope_at_real_pictures(build, micro):
    method = build(regularization=R1Config(weight=6.0))
    batch = micro()
    method.step("student", batch)
    output = method.step("discriminator", batch)
    real = torch.stack([sample.image for sample in batch.data["images"]])
    prompts = [sample.prompt for sample in batch.data["images"]]
    network = method.discriminator.double()
    slopes = torch.autograd.functional.jacobian(lambda x: network(x, prompts), real.double())
    squared = torch.stack([slopes[i, i].square().sum() for i in range(len(real))])
    assert float(output.losses["discriminator/r1"]) == pytest.approx(3.0 * float(squared.mean()), rel=1e-4)


class _Attentive(torch.nn.Module):
    """A reward whose pixels attend to each other, by torch's fused attention as networks of transformers do."""

    def __init__(self):
        super().__init__()
        self.project = torch.nn.Linear(3, 8)

    def forward(self, images, prompts):
        rows = self.project(images.flatten(2).transpose(1, 2))[:, None]
        seen = torch.nn.functional.scaled_dot_product_attention(rows, rows, rows)
        return seen.square().mean((1, 2, 3))


def test_r1_reaches_through_attention(make, rewards, sources, micro):
    torch.manual_seed(0)
    method = UniFL(
        make(),
        UniFLConfig(adversarial=config(regularization=R1Config(weight=2.0))),
        rewards=rewards,
        sources=sources,
        discriminator=NetworkFeedback(_Attentive(), name="detail"),
    )
    batch = micro()
    method.step("student", batch)
    method.step("discriminator", batch).losses["discriminator/r1"].backward()
    slope = method.discriminator.network.project.weight.grad
    assert slope.isfinite().all() and slope.abs().max() > 0


def test_approximate_r1_agrees_with_r1_for_little_noise(build, micro):
    batch = micro((0, 1, 2, 3))
    sums = {"exact": 0.0, "approximate": 0.0}
    sigma = 1e-3
    methods = {
        "exact": build(regularization=R1Config(weight=2.0)),
        "approximate": build(regularization=ApproximateR1Config(weight=1 / sigma**2, sigma=sigma)),
    }
    for name, method in methods.items():
        for step in range(30):
            batch = micro((0, 1, 2, 3), step=step)
            method.step("student", batch)
            sums[name] += float(method.step("discriminator", batch).losses["discriminator/r1"].detach())
    assert sums["approximate"] == pytest.approx(sums["exact"], rel=0.35)  # 120 draws of a squared normal


@pytest.mark.parametrize("how", [R1Config(weight=500.0), ApproximateR1Config(weight=5e5, sigma=0.05)])
def test_regularization_flattens_the_discriminator(build, micro, how):
    def slope(regularization):
        method = build(regularization=regularization)
        optimizer = torch.optim.Adam(method.parameters["discriminator"], lr=1e-2)
        for step in range(25):
            batch = micro((0, 1, 2, 3), step=step)
            method.step("student", batch)
            optimizer.zero_grad()
            sum(method.step("discriminator", batch).losses.values()).backward()
            optimizer.step()
        real = torch.stack([sample.image for sample in batch.data["images"]]).requires_grad_()
        logit = method.discriminator(real, [sample.prompt for sample in batch.data["images"]])
        return float(torch.autograd.grad(logit.sum(), real)[0].square().sum())

    assert slope(how) < 0.5 * slope(None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"generator_every": 0}, "generator_every is 0; it must be at least 1"),
        ({"generator_every": 2, "discriminator_every": 2}, "set one of them to 1"),
        ({"generator_every": 2, "train_discriminator": False}, "the discriminator is frozen; set it to 1"),
        ({"regularization": R1Config(), "train_discriminator": False}, "set it to null, or"),
        ({"phases": [Phase(steps=0, num_steps=4)]}, r"phases\[0\].steps is 0"),
        ({"phases": [Phase(steps=5, num_steps=4, stop=(0, 4))]}, "choose 0 <= low <= high <= 3"),
        ({"weight": -1.0}, "adversarial.weight is -1.0"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(UserError, match=message):
        config(**settings)


@pytest.mark.parametrize(
    "build_penalty", [lambda: R1Config(weight=0.0), lambda: ApproximateR1Config(sigma=0.0)]
)
def test_penalties_must_be_positive(build_penalty):
    with pytest.raises(UserError, match="must be above 0"):
        build_penalty()
