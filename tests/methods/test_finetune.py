from __future__ import annotations

import pytest
import torch

from unifl.errors import UserError
from unifl.methods.base import Method
from unifl.methods.finetune import FineTune, FineTuneConfig


@pytest.mark.parametrize("family", ["sd15", "sd21"])
def test_the_loss_is_that_of_the_denoiser(make, micro, sources, family):
    generator = make(family)
    method = FineTune(generator, FineTuneConfig(), sources=sources)
    assert isinstance(method, Method) and list(method.sources) == ["images"]
    batch = micro()
    loss = method.step("student", batch).losses["denoising"]
    # by hand: the pipeline's own scheduler and UNet
    pipeline, key = generator.pipeline, batch.key
    x0 = generator.encode(torch.stack([sample.image for sample in batch.data["images"]]))
    eps = key.normal("anchor/noise", x0.shape[1:])
    index = key.integers("anchor/timestep", 0, 1000)
    cond = generator.encode_prompts([sample.prompt for sample in batch.data["images"]])
    noisy = pipeline.scheduler.add_noise(x0, eps, index)
    raw = pipeline.unet(noisy, index, encoder_hidden_states=cond.embeds).sample
    target = eps if family == "sd15" else pipeline.scheduler.get_velocity(x0, eps, index)
    assert float(loss.detach()) == pytest.approx(float((raw - target).square().mean().detach()), rel=1e-4)


def test_it_learns_the_pictures_and_costs_one_evaluation(make, micro, sources, counted):
    method = FineTune(make(full=True), FineTuneConfig(), sources=sources)
    optimizer = torch.optim.Adam(method.parameters["student"], lr=2e-3)
    losses = []
    for step in range(60):
        loss = method.step("student", micro((0, 1, 2, 3), step=step)).losses["denoising"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    with counted(method) as found:
        method.step("student", micro())
    assert dict(found) == method.evaluations(2)


def test_it_needs_pictures(make):
    with pytest.raises(UserError, match="finetune names the source 'images'"):
        FineTune(make(), FineTuneConfig(), sources={})
    with pytest.raises(UserError, match="must hold pictures with captions, not str"):
        FineTune(make(), FineTuneConfig(), sources={"images": ["a cat"]})
