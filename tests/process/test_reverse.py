from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from unifl.process import (
    DiscreteVP,
    Flow,
    ddim_step,
    euler_step,
    from_x0_eps,
    renoise_scale,
    reverse_scale,
    reverse_step,
    to_eps,
    to_x0,
    zero_terminal_snr,
)

T = 1000
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, T, dtype=torch.float64).square()
SD = DiscreteVP((1 - BETAS).cumprod(0))
KINDS = ("epsilon", "v_prediction", "sample", "flow")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def times(*indices):
    return (torch.tensor(indices, dtype=torch.float64) + 1) / T


def state(t, process=SD):
    x0, eps, z = (normal(len(t), 3, seed=seed) for seed in range(3))
    return process.add_noise(x0, eps, t), x0, eps, z


def test_scale_on_the_schedule_of_stable_diffusion():
    indices = [1, 10, 100, 200, 500, 800, 999]
    found = reverse_scale(times(*indices), times(*(i - 1 for i in indices)), SD, "epsilon")
    expected = torch.tensor([0.0207, 0.0092, 0.0043, 0.0041, 0.0057, 0.0090, 0.0121], dtype=torch.float64)
    assert (found - expected).abs().max() < 6e-5
    every = reverse_scale(times(*range(1, T)), times(*range(T - 1)), SD, "epsilon")
    alpha, abar = (1 - BETAS)[1:], SD.alphas_cumprod[1:]
    torch.testing.assert_close(every, (1 - alpha) / (alpha.sqrt() * (1 - abar).sqrt()), rtol=1e-9, atol=0)
    single = reverse_scale(times(*range(1, T)).float(), times(*range(T - 1)).float(), SD, "epsilon")
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), every, rtol=1e-3, atol=0)


def test_the_step_is_equation_12():
    t, s = times(1, 400, 999), times(0, 399, 998)
    x_t, x0, eps, z = state(t)
    alpha, abar = (1 - BETAS)[[1, 400, 999]][:, None], SD.alphas_cumprod[[1, 400, 999]][:, None]
    mean = (x_t - (1 - alpha) / (1 - abar).sqrt() * eps) / alpha.sqrt()
    torch.testing.assert_close(reverse_step(x_t, x0, t, s, SD), mean, rtol=1e-9, atol=1e-9)
    before = SD.alphas_cumprod[[0, 399, 998]][:, None]
    deviation = ((1 - before) / (1 - abar) * (1 - alpha)).sqrt()
    torch.testing.assert_close(reverse_step(x_t, x0, t, s, SD, z), mean + deviation * z, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("index", [1, 250, 999])
def test_the_step_equals_that_of_diffusers(index):
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )
    t, s = times(index), times(index - 1)
    x_t, x0, eps, _ = state(t)
    torch.manual_seed(3)
    z = torch.randn(1, 3, dtype=torch.float64)
    expected = scheduler.step(eps, index, x_t, generator=torch.manual_seed(3)).prev_sample
    torch.testing.assert_close(reverse_step(x_t, x0, t, s, SD, z), expected, rtol=1e-5, atol=1e-5)


def test_any_earlier_time_is_ancestral_ddim():
    t, s = times(999, 600, 20), times(400, 599, 3)
    x_t, x0, eps, z = state(t)
    expected = ddim_step(x0, eps, s, SD, eta=1.0, t=t, noise=z)
    torch.testing.assert_close(reverse_step(x_t, x0, t, s, SD, z), expected, rtol=1e-9, atol=1e-9)


def test_ends_of_the_way():
    t = times(500, 20)
    x_t, x0, _, z = state(t)
    torch.testing.assert_close(reverse_step(x_t, x0, t, torch.zeros_like(t), SD, z), x0)
    torch.testing.assert_close(reverse_step(x_t, x0, t, t, SD, z), x_t)


def test_zero_terminal_snr_stays_finite():
    process = DiscreteVP(zero_terminal_snr(SD.alphas_cumprod))
    t, s = times(999), times(998)
    x_t, x0, _, _ = state(t, process)
    assert bool(reverse_step(x_t, x0, t, s, process).isfinite().all())
    assert 0 < reverse_scale(t, s, process, "v_prediction").item() < 1


def test_flow_takes_an_euler_step():
    flow = Flow()
    t, s = times(999, 500, 1), times(998, 499, 0)
    x_t, x0, eps, z = state(t, flow)
    expected = euler_step(x_t, eps - x0, t, s)
    torch.testing.assert_close(reverse_step(x_t, x0, t, s, flow, z), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(reverse_scale(t, s, flow, "flow"), t - s, rtol=1e-9, atol=0)


@pytest.mark.parametrize("process", [SD, Flow()], ids=["vp", "flow"])
@pytest.mark.parametrize("kind", KINDS)
def test_scales_are_the_slopes_of_the_states(process, kind):
    t, s, other = times(900, 400, 1), times(899, 399, 0), times(100, 700, 2)
    x_t, x0, eps, _ = state(t, process)
    alpha, sigma = process.weights(t)
    raw = from_x0_eps(x0, eps, alpha, sigma, kind)
    moved = raw + 0.1

    def back(output):
        return reverse_step(x_t, to_x0(output, x_t, alpha, sigma, kind), t, s, process)

    def again(output):
        parts = (convert(output, x_t, alpha, sigma, kind) for convert in (to_x0, to_eps))
        return process.add_noise(*parts, other)

    for states, scale in (
        (back, reverse_scale(t, s, process, kind)),
        (again, renoise_scale(t, other, process, kind)),
    ):
        slope = (states(moved) - states(raw)).abs() / 0.1
        torch.testing.assert_close(slope, scale[:, None].expand_as(slope), rtol=1e-6, atol=1e-9)


def test_a_time_noised_again_to_itself_has_no_slope():
    t = times(300)
    assert renoise_scale(t, t, SD, "epsilon").item() < 1e-12
