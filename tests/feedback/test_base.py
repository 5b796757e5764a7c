from __future__ import annotations

import pytest
import torch
from torch import nn

from unifl.errors import UserError
from unifl.feedback import Feedback, FunctionFeedback, as_feedback, require_gradient

EXAMPLE = torch.full((2, 3, 8, 8), 0.5)


def brightness(images, prompts):
    return images.mean((1, 2, 3))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, images, prompts):
        return self.scale * images.mean((1, 2, 3))


def test_a_plain_function_becomes_a_feedback():
    feedback = as_feedback(brightness)
    assert isinstance(feedback, Feedback) and feedback.name == "brightness" and feedback.needs == {"prompt"}
    assert torch.allclose(feedback(EXAMPLE, ["a", "b"]), torch.full((2,), 0.5))
    assert as_feedback(feedback) is feedback
    alone = as_feedback(
        lambda images: images.sum((1, 2, 3)), name="sum", needs_prompt=False, range=(0.0, 192.0)
    )
    assert alone.name == "sum" and alone(EXAMPLE, ["a", "b"]).tolist() == [96, 96] and alone.range == (0, 192)


def test_a_network_is_frozen_but_passes_gradients():
    network = Network().train()
    feedback = as_feedback(network, name="net")
    require_gradient(feedback, method="ReFL", example=EXAMPLE)
    assert isinstance(feedback, Feedback) and not network.training and not network.scale.requires_grad


@pytest.mark.parametrize(
    "function",
    [
        lambda images, prompts: (images > 0.4).float().mean((1, 2, 3)),
        lambda images, prompts: images.detach().mean((1, 2, 3)),
        lambda images, prompts: torch.ones(len(images), requires_grad=True) * 2,
        lambda images, prompts: images.numpy().mean((1, 2, 3)),
        lambda images, prompts: images.detach().numpy().mean((1, 2, 3)),
        lambda images, prompts: [0.5 for _ in prompts],
    ],
)
def test_a_function_without_gradient_is_found_out(function):
    feedback = as_feedback(function, name="blind")
    with pytest.raises(
        UserError, match="ReFL needs a gradient through the feedback 'blind'.*likelihood methods"
    ):
        require_gradient(feedback, method="ReFL", example=EXAMPLE)


def test_a_declared_lack_of_gradient_is_refused_without_trying():
    def explode(images, prompts):
        raise AssertionError("must not be called")

    with pytest.raises(UserError, match="which has none"):
        require_gradient(as_feedback(explode, differentiable=False), method="ReFL", example=EXAMPLE)


def test_a_feedback_on_latents_is_not_shown_pictures():
    latent = FunctionFeedback(function=brightness, name="proxy", space="latent")
    with pytest.raises(UserError, match="ReFL works in pixel space, but the feedback 'proxy' reads latent"):
        require_gradient(latent, method="ReFL", example=EXAMPLE)
    require_gradient(latent, method="latent ReFL", example=EXAMPLE, space="latent")
    with pytest.raises(UserError, match="use a feedback with space='latent'"):
        require_gradient(as_feedback(brightness), method="latent ReFL", space="latent")


def test_one_score_per_picture():
    with pytest.raises(UserError, match=r"returned shape \(\) for 2 pictures"):
        require_gradient(as_feedback(lambda i, p: i.mean(), name="mean"), method="ReFL", example=EXAMPLE)


def test_trying_out_works_where_gradients_are_off():
    with torch.no_grad():
        require_gradient(as_feedback(brightness), method="ReFL", example=EXAMPLE)
    assert not EXAMPLE.requires_grad


def test_something_that_cannot_be_called():
    with pytest.raises(UserError, match="cannot be called"):
        as_feedback(3)
