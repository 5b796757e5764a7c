from __future__ import annotations

import torch

from unifl.losses.reward import hinge, refl_margin


def test_hinge_gives_no_gradient_at_or_above_the_level():
    reward = torch.tensor([-1.0, 0.5, 1.8, 1.80001, 7.0], requires_grad=True)
    loss = hinge(reward, 1.8)
    torch.testing.assert_close(loss, torch.tensor([2.8, 1.3, 0.0, 0.0, 0.0]))
    assert torch.autograd.grad(loss.sum(), reward)[0].tolist() == [-1, -1, 0, 0, 0]


def test_hinge_takes_a_measured_level():
    level = torch.tensor([0.2, 0.6]).mean()
    torch.testing.assert_close(hinge(torch.tensor([0.1]), level), torch.tensor([0.3]))


def test_refl_margin_is_the_hinge_at_two():
    reward = torch.tensor([0.0, 1.5, 2.5])
    assert refl_margin(reward).tolist() == [2.0, 0.5, 0.0]
    assert torch.equal(refl_margin(reward, 1.0), hinge(reward, 1.0))
