from __future__ import annotations

import pytest
import torch
from torch import nn

from unifl.errors import UserError
from unifl.feedback import Discriminator, Feedback, NetworkFeedback, as_feedback
from unifl.feedback.networks import RewardNetwork, SharedTrunk


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 1)

    def forward(self, images, prompts):
        shift = torch.tensor([float(len(prompt)) for prompt in prompts])
        return self.head(self.drop(self.body(images)))[:, 0] + shift


def _images(**settings):
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), **settings)


def test_starts_as_the_reward_and_leaves_it_alone():
    reward = NetworkFeedback(Network(), name="detail")
    discriminator = Discriminator.from_feedback(reward)
    prompts = ["a", "bcd"]
    assert isinstance(discriminator, Feedback)
    assert torch.equal(discriminator(_images(), prompts), reward(_images(), prompts))
    with torch.no_grad():
        next(iter(discriminator.parameters())).add_(1)
    assert not torch.equal(discriminator(_images(), prompts), reward(_images(), prompts))
    assert not any(parameter.requires_grad for parameter in reward.network.parameters())


def test_judge_gives_gradients_to_pixels_only_and_forward_to_parameters():
    discriminator = Discriminator.from_feedback(NetworkFeedback(Network(), name="detail"))
    images = _images(requires_grad=True)
    logits = discriminator.judge(images, ["a", "b"])
    assert torch.equal(logits, discriminator(images, ["a", "b"]))
    logits.sum().backward()
    assert float(images.grad.abs().sum()) > 0
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    discriminator(images.detach(), ["a", "b"]).sum().backward()
    assert all(parameter.grad is not None for parameter in discriminator.parameters())


def test_judges_with_its_present_weights_though_reward_trunks_remember_pictures():
    reward = NetworkFeedback(RewardNetwork(SharedTrunk((8, 8, 8))), name="detail")
    discriminator = Discriminator.from_feedback(reward)
    images, prompts = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), ["a", "b"]
    before = discriminator.judge(images, prompts)
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.mul_(1.5)
    after = discriminator.judge(images, prompts)
    assert not torch.allclose(before, after)
    assert torch.allclose(after, discriminator(images, prompts), atol=1e-5)


def test_stays_in_eval_mode():
    discriminator = Discriminator(Network()).train()
    assert not any(module.training for module in discriminator.modules())
    assert torch.equal(discriminator(_images(), ["", ""]), discriminator(_images(), ["", ""]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_reward_in_half_precision_trains_in_float32(dtype):
    reward = NetworkFeedback(Network().to(dtype), name="detail")
    discriminator = Discriminator.from_feedback(reward)
    assert {parameter.dtype for parameter in discriminator.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in reward.network.parameters()} == {dtype}
    optimizer = torch.optim.SGD(discriminator.parameters(), lr=1e-6)
    before = discriminator.network.head.bias.detach().clone()
    discriminator(_images(), ["a", "b"]).sum().backward()
    optimizer.step()
    assert not torch.equal(discriminator.network.head.bias, before)  # lost in half precision


def test_only_networks_on_pixels():
    function = as_feedback(lambda images, prompts: images.mean((1, 2, 3)), name="mean")
    with pytest.raises(UserError, match="'mean' has no network to train"):
        Discriminator.from_feedback(function)
    latent = NetworkFeedback(Network(), name="proxy")
    latent.space = "latent"
    with pytest.raises(UserError, match="reads latents"):
        Discriminator.from_feedback(latent)
