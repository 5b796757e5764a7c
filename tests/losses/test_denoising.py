from __future__ import annotations

import pytest
import torch

from unifl.losses.anchor import distance_to_start
from unifl.losses.denoising import denoising_mse, truncated_snr
from unifl.process.prediction import from_x0_eps

KINDS = ("epsilon", "v_prediction", "sample", "flow")


def draw() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return *torch.randn(2, 3, 4, 2, 2, generator=generator), torch.tensor([0.9, 0.5, 0.1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_right_answer_costs_nothing_and_an_offset_its_square(kind):
    x0, eps, alpha = draw()
    sigma = (1 - alpha**2).sqrt()
    target = from_x0_eps(x0, eps, alpha, sigma, kind)
    assert denoising_mse(target, x0, eps, alpha, sigma, kind).tolist() == [0, 0, 0]
    offset = torch.tensor([0.0, 1.0, 2.0]).reshape(3, 1, 1, 1)
    loss = denoising_mse(target + offset, x0, eps, alpha, sigma, kind)
    torch.testing.assert_close(loss, torch.tensor([0.0, 1.0, 4.0]))


def test_v_loss_is_the_weighted_x0_loss():
    """At fixed x_t an error d in x0 is an error -d / sigma in v on a variance-preserving path."""
    x0, eps, alpha = draw()
    sigma = (1 - alpha**2).sqrt()
    error = torch.randn(x0.shape, generator=torch.Generator().manual_seed(3))
    wide = (3, 1, 1, 1)
    x_t = alpha.reshape(wide) * x0 + sigma.reshape(wide) * eps
    guess = x0 + error
    implied_eps = (x_t - alpha.reshape(wide) * guess) / sigma.reshape(wide)
    raw = from_x0_eps(guess, implied_eps, alpha, sigma, "v_prediction")
    loss = denoising_mse(raw, x0, eps, alpha, sigma, "v_prediction")
    torch.testing.assert_close(loss, error.square().mean((1, 2, 3)) / sigma**2, rtol=1e-4, atol=1e-5)


def test_the_truncated_snr_takes_the_larger_of_two_errors():
    """At fixed x_t an error d in x0 is one of -alpha / sigma d in eps."""
    alpha = torch.tensor([0.9, 0.5, 0.1])
    sigma = (1 - alpha**2).sqrt()
    in_x0, in_eps = torch.ones(3), (alpha / sigma).square()
    torch.testing.assert_close(truncated_snr(alpha, sigma), torch.maximum(in_x0, in_eps))
    assert truncated_snr(alpha, sigma).tolist()[1:] == [1.0, 1.0]


def test_distance_to_start_is_a_mean_and_holds_the_reference_fixed():
    raw = torch.tensor([[1.0, 3.0], [0.0, 0.0]], requires_grad=True)
    reference = torch.tensor([[0.0, 1.0], [0.0, 0.0]], requires_grad=True)
    loss = distance_to_start(raw, reference)
    assert loss.tolist() == [2.5, 0.0]
    slopes = torch.autograd.grad(loss.sum(), (raw, reference), allow_unused=True)
    assert slopes[0].tolist() == [[1.0, 2.0], [0.0, 0.0]] and slopes[1] is None
