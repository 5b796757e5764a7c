from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch

from unifl.feedback import NetworkFeedback
from unifl.feedback.networks import RewardNetwork, SharedTrunk

PROMPTS = ["a red circle", "two cats"]


@pytest.fixture
def family():
    """Two rewards around one frozen trunk."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trunk = SharedTrunk((8, 8, 8)).requires_grad_(False)
        return trunk, *(NetworkFeedback(RewardNetwork(trunk), name=axis) for axis in ("color", "layout"))


def _images(**settings):
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), **settings)


def _calls(trunk):
    calls = []
    trunk.stages[0].register_forward_hook(lambda *_: calls.append(1))
    return calls


def _alone(reward, images):
    """What a copy of the reward says, which remembers nothing."""
    return copy.deepcopy(reward.network)(images.detach().clone(), PROMPTS)


def test_rewards_of_a_family_share_one_evaluation_and_one_backward(family):
    trunk, color, layout = family
    calls, images = _calls(trunk), _images(requires_grad=True)
    (color(images, PROMPTS).sum() + layout(images, PROMPTS).sum()).backward()
    assert len(calls) == 1
    apart = []
    for reward in (color, layout):
        copied = _images(requires_grad=True)
        apart.append(torch.autograd.grad(reward(copied, PROMPTS).sum(), copied)[0])
    torch.testing.assert_close(images.grad, apart[0] + apart[1])


def test_without_a_graph_they_share_one_evaluation_for_as_long_as_the_picture_stays(family):
    trunk, color, layout = family
    images = _images()
    with torch.no_grad():
        expected = [_alone(reward, images) for reward in (color, layout)]
        calls = _calls(trunk)
        for _ in range(2):
            assert torch.equal(color(images, PROMPTS), expected[0])
            assert torch.equal(layout(images, PROMPTS), expected[1])
    assert len(calls) == 1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_picture_that_changed_in_place_is_looked_at_again(family, mode):
    _, color, _ = family
    with mode():
        images = _images()
        before = color(images, PROMPTS)
        images.mul_(0.2)
        after = color(images, PROMPTS)
        assert torch.equal(after, _alone(color, images)) and not torch.allclose(after, before)


def test_each_reward_can_have_a_backward_of_its_own(family):
    _, color, layout = family
    images = _images(requires_grad=True)
    first = torch.autograd.grad(color(images, PROMPTS).sum(), images)[0]
    second = torch.autograd.grad(layout(images, PROMPTS).sum(), images)[0]
    third = torch.autograd.grad(color(images, PROMPTS).sum(), images)[0]
    assert torch.equal(first, third) and not torch.allclose(first, second)


def test_a_picture_that_asks_for_a_gradient_later_gets_it(family):
    _, color, _ = family
    images = _images()
    assert not color(images, PROMPTS).requires_grad
    images.requires_grad_()
    color(images, PROMPTS).sum().backward()
    assert images.grad.abs().max() > 0


def test_the_remembered_graph_does_not_keep_its_trunk(family):
    trunk = copy.deepcopy(family[0])
    trunk(_images(requires_grad=True))
    gone = weakref.ref(trunk)
    del trunk
    gc.collect()
    assert gone() is None
