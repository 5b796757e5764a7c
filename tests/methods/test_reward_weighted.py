"""Reward-weighted regression: weights over the data, what it reduces to, and learning."""

from __future__ import annotations

import math

import pytest
import torch

from unifl.data.encoded import EncodedSample
from unifl.data.judged import EncodedJudged, Judged
from unifl.errors import UserError
from unifl.methods.base import Method, MicroBatch
from unifl.methods.reward_weighted import RewardWeighted, RewardWeightedConfig
from unifl.methods.spaces import NCPConfig
from unifl.randomness import Key

SCORES = (3.0, 5.0, 4.0, 9.0)


@pytest.fixture
def scored(images):
    return [Judged(sample.prompt, sample.image, score) for sample, score in zip(images, SCORES, strict=True)]


@pytest.fixture
def batch(scored):
    def build(rows=(0, 1), step=0, source=None):
        source = source or scored
        return MicroBatch(Key(0, step, tuple(rows)), {"scored": [source[row] for row in rows]})

    return build


def method_of(generator, scored, **settings):
    return RewardWeighted(generator, RewardWeightedConfig(**settings), sources={"scored": scored})


def loss_of(method, batch):
    return float(method.step("student", batch).losses["weighted"].detach())


def errors_by_hand(method, batch, family):
    """The denoising error of each row, by the pipeline's own networks and scheduler."""
    generator, key, rows = method.generator, batch.key, batch.data["scored"]
    mean, std = generator.posterior(torch.stack([row.image for row in rows]))
    x0 = mean + std * key.normal("posterior", mean.shape[1:])
    eps = key.normal("surrogate/noise", x0.shape[1:])
    index = key.integers("surrogate/time", 1, 1001) - 1
    scheduler, unet = generator.pipeline.scheduler, generator.pipeline.unet
    cond = generator.encode_prompts([row.prompt for row in rows])
    with torch.no_grad():
        said = unet(scheduler.add_noise(x0, eps, index), index, encoder_hidden_states=cond.embeds).sample
    target = scheduler.get_velocity(x0, eps, index) if family == "sd21" else eps
    return (said - target).square().mean((1, 2, 3))


@pytest.mark.parametrize("family", ["sd15", "sd21"])
def test_the_loss_is_the_weighted_denoising_error(make, scored, batch, family):
    method = method_of(make(family), scored, temperature=0.5)
    assert isinstance(method, Method) and method.roles == () and method.state_dict() == {}
    mean = sum(SCORES) / 4
    deviation = math.sqrt(sum((score - mean) ** 2 for score in SCORES) / 4)
    weights = [math.exp((score - mean) / deviation / 0.5) for score in SCORES]
    weights = torch.tensor([weight / (sum(weights) / 4) for weight in weights])
    errors = errors_by_hand(method, batch((0, 1, 2, 3)), family)
    found = method.step("student", batch((0, 1, 2, 3)))
    assert float(found.losses["weighted"].detach()) == pytest.approx(
        float((weights * errors).mean()), rel=1e-4
    )
    assert float(found.metrics["weight/largest"]) == pytest.approx(float(weights.max()), rel=1e-5)
    assert float(found.metrics["error"]) == pytest.approx(float(errors.mean()), rel=1e-4)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_weights_of_one_are_plain_fine_tuning(make, scored, batch, family):
    """At a large temperature all weights are 1, and what is left is the winners' loss of `preference` with sft."""
    from unifl.data.pairs import Pair
    from unifl.methods.objectives import SFT
    from unifl.methods.preference import Preference, PreferenceConfig

    generator = make(family)
    pairs = [Pair(row.prompt, row.image, row.image) for row in scored]
    plain = Preference(generator, PreferenceConfig(objective=SFT()), sources={"pairs": pairs})
    given = MicroBatch(Key(0, 0, (0, 3)), {"pairs": [pairs[0], pairs[3]]})
    expected = float(plain.step("student", given).losses["winner"].detach())
    assert loss_of(method_of(generator, scored, temperature=1e6), batch((0, 3))) == pytest.approx(
        expected, rel=1e-4
    )
    # and at a temperature of 1 it is another loss
    assert loss_of(method_of(generator, scored), batch((0, 3))) != pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("temperature", [0.2, 1.0, 5.0])
def test_weights_have_mean_1_over_the_data_whatever_unit_scores_have(make, scored, temperature):
    generator = make()
    scores = torch.tensor(SCORES)
    weights = []
    for factor, offset in ((1.0, 0.0), (1e-3, 0.2), (100.0, -7000.0)):
        rows = [Judged(row.prompt, row.image, factor * row.score + offset) for row in scored]
        method = method_of(generator, rows, temperature=temperature)
        weights.append(method._weights(factor * scores.double() + offset) / method._norm)
        assert float(weights[-1].mean()) == pytest.approx(1, rel=1e-6)
        assert weights[-1].argsort().tolist() == scores.argsort().tolist()
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(weights[2], weights[0], rtol=1e-6, atol=0)


def test_scores_that_a_source_knows_are_taken_from_it_without_reading_pictures(make, scored):
    class Known:
        scores = SCORES

        def __len__(self):
            return 4

        def __getitem__(self, row):
            assert row == 0, "a picture was read for its score"
            return scored[row]

    generator = make()
    known, read = method_of(generator, Known()), method_of(generator, scored)
    assert known._mean == read._mean and known._norm == read._norm


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("space", [{}, {"space": NCPConfig()}], ids=["latent", "ncp"])
def test_a_step_moves_what_trains_and_costs_what_it_says(make, scored, batch, full, space, counted):
    generator = make(full=full)
    method = method_of(generator, scored, **space)
    with torch.no_grad():
        for parameter in generator.trainable_parameters().values():
            parameter.add_(0.05)  # LoRA starts at zero, where one of its factors has no gradient
    before = [parameter.detach().clone() for parameter in method.parameters["student"]]
    optimizer = torch.optim.AdamW(method.parameters["student"], lr=1e-3)
    method.step("student", batch())  # encodes the prompts
    with counted(method) as found:
        method.step("student", batch()).losses["weighted"].backward()
    told = {name: count for name, count in method.evaluations(2).items() if "encoder" not in name}
    assert dict(found) == told and ("unet encoder forward" in method.evaluations(2)) == bool(space)
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, method.parameters["student"], strict=True))


def test_the_picture_with_the_high_score_is_learnt(make):
    """Two pictures of one prompt: the student leans to the one that scores higher, whichever that is."""
    latents = torch.ones(4, 8, 8)
    pictures = [EncodedSample("a cat", sign * latents, 0 * latents) for sign in (-1, 1)]
    lean = []
    for scores in ((0.0, 1.0), (1.0, 0.0)):
        rows = [EncodedJudged(picture, score) for picture, score in zip(pictures, scores, strict=True)]
        method = method_of(make(full=True), rows, temperature=0.5)
        optimizer = torch.optim.Adam(method.parameters["student"], lr=2e-3)
        for step in range(40):
            optimizer.zero_grad()
            method.step("student", MicroBatch(Key(0, step, (0, 1, 2, 3)), {"scored": [*rows, *rows]})).losses[
                "weighted"
            ].backward()
            optimizer.step()
        errors = []
        for row in rows:  # under one index: with the same times and noise
            given = [MicroBatch(Key(0, step, (0,)), {"scored": [row]}) for step in range(1000, 1020)]
            with torch.no_grad():
                errors.append(sum(float(method.step("student", one).metrics["error"]) for one in given) / 20)
        lean.append(errors[0] - errors[1])
    assert lean[0] > 0.02 and lean[1] < -0.02  # of errors near 1


def test_micro_batches_add_up_to_one_batch(make, scored, batch):
    method = method_of(make(full=True), scored)

    def gradient(rows):
        loss = method.step("student", batch(rows)).losses["weighted"]
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, method.parameters["student"])])

    whole, parts = gradient((0, 1, 2, 3)), (gradient((0, 1)) + gradient((2, 3))) / 2
    torch.testing.assert_close(whole, parts, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))


def test_encoded_pictures_give_the_loss_of_pictures(make, scored, batch):
    generator = make()
    kept = []
    for row in scored:
        mean, std = generator.posterior(row.image[None])
        kept.append(EncodedJudged(EncodedSample(row.prompt, mean[0], std[0]), row.score))
    losses = [loss_of(method_of(generator, rows), batch(source=rows)) for rows in (scored, kept)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_what_does_not_fit_is_told_before_training(make, scored, images):
    alike = [Judged(row.prompt, row.image, 2.5) for row in scored]
    with pytest.raises(UserError, match=r"all scores of 'scored' are 2\.5; weights need scores that differ"):
        method_of(make(), alike)
    with pytest.raises(UserError, match="must hold pictures with a score, not Sample"):
        method_of(make(), images)
    with pytest.raises(UserError, match="reward_weighted names the source 'scored'"):
        RewardWeighted(make(), RewardWeightedConfig(), sources={})
    with pytest.raises(UserError, match=r"reward_weighted\.temperature is 0\.0; it must be above 0"):
        RewardWeightedConfig(temperature=0.0)
