"""Flow maps and trajectories of an exact field: a Gaussian, whose map is closed-form."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from unifl.errors import UserError
from unifl.process import (
    ConsistencySampler,
    DiscreteVP,
    Flow,
    SolverConfig,
    ddim_map,
    ddim_origin,
    ddim_step,
    solve,
    zero_terminal_snr,
)

MEAN, STD = 0.7, 0.4
PROCESSES = ["vp", "vp zero snr", "flow"]


def at(x, t):
    return torch.full_like(x, t)


def points(dtype=torch.float64):
    return torch.linspace(-2.2, 2.2, 31, dtype=dtype)


def process_named(name):
    table = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
    choices = {"vp": DiscreteVP(table), "vp zero snr": DiscreteVP(zero_terminal_snr(table)), "flow": Flow()}
    return choices[name]


def gaussian(process):
    def field(x_t, t):
        alpha, sigma = process.weights(t)
        x0 = MEAN + alpha * STD**2 / ((alpha * STD) ** 2 + sigma**2) * (x_t - alpha * MEAN)
        return x0, (x_t - alpha * x0) / sigma

    return field


def exact_map(process, x_t, t, s):
    """Of the Gaussian: each sample keeps its distance from the mean in standard deviations."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.weights(t), process.weights(s)
    grown = ((alpha_s * STD) ** 2 + sigma_s**2).sqrt() / ((alpha_t * STD) ** 2 + sigma_t**2).sqrt()
    return alpha_s * MEAN + grown * (x_t - alpha_t * MEAN)


@pytest.mark.parametrize("name", PROCESSES)
def test_one_substep_of_order_1_is_ddim(name):
    process, x = process_named(name), points()
    t, s = at(x, 0.8), at(x, 0.5)
    x0, eps = gaussian(process)(x, t)
    found = solve(gaussian(process), x, t, s, process, SolverConfig())
    assert torch.equal(found, ddim_step(x0, eps, s, process))
    assert torch.equal(found, ddim_map(x, x0, eps, t, s, process))


@pytest.mark.parametrize("name", PROCESSES)
def test_trajectories_compose_and_end_where_the_exact_map_does(name):
    """Semigroup: t to s and then s to r is t to r, bit for bit but for the rounding of times."""
    process, x = process_named(name), points()
    t, s, r = at(x, 0.9), at(x, 0.6), at(x, 0.3)
    field = gaussian(process)
    through = solve(field, x, t, s, process, SolverConfig(substeps=32, order=2))
    through = solve(field, through, s, r, process, SolverConfig(substeps=32, order=2))
    straight = solve(field, x, t, r, process, SolverConfig(substeps=64, order=2))
    torch.testing.assert_close(through, straight, rtol=0, atol=1e-12)
    torch.testing.assert_close(straight, exact_map(process, x, t, r), rtol=0, atol=1e-4)
    composed = exact_map(process, exact_map(process, x, t, s), s, r)
    torch.testing.assert_close(composed, exact_map(process, x, t, r), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_jump_to_the_present_changes_no_bit(name, dtype):
    process, x = process_named(name), points(dtype)
    for time in (1.0, 0.37, 1 / 1000):
        x0, eps = points(dtype).flip(0), points(dtype).cos()  # whatever is predicted
        assert torch.equal(ddim_map(x, x0, eps, at(x, time), at(x, time), process), x)
    apart = ddim_map(x, x0, eps, at(x, 0.5), at(x, 0.4), process)
    assert torch.equal(apart, ddim_step(x0, eps, at(x, 0.4), process)) and not torch.equal(apart, x)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(("t", "middle", "s"), [(0.8, 0.55, 0.3), (1.0, 0.75, 0.5), (0.25, 0.125, 0.0)])
def test_one_jump_to_the_target_of_progressive_distillation_is_two_of_the_teacher(name, t, middle, s):
    process, x = process_named(name), points()
    t, middle, s = (at(x, time) for time in (t, middle, s))
    field = gaussian(process)
    half_way = solve(field, x, t, middle, process, SolverConfig())
    x_s = solve(field, half_way, middle, s, process, SolverConfig())
    target = ddim_origin(x, x_s, t, s, process)
    alpha, sigma = process.weights(t)
    eps = (x - alpha * target) / sigma
    torch.testing.assert_close(ddim_map(x, target, eps, t, s, process), x_s, rtol=0, atol=1e-9)
    if float(s[0]) == 0:
        assert torch.equal(target, x_s)  # nothing is left of the noise
    else:
        assert float((target - field(x, t)[0]).abs().max()) > 1e-3  # not what one step would aim at


@pytest.mark.parametrize("process", ["vp", "flow"])
def test_the_origin_of_a_jump_is_what_it_was_made_with(process):
    """In float32, over the intervals that occur: its rounding grows as they shrink."""
    process = process_named(process)
    x, x0 = points(torch.float32), points(torch.float32).sin()
    for num_steps, tolerance in ((4, 2e-6), (50, 2e-5), (1000, 5e-4)):
        for index in (0, num_steps // 2, num_steps - 1):
            t, s = at(x, (index + 1) / num_steps), at(x, index / num_steps)
            alpha, sigma = process.weights(t)
            jump = ddim_map(x, x0, (x - alpha * x0) / sigma, t, s, process)
            torch.testing.assert_close(
                ddim_origin(x, jump, t, s, process), x0, rtol=0, atol=tolerance / float(alpha.clamp(0.1)[0])
            )


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("gamma", [0.3, 1.0])
def test_noise_of_the_tcd_sampler_keeps_the_marginal(name, gamma):
    """x_s has weight alpha(s) of the data and variance sigma(s)^2, whatever share of it is new."""
    process, one = process_named(name), torch.ones(1, dtype=torch.float64)
    none, sampler = torch.zeros_like(one), ConsistencySampler(kind="tcd", gamma=gamma)
    for t, s in ((1.0, 0.75), (0.75, 0.5), (0.5, 0.25), (0.1, 0.02)):

        def step(x0, eps, noise, t=t, s=s):
            return float(sampler.step(one, x0, eps, at(one, t), at(one, s), noise, process))

        alpha, sigma = (float(weight) for weight in process.weights(at(one, s)))
        assert step(one, none, none) == pytest.approx(alpha, rel=1e-9)
        old, new = step(none, one, none), step(none, none, one)
        assert old**2 + new**2 == pytest.approx(sigma**2, rel=1e-9)
        assert new > 0.01


def test_a_noisy_solver_keeps_the_marginal_of_a_gaussian():
    """Several substeps with eta 1 from the marginal at t end in that at s, up to the error of 32 steps."""
    process, config = process_named("vp"), SolverConfig(substeps=32, eta=1.0)
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(50_000, generator=generator, dtype=torch.float64)
    t, s = at(x_t, 0.9), at(x_t, 0.3)

    def spread(time):
        alpha, sigma = process.weights(time[:1])
        return float(alpha) * MEAN, float(((alpha * STD) ** 2 + sigma**2).sqrt())

    x_t = spread(t)[0] + spread(t)[1] * x_t
    found = solve(
        gaussian(process),
        x_t,
        t,
        s,
        process,
        config,
        noise=lambda number: torch.randn(x_t.shape, generator=generator, dtype=x_t.dtype),
    )
    mean, std = spread(s)
    assert float(found.mean()) == pytest.approx(mean, abs=0.02)
    assert float(found.std()) == pytest.approx(std, rel=0.02)
    # and it is not the trajectory without noise
    quiet = solve(gaussian(process), x_t, t, s, process, SolverConfig(substeps=32))
    assert float(torch.corrcoef(torch.stack([found, quiet]))[0, 1]) < 0.9


def test_settings_of_the_solver_that_make_no_sense():
    with pytest.raises(UserError, match=r"solver.substeps is 0; it must be at least 1"):
        SolverConfig(substeps=0)
    with pytest.raises(UserError, match=r"solver.eta is 1.5"):
        SolverConfig(eta=1.5)
    with pytest.raises(UserError, match=r"stochastic steps are of order 1"):
        SolverConfig(order=2, eta=0.5)
