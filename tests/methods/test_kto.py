"""Likes and dislikes of single pictures: closed forms at the start, the baseline, and learning."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from unifl.data.encoded import EncodedSample
from unifl.data.judged import EncodedJudged, Judged
from unifl.errors import UserError
from unifl.methods.base import Method, MicroBatch
from unifl.methods.kto import KTO, KTOConfig
from unifl.methods.spaces import NCPConfig
from unifl.methods.states import InvertedStates
from unifl.randomness import Key


@pytest.fixture
def likes(images):
    """Four pictures; every second one is liked."""
    return [Judged(sample.prompt, sample.image, float(row % 2)) for row, sample in enumerate(images)]


@pytest.fixture
def batch(likes):
    def build(rows=(0, 1), step=0, source=None):
        source = source or likes
        return MicroBatch(Key(0, step, tuple(rows)), {"likes": [source[row] for row in rows]})

    return build


def method_of(generator, likes, **settings):
    return KTO(generator, KTOConfig(**settings), sources={"likes": likes})


def gradient(method, batch):
    loss = method.step("student", batch).losses["preference"]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, method.parameters["student"])])


def stirred(generator, scale=0.05):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in generator.trainable_parameters().values():
            parameter.add_(scale * torch.randn_like(parameter))


def rho_by_hand(method, batch):
    """l_ref - l, from the generator's own predictions."""
    generator, key, rows = method.generator, batch.key, batch.data["likes"]
    mean, std = generator.posterior(torch.stack([row.image for row in rows]))
    x0 = mean + std * key.normal("posterior", mean.shape[1:])
    eps = key.normal("surrogate/noise", x0.shape[1:])
    t = key.integers("surrogate/time", 1, 1001) / 1000
    cond = generator.encode_prompts([row.prompt for row in rows])
    x_t = generator.process.add_noise(x0, eps, t)
    with torch.no_grad():
        errors = [
            (generator.denoise(role, x_t, t, cond).eps - eps).square().mean((1, 2, 3))
            for role in ("student", "reference")
        ]
    return errors[1] - errors[0]


@pytest.mark.parametrize("space", [{}, {"space": NCPConfig()}], ids=["latent", "ncp"])
@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_at_the_reference_a_picture_costs_half_its_weight(make, likes, batch, family, space):
    method = method_of(make(family), likes, weight_liked=1.5, weight_disliked=0.5, **space)
    assert isinstance(method, Method)
    output = method.step("student", batch((0, 1, 3)))
    assert float(output.losses["preference"].detach()) == pytest.approx((1.5 + 0.5 + 1.5) / 6, rel=1e-6)
    assert output.metrics["baseline"] == 0 and float(output.metrics["drift"]) == 0
    assert float(output.metrics["accuracy"]) == 0.5


@pytest.mark.parametrize(
    ("utility", "expected"),
    [("kahneman_tversky", 0.5), ("loss_averse", 1 + math.log(2)), ("risk_seeking", 1 - math.log(2))],
)
def test_other_utilities_at_the_reference(make, likes, batch, utility, expected):
    output = method_of(make(), likes, utility=utility).step("student", batch())
    assert float(output.losses["preference"].detach()) == pytest.approx(expected, rel=1e-6)


def test_the_loss_is_that_of_the_equation(make, likes, batch):
    """1 - sigmoid(+-beta (rho - KL0)) with KL0 of the step before, everything written out."""
    method = method_of(make(), likes, beta=30.0)
    stirred(method.generator)
    before, now = (batch((0, 1, 2, 3), step=step) for step in (0, 1))
    method.step("student", before)
    output = method.step("student", now)
    baseline = float(rho_by_hand(method, before).mean().clamp(min=0))
    sign = torch.tensor([-1.0, 1.0, -1.0, 1.0])
    z = sign * 30 * (rho_by_hand(method, now) - baseline)
    assert output.metrics["baseline"] == pytest.approx(baseline, rel=1e-3, abs=1e-7)
    assert float(output.losses["preference"].detach()) == pytest.approx(float(F.sigmoid(-z).mean()), rel=1e-3)
    assert float(output.metrics["accuracy"]) == float((z > 0).float().mean())


def test_a_gain_over_the_reference_raises_the_baseline_and_a_loss_leaves_it_at_0(make, likes, batch):
    method = method_of(make(), likes)
    for rho, expected in ((0.3, 0.3), (-0.2, 0.0)):
        method._baseline.enter(0)
        method._baseline.add(torch.full((4,), rho))
        assert method.step("student", batch(step=1)).metrics["baseline"] == pytest.approx(expected)
        method = method_of(make(), likes)


def test_at_the_start_likes_pull_where_dislikes_push(make, likes, batch):
    generator = make(full=True)
    turned = [Judged(row.prompt, row.image, 1 - row.score) for row in likes]
    forth = gradient(method_of(generator, likes, beta=50.0), batch())
    back = gradient(method_of(generator, turned, beta=50.0), batch(source=turned))
    assert forth.norm() > 0
    torch.testing.assert_close(forth, -back, rtol=1e-3, atol=1e-3 * float(forth.abs().max()))


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("states", [{}, {"states": InvertedStates(steps=1)}], ids=["noised", "inverted"])
def test_a_step_moves_what_trains_and_nothing_else(make, likes, batch, full, states, counted):
    generator = make(full=full)
    method = method_of(generator, likes, **states)
    stirred(generator)  # LoRA starts at zero, where one of its factors has no gradient
    reference = {name: value.clone() for name, value in generator.roles.state("reference").items()}
    before = [parameter.detach().clone() for parameter in method.parameters["student"]]
    optimizer = torch.optim.AdamW(method.parameters["student"], lr=1e-3)
    method.step("student", batch())  # encodes the prompts
    with counted(method) as found:
        method.step("student", batch()).losses["preference"].backward()
    assert dict(found) == method.evaluations(2)
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, method.parameters["student"], strict=True))
    for name, value in generator.roles.state("reference").items():
        assert torch.equal(value, reference[name])


def test_liked_pictures_gain_on_disliked_ones(make, likes, batch):
    method = method_of(make(full=True), likes, beta=50.0)
    optimizer = torch.optim.Adam(method.parameters["student"], lr=2e-3)

    def lead():
        with torch.no_grad():
            found = [
                method.step("student", batch((0, 1, 2, 3), step=step)).metrics for step in range(1000, 1010)
            ]
        return sum(float(m["error/disliked"] - m["error/liked"]) for m in found) / len(found)

    start = lead()
    for step in range(60):
        optimizer.zero_grad()
        method.step("student", batch((0, 1, 2, 3), step=step)).losses["preference"].backward()
        optimizer.step()
    assert lead() > start + 0.05  # of errors near 1, on the same draws


def test_micro_batches_have_the_baseline_and_the_gradient_of_one_batch(make, likes, batch):
    generator = make(full=True)
    whole, parts = (method_of(generator, likes, beta=200.0) for _ in range(2))
    stirred(generator)
    found = []
    for step in range(2):
        first = gradient(whole, batch((0, 1, 2, 3), step=step))
        halves = [gradient(parts, batch(rows, step=step)) for rows in ((0, 1), (2, 3))]
        found.append((first, sum(halves) / 2))
    assert parts._baseline.value == pytest.approx(whole._baseline.value, rel=1e-4)
    assert parts._baseline.steps == whole._baseline.steps == 1
    for one, other in found:
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max()))


def test_a_resumed_run_has_the_same_baseline(make, likes, batch):
    method = method_of(make(), likes, beta=200.0)
    stirred(method.generator)
    method.step("student", batch((0, 1, 2, 3), step=0))
    again = KTO(method.generator, method.config, sources=method.sources)
    again.load_state_dict(method.state_dict())
    losses = [
        float(one.step("student", batch((0, 1, 2, 3), step=1)).losses["preference"].detach())
        for one in (method, again)
    ]
    fresh = KTO(method.generator, method.config, sources=method.sources)
    fresh._baseline.value = 1.0
    other = float(fresh.step("student", batch((0, 1, 2, 3), step=1)).losses["preference"].detach())
    assert losses[0] == losses[1] != other
    assert again.state_dict() == method.state_dict()


def test_encoded_pictures_give_the_loss_of_pictures(make, likes, batch):
    generator = make()
    stirred(generator)
    kept = []
    for row in likes:
        mean, std = generator.posterior(row.image[None])
        embeds = generator.encode_prompts([row.prompt]).embeds[0]
        kept.append(EncodedJudged(EncodedSample(row.prompt, mean[0], std[0], embeds), row.score))
    methods = [method_of(generator, rows) for rows in (likes, kept)]
    losses = [
        float(method.step("student", batch(source=rows)).losses["preference"].detach())
        for method, rows in zip(methods, (likes, kept), strict=True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert "vae encode" in methods[0].evaluations(1) and "vae encode" not in methods[1].evaluations(1)


def test_what_does_not_fit_is_told_before_training(make, likes, images):
    with pytest.raises(UserError, match="kto names the source 'likes'"):
        KTO(make(), KTOConfig(), sources={})
    with pytest.raises(UserError, match="must hold pictures with a score, not Sample"):
        method_of(make(), images)
    with pytest.raises(UserError, match="kto compares the student with a reference, and reference is none"):
        method_of(make(), likes, reference="none")
    small = [Judged(row.prompt, row.image[:, ::2, ::2], row.score) for row in likes]
    with pytest.raises(UserError, match="have 16 x 16 px but the model draws 32 x 32"):
        method_of(make(), small)
    for name in ("beta", "weight_liked", "weight_disliked"):
        with pytest.raises(UserError, match=rf"kto\.{name} is 0\.0; it must be above 0"):
            KTOConfig(**{name: 0.0})
