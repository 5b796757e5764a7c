from __future__ import annotations

import pytest
import torch

from unifl import config as configs
from unifl.errors import UserError
from unifl.methods.base import Method
from unifl.methods.guided_distillation import GuidedDistillation, GuidedDistillationConfig
from unifl.sampling import FixedGuidance, RangeGuidance


@pytest.fixture
def distil(make, sources):
    def build(family="sd15", **settings):
        generator = make(family, full=True, embed_guidance=True)
        return GuidedDistillation(generator, GuidedDistillationConfig(**settings), sources=sources)

    return build


def _loss(method, batch):
    return method.step("student", batch).losses["distillation"]


def test_defaults_are_those_of_the_paper_counted_from_1():
    config = GuidedDistillationConfig()
    assert (config.guidance.low, config.guidance.high, config.weight) == (1.0, 5.0, "truncated_snr")
    assert configs.load(configs.dump(config), GuidedDistillationConfig) == config


def test_without_guidance_the_student_begins_as_its_teacher(distil, micro):
    """At w = 1 the embedding's zeros leave the same function: the loss is 0 and not nearly so."""
    method = distil(guidance=FixedGuidance(scale=1.0))
    assert isinstance(method, Method) and method.roles == ("teacher",)
    assert float(_loss(method, micro()).detach()) == 0
    assert float(_loss(distil(guidance=FixedGuidance(scale=2.0)), micro()).detach()) > 1e-6


@pytest.mark.parametrize("family", ["sd15", "sd21"])
@pytest.mark.parametrize("weight", ["truncated_snr", "uniform"])
def test_the_loss_is_the_distance_to_the_guided_teacher(distil, micro, family, weight):
    method, batch = distil(family, weight=weight, negative_prompt="blue"), micro((0, 1, 2))
    with torch.no_grad():
        for parameter in method.parameters["student"]:
            parameter.add_(0.05)
    loss = _loss(method, batch)
    # by hand: two evaluations of the teacher's own network and one of the student's
    generator, key = method.generator, batch.key
    x0 = generator.encode(torch.stack([sample.image for sample in batch.data["images"]]), key=key)
    index = key.integers("guided/timestep", 0, 1000)
    scale = 1 + 4 * key.uniform("guided/guidance")
    noisy = generator.pipeline.scheduler.add_noise(x0, key.normal("guided/noise", x0.shape[1:]), index)
    abar = generator.pipeline.scheduler.alphas_cumprod[index].reshape(-1, 1, 1, 1)

    def clean(raw):
        if family == "sd21":
            return abar.sqrt() * noisy - (1 - abar).sqrt() * raw
        return (noisy - (1 - abar).sqrt() * raw) / abar.sqrt()

    t = (index + 1) / 1000
    cond = generator.encode_prompts([sample.prompt for sample in batch.data["images"]])
    with torch.no_grad():
        told = clean(generator.denoise("teacher", noisy, t, cond).raw)
        untold = clean(generator.denoise("teacher", noisy, t, generator.encode_negative("blue", 3)).raw)
        student = generator.denoise("student", noisy, t, cond, guidance=scale).x0
    target = untold + scale.reshape(-1, 1, 1, 1) * (told - untold)
    error = (student - target).square().mean((1, 2, 3))
    if weight == "truncated_snr":
        error = error * (abar / (1 - abar)).clamp(min=1)[:, 0, 0, 0]
    assert float(loss.detach()) == pytest.approx(float(error.mean()), rel=1e-3)


def test_the_two_conventions_of_guidance_are_one_apart(distil, micro):
    """u + w (c - u) is c + (w - 1) (c - u); w = 1 is the conditional half itself."""
    generator, batch = distil().generator, micro()
    cond = generator.encode_prompts(["a red circle", "two cats"])
    x_t, t = batch.key.normal("x", generator.latent_shape), torch.tensor([0.9, 0.3])
    c = generator.denoise("teacher", x_t, t, cond).x0
    u = generator.denoise("teacher", x_t, t, generator.encode_negative(None, 2)).x0
    guided = generator.denoise("teacher", x_t, t, cond, guidance=4.5).x0
    torch.testing.assert_close(guided, c + 3.5 * (c - u), rtol=1e-4, atol=1e-5)
    # each sample has its own scale
    each = generator.denoise("teacher", x_t, t, cond, guidance=torch.tensor([4.5, 1.0])).x0
    torch.testing.assert_close(each, torch.stack([guided[0], c[1]]), rtol=1e-4, atol=1e-5)


def test_it_learns_the_guided_prediction_and_moves_the_student_alone(distil, micro, counted):
    method = distil(guidance=RangeGuidance(low=2.0, high=6.0))
    generator = method.generator
    frozen = [*generator.pipeline.vae.parameters(), *generator.pipeline.text_encoder.parameters()]
    frozen += [*generator.roles.module("unet", "teacher").parameters()]
    before = [[p.detach().clone() for p in group] for group in (frozen, method.parameters["student"])]
    optimizer = torch.optim.Adam(method.parameters["student"], lr=5e-4)
    losses = []
    for _ in range(12):
        loss = _loss(method, micro((0, 1, 2, 3)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    assert all(torch.equal(*pair) for pair in zip(before[0], frozen, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(before[1], method.parameters["student"], strict=True))
    # the projection of the scale is among what moved
    assert float(generator.pipeline.unet.time_embedding.cond_proj.weight.detach().abs().max()) > 0
    with counted(method) as found:
        method.step("student", micro())
    assert dict(found) == method.evaluations(2) and method.evaluations(2)["unet forward"] == 4


def test_without_guidance_the_teacher_has_one_half(distil, micro, counted):
    method = distil(guidance=RangeGuidance(low=1.0, high=1.0))
    method.step("student", micro())  # fills the cache of prompts
    with counted(method) as found:
        method.step("student", micro())
    assert dict(found) == method.evaluations(2) and method.evaluations(2)["unet forward"] == 2


def test_errors(make, sources):
    config = GuidedDistillationConfig()
    with pytest.raises(UserError, match="set model.train to {kind: full, embed_guidance: true}"):
        GuidedDistillation(make(), config, sources=sources)
    with pytest.raises(UserError, match="guided_distillation names the source 'images'"):
        GuidedDistillation(make(full=True, embed_guidance=True), config, sources={})
    with pytest.raises(UserError, match="set model.train.text_encoder to false"):
        GuidedDistillation(make(full=True, embed_guidance=True, text_encoder=True), config, sources=sources)


def test_a_model_that_is_told_already_is_no_teacher(distil, sources):
    from unifl.models.load import FullTraining, make_generator

    student = distil().generator.pipeline
    with pytest.raises(UserError, match="start from the model that it was distilled from"):
        GuidedDistillation(
            make_generator(student, train=FullTraining(embed_guidance=True)),
            GuidedDistillationConfig(),
            sources=sources,
        )
