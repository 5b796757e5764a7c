from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unifl.errors import UserError
from unifl.process.process import DiscreteVP, Flow, per_sample, zero_terminal_snr


def stable_diffusion_table(num: int = 1000) -> torch.Tensor:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, num, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


def test_indices_carry_the_values_of_the_table():
    table = stable_diffusion_table()
    t = (torch.arange(1000, dtype=torch.float32) + 1) / 1000
    process = DiscreteVP(table)
    torch.testing.assert_close(process.alpha(t).double(), table.sqrt(), rtol=0, atol=6e-8)
    torch.testing.assert_close(process.sigma(t).double(), (1 - table).sqrt(), rtol=0, atol=6e-8)


def test_time_zero_is_clean_and_time_one_is_the_last_index():
    table = stable_diffusion_table()
    process = DiscreteVP(table)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert process.alpha(t)[0] == 1 and process.sigma(t)[0] == 0
    assert float(process.alpha(t)[1]) == pytest.approx(float(table[-1].sqrt()), rel=1e-12)


@given(st.floats(0, 1), st.booleans())
def test_variance_is_preserved_everywhere(t, terminal):
    table = stable_diffusion_table(20)
    process = DiscreteVP(zero_terminal_snr(table) if terminal else table)
    time = torch.tensor([t], dtype=torch.float64)
    assert float(process.alpha(time) ** 2 + process.sigma(time) ** 2) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("terminal", [False, True])
def test_weights_are_monotone_continuous_and_differentiable(terminal):
    table = stable_diffusion_table(20)
    process = DiscreteVP(zero_terminal_snr(table) if terminal else table)
    t = torch.linspace(0, 1, 4001, dtype=torch.float64, requires_grad=True)
    alpha, sigma = process.alpha(t), process.sigma(t)
    assert (alpha.diff() <= 0).all() and (sigma.diff() > -1e-15).all()
    assert alpha.diff().abs().max() < 2e-3 and sigma.diff().abs().max() < 2e-3
    (slope,) = torch.autograd.grad(sigma.sum(), t)
    assert slope.isfinite().all()
    measured = (sigma[2:] - sigma[:-2]).detach() / (t[2:] - t[:-2]).detach()
    off_kinks = ((t[1:-1].detach() * 20) % 1 - 0.5).abs() < 0.4
    torch.testing.assert_close(slope[1:-1][off_kinks], measured[off_kinks], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("terminal", [False, True])
def test_the_gradient_is_finite_at_every_time_of_a_long_schedule(terminal):
    table = stable_diffusion_table()
    process = DiscreteVP(zero_terminal_snr(table) if terminal else table)
    t = torch.linspace(0, 1, 2001, requires_grad=True)
    slopes = torch.autograd.grad(process.alpha(t).sum(), t) + torch.autograd.grad(process.sigma(t).sum(), t)
    assert all(slope.isfinite().all() for slope in slopes)


def test_log_snr_is_linear_between_indices():
    table = stable_diffusion_table(10)
    process = DiscreteVP(table)
    t = torch.tensor([0.3, 0.325, 0.35, 0.4], dtype=torch.float64)  # indices 2, 2.25, 2.5, 3
    log_snr = 2 * (process.alpha(t).log() - process.sigma(t).log())
    expected = torch.logit(table[2]) + torch.tensor([0, 0.25, 0.5, 1.0], dtype=torch.float64) * (
        torch.logit(table[3]) - torch.logit(table[2])
    )
    torch.testing.assert_close(log_snr, expected, rtol=1e-10, atol=1e-10)


def test_zero_terminal_snr_equals_diffusers():
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    theirs = (1 - rescale_zero_terminal_snr(betas)).cumprod(0)
    ours = zero_terminal_snr((1 - betas).cumprod(0))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert ours[-1] == 0
    assert ours[0] == pytest.approx(float(1 - betas[0]), rel=1e-6)


def test_zero_terminal_snr_ends_in_pure_noise():
    process = DiscreteVP(zero_terminal_snr(stable_diffusion_table()))
    one = torch.ones(1)
    assert process.ends_in_noise
    assert process.alpha(one) == 0 and process.sigma(one) == 1


def test_flow_is_the_straight_path():
    x0, eps, t = torch.randn(3, 2, 2), torch.randn(3, 2, 2), torch.tensor([0.0, 0.25, 1.0])
    x_t = Flow().add_noise(x0, eps, t)
    torch.testing.assert_close(x_t[0], x0[0])
    torch.testing.assert_close(x_t[1], 0.75 * x0[1] + 0.25 * eps[1])
    torch.testing.assert_close(x_t[2], eps[2])


def test_add_noise_equals_diffusers():
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 6, 4, 3, 3, generator=generator)
    index = torch.tensor([0, 1, 250, 500, 998, 999])
    ours = DiscreteVP(scheduler.alphas_cumprod).add_noise(x0, eps, (index + 1) / 1000)
    torch.testing.assert_close(ours, scheduler.add_noise(x0, eps, index), rtol=0, atol=1e-6)


def test_per_sample_keeps_the_batch_and_pads_the_rest():
    assert per_sample(torch.ones(4), torch.zeros(4, 3, 2, 2)).shape == (4, 1, 1, 1)
    assert per_sample(torch.ones(4), torch.zeros(4)).shape == (4,)


@pytest.mark.parametrize("table", [[0.5, 0.9], [1.0, 0.5], [0.5, -0.1], [0.9, 0.0, 0.0], [0.9]])
def test_tables_that_are_no_schedule_are_refused(table):
    with pytest.raises(UserError, match="alphas_cumprod"):
        DiscreteVP(torch.tensor(table))


def test_zero_terminal_snr_refuses_a_flat_table():
    with pytest.raises(UserError, match="alphas_cumprod"):
        zero_terminal_snr(torch.tensor([0.5, 0.5]))
