from __future__ import annotations

import pytest
import torch
from torch import nn

from unifl.feedback.meta_reward import meta_gradient
from unifl.losses.preference import bradley_terry
from unifl.losses.reward_modelling import spread

SAMPLES = torch.tensor([[0.3, -1.0, 2.0], [0.5, 0.1, -0.4]], dtype=torch.float64)
WIN, LOSE = torch.tensor([1.5, -0.2], dtype=torch.float64), torch.tensor([0.5, 0.4], dtype=torch.float64)


def test_the_gradient_is_that_at_the_moved_parameters():
    """A reward w x, where everything can be written down."""
    w = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
    told, loss = meta_gradient(
        [w], lambda: spread(w * SAMPLES).mean(), lambda: bradley_terry(w * WIN, w * LOSE).mean(), eta=0.5
    )
    step = 0.0
    for row in SAMPLES.tolist():
        for i in range(3):
            for j in range(i + 1, 3):
                gap = abs(row[i] - row[j])
                p = float(torch.sigmoid(torch.tensor(0.7 * gap, dtype=torch.float64)))
                step += 2 / 9 * p * (1 - p) * gap / 2
    moved = 0.7 + 0.5 * step
    lead = WIN - LOSE
    expected = float((-lead * torch.sigmoid(-moved * lead)).mean())
    assert w.item() == 0.7 and w.grad.item() == pytest.approx(expected, rel=1e-9)
    assert told.item() == pytest.approx(spread(0.7 * SAMPLES).mean().item(), rel=1e-9)
    assert loss.item() == pytest.approx(bradley_terry(moved * WIN, moved * LOSE).mean().item(), rel=1e-9)


def test_without_a_step_it_is_the_ordinary_gradient_and_old_gradients_are_gone():
    network = nn.Linear(1, 1)
    network.weight.grad = torch.full_like(network.weight, 9.0)
    parameters = list(network.parameters())

    def loss():
        return bradley_terry(network(torch.ones(2, 1))[:, 0], network(torch.zeros(2, 1))[:, 0]).mean()

    meta_gradient(parameters, lambda: spread(network(torch.randn(3, 2, 1))[..., 0]).mean(), loss, eta=0.0)
    expected = torch.autograd.grad(loss(), network.weight)[0]
    torch.testing.assert_close(network.weight.grad, expected)


def test_parameters_come_back_when_the_loss_fails():
    w = nn.Parameter(torch.tensor(2.0))

    def fails():
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        meta_gradient([w], lambda: w * 3, fails, eta=1.0)
    assert w.item() == 2.0
