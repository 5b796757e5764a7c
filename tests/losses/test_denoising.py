from __future__ import annotations

import pytest
import torch

from unifl.losses.anchor import distance_to_start
from unifl.losses.denoising import denoising_mse, masked_mse, truncated_snr
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


def test_a_full_mask_is_the_plain_mean_and_both_shapes_are_one():
    error = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.ones(3, 1, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(masked_mse(error, mask), error.square().mean((1, 2, 3)), rtol=1e-12, atol=0)
    mask = torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.equal(masked_mse(error, mask), masked_mse(error, mask.unsqueeze(1)))


def test_a_mask_takes_the_mean_over_its_region_whatever_its_size():
    error = torch.full((3, 2, 4, 4), 5.0)
    error[:, :, 0, 0] = 1.0
    error[:, :, 0, 1] = 3.0
    mask = torch.zeros(3, 4, 4)
    mask[0, 0, 0] = 1.0  # one pixel: 1
    mask[1, 0, :2] = 1.0  # two: (1 + 9) / 2
    mask[2, 0, 0], mask[2, 0, 1] = 0.75, 0.25  # weighted: 0.75 + 0.25 * 9
    assert masked_mse(error, mask).tolist() == pytest.approx([1.0, 5.0, 3.0])


def test_nothing_outside_the_mask_is_trained_and_an_empty_mask_is_zero():
    error = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mask = torch.zeros(2, 1, 3, 3)
    mask[1, :, 1] = 1.0
    loss = masked_mse(error, mask)
    (slope,) = torch.autograd.grad(loss.sum(), error)
    assert float(loss[0]) == 0.0 and not slope[0].any()
    assert slope[1, :, 1].all() and not slope[1, :, [0, 2]].any()


def test_a_masked_error_in_half_precision_is_summed_in_float32():
    """256 x 256 x 4 squares of 1 overflow float16 at 65504."""
    loss = masked_mse(torch.ones(1, 4, 256, 256).half(), torch.ones(1, 1, 256, 256).half())
    assert loss.dtype == torch.float32 and loss.tolist() == [1.0]
