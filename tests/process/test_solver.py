"""The exact solution comes from the probability-flow ODE keeping each sample's quantile (one dimension)."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from unifl.process.prediction import to_eps, to_x0
from unifl.process.process import DiscreteVP, Flow, zero_terminal_snr
from unifl.process.solver import SolverConfig, ddim_step, euler_step, solve
from unifl.process.timesteps import index_of_time, time_grid

MEAN, STD, SHARE = (torch.tensor(v, dtype=torch.float64) for v in ([-1.0, 1.5], [0.5, 0.3], [0.3, 0.7]))
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def cdf(x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    spread = ((alpha * STD) ** 2 + sigma**2).sqrt()
    return (SHARE * torch.special.ndtr((x[:, None] - alpha * MEAN) / spread)).sum(1)


def denoised(x: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """E[x0 | x_t] of the mixture."""
    a, s, x = alpha[:, None], sigma[:, None], x[:, None]
    variance = (a * STD) ** 2 + s**2
    weight = torch.softmax(SHARE.log() - 0.5 * variance.log() - 0.5 * (x - a * MEAN) ** 2 / variance, dim=1)
    return (weight * (MEAN + a * STD**2 / variance * (x - a * MEAN))).sum(1)


def exact_end(x: torch.Tensor, alpha: float, sigma: float, end: tuple[float, float]) -> torch.Tensor:
    """Inverts the final distribution function by bisection at each sample's quantile."""
    quantile = cdf(x, alpha, sigma)
    low, high = torch.full_like(x, -20), torch.full_like(x, 20)
    for _ in range(100):
        middle = (low + high) / 2
        too_low = cdf(middle, *end) < quantile
        low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)
    return low


def integrate(process, num_steps: int, x: torch.Tensor, end: float) -> torch.Tensor:
    times = torch.linspace(1, end, num_steps + 1, dtype=torch.float64)
    for t, s in pairwise(times.tolist()):
        t, s = torch.full_like(x, t), torch.full_like(x, s)
        alpha, sigma = process.alpha(t), process.sigma(t)
        x0 = denoised(x, alpha, sigma)
        eps = (x - alpha * x0) / sigma
        x = euler_step(x, eps - x0, t, s) if isinstance(process, Flow) else ddim_step(x0, eps, s, process)
    return x


def measured_orders(process, end: float) -> tuple[list[float], list[float]]:
    x = torch.linspace(-2.2, 2.2, 31, dtype=torch.float64)
    one, last = torch.ones(1, dtype=torch.float64), torch.full((1,), end, dtype=torch.float64)
    target = process.alpha(last).item(), process.sigma(last).item()
    exact = exact_end(x, process.alpha(one).item(), process.sigma(one).item(), target)
    errors = [float((integrate(process, n, x, end) - exact).abs().mean()) for n in (125, 250, 500)]
    return errors, [math.log2(a / b) for a, b in pairwise(errors)]


def process_named(name: str):
    table = DDIMScheduler(**SCHEDULE).alphas_cumprod.double()
    choices = {"vp": DiscreteVP(table), "vp zero snr": DiscreteVP(zero_terminal_snr(table)), "flow": Flow()}
    return choices[name]


@pytest.mark.parametrize("name", ["vp", "vp zero snr", "flow"])
def test_solvers_converge_at_first_order(name):
    errors, orders = measured_orders(process_named(name), end=0.1)
    assert errors[-1] < 2e-3
    assert all(0.98 < order < 1.02 for order in orders)


@pytest.mark.parametrize("name", ["vp", "vp zero snr", "flow"])
def test_solvers_converge_all_the_way_to_data(name):
    """On a VP path log-SNR diverges at t = 0: h log(1/h) instead of h, which looks like 0.87 at these sizes."""
    errors, orders = measured_orders(process_named(name), end=0.0)
    assert errors[-1] < 6e-3
    assert all(0.85 < order < 1.02 for order in orders)


@pytest.mark.parametrize("name", ["vp", "vp zero snr", "flow"])
@pytest.mark.parametrize(("order", "substeps"), [(1, (100, 200, 400)), (2, (20, 40, 80))])
def test_the_order_of_solve_is_the_order_of_its_error(name, order, substeps):
    process, x = process_named(name), torch.linspace(-2.2, 2.2, 31, dtype=torch.float64)
    start, end = torch.ones_like(x), torch.full_like(x, 0.1)
    one, last = ([float(weight[0]) for weight in process.weights(t)] for t in (start, end))
    exact = exact_end(x, *one, tuple(last))

    def field(x_t, t):
        alpha, sigma = process.weights(t)
        x0 = denoised(x_t, alpha, sigma)
        return x0, (x_t - alpha * x0) / sigma

    errors = []
    for number in substeps:
        found = solve(field, x, start, end, process, SolverConfig(substeps=number, order=order))
        errors.append(float((found - exact).abs().mean()))
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert errors[-1] < 3e-3
    assert all(order - 0.1 < found < order + 0.1 for found in orders), orders


# Against diffusers. A fixed smooth function stands for the network; it sees the input and the timestep.


def fake_network(x: torch.Tensor, index: float) -> torch.Tensor:
    return 0.8 * x + 0.3 * torch.tanh(x.roll(1, -1)) + 0.1 * math.sin(index / 100)


def noise() -> torch.Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def our_ddim(
    table: torch.Tensor, grid: torch.Tensor, kind: str, x: torch.Tensor, **stochastic
) -> torch.Tensor:
    process = DiscreteVP(table)
    for t, s in pairwise(grid):
        raw = fake_network(x, float(index_of_time(t)))
        t, s = t.expand(len(x)), s.expand(len(x))
        weights = process.alpha(t), process.sigma(t)
        x0, eps = to_x0(raw, x, *weights, kind), to_eps(raw, x, *weights, kind)
        x = ddim_step(x0, eps, s, process, t=t, **stochastic)
    return x


def their_ddim(scheduler: DDIMScheduler, num_steps: int, x: torch.Tensor, **stochastic) -> torch.Tensor:
    scheduler.set_timesteps(num_steps)
    for index in scheduler.timesteps:
        x = scheduler.step(fake_network(x, float(index)), int(index), x, **stochastic).prev_sample
    return x


def ddim_scheduler(**settings) -> DDIMScheduler:
    defaults = {"clip_sample": False, "set_alpha_to_one": True, "steps_offset": 1}
    return DDIMScheduler(**(SCHEDULE | defaults | settings))


@pytest.mark.parametrize("num_steps", [4, 20, 50])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_ddim_equals_diffusers(kind, spacing, num_steps):
    scheduler = ddim_scheduler(prediction_type=kind, timestep_spacing=spacing)
    ours = our_ddim(scheduler.alphas_cumprod, time_grid(num_steps, spacing), kind, noise())
    torch.testing.assert_close(ours, their_ddim(scheduler, num_steps, noise()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_ddim_with_zero_terminal_snr_equals_diffusers(kind):
    scheduler = ddim_scheduler(prediction_type=kind, timestep_spacing="trailing", rescale_betas_zero_snr=True)
    table = zero_terminal_snr(ddim_scheduler().alphas_cumprod)
    ours = our_ddim(table, time_grid(20, "trailing"), kind, noise())
    torch.testing.assert_close(ours, their_ddim(scheduler, 20, noise()), rtol=0, atol=1e-5)


def test_stopping_at_index_zero_is_set_alpha_to_one_false():
    scheduler = ddim_scheduler(set_alpha_to_one=False, timestep_spacing="trailing")
    theirs, grid = their_ddim(scheduler, 20, noise()), time_grid(20, "trailing")
    assert (our_ddim(scheduler.alphas_cumprod, grid, "epsilon", noise()) - theirs).abs().max() > 1e-2
    grid[-1] = 1 / 1000
    ours = our_ddim(scheduler.alphas_cumprod, grid, "epsilon", noise())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_stochastic_ddim_equals_diffusers(eta):
    scheduler, extra = ddim_scheduler(timestep_spacing="trailing"), noise().flip(0)
    theirs = their_ddim(scheduler, 20, noise(), eta=eta, variance_noise=extra)
    ours = our_ddim(
        scheduler.alphas_cumprod, time_grid(20, "trailing"), "epsilon", noise(), eta=eta, noise=extra
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_steps", [3, 7, 20, 30])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_equals_euler_in_the_coordinates_of_diffusers(spacing, num_steps):
    """Also for step counts that do not divide T, where their DDIM aims beside its own next timestep."""
    scheduler = EulerDiscreteScheduler(**SCHEDULE, timestep_spacing=spacing, steps_offset=1)
    scheduler.set_timesteps(num_steps)
    table = scheduler.alphas_cumprod
    theirs = noise() / table[int(scheduler.timesteps[0])].sqrt()
    for index in scheduler.timesteps:
        raw = fake_network(scheduler.scale_model_input(theirs, index), float(index))
        theirs = scheduler.step(raw, index, theirs).prev_sample
    ours = our_ddim(table, time_grid(num_steps, spacing), "epsilon", noise())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_trailing_steps_that_do_not_divide_t_explain_the_difference_to_diffusers():
    """Their step goes T // n indices down, not to the next timestep; ours does the same when told to."""
    scheduler, x = ddim_scheduler(timestep_spacing="trailing"), noise()
    theirs = their_ddim(scheduler, 7, x)
    assert (
        our_ddim(scheduler.alphas_cumprod, time_grid(7, "trailing"), "epsilon", x) - theirs
    ).abs().max() > 1e-3
    process = DiscreteVP(scheduler.alphas_cumprod)
    for index in scheduler.timesteps.tolist():
        t, s = (torch.full((2,), (i + 1) / 1000) for i in (index, index - 1000 // 7))
        raw = fake_network(x, index)
        x = ddim_step(to_x0(raw, x, process.alpha(t), process.sigma(t), "epsilon"), raw, s, process)
    torch.testing.assert_close(x, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_steps", [4, 20, 28])
def test_flow_euler_equals_diffusers(num_steps):
    scheduler, x = FlowMatchEulerDiscreteScheduler(), noise()
    times = torch.linspace(1, 0, num_steps + 1)
    scheduler.set_timesteps(sigmas=times[:-1].tolist())
    theirs = x
    for timestep in scheduler.timesteps:
        theirs = scheduler.step(fake_network(theirs, float(timestep)), timestep, theirs).prev_sample
    for t, s in pairwise(times):
        x = euler_step(x, fake_network(x, float(1000 * t)), t.expand(2), s.expand(2))
    torch.testing.assert_close(x, theirs, rtol=0, atol=1e-5)


def test_euler_and_ddim_are_the_same_step_on_the_straight_path():
    x0, eps = noise(), noise().flip(1)
    t, s = torch.tensor([0.8, 0.5]), torch.tensor([0.6, 0.0])
    x_t = Flow().add_noise(x0, eps, t)
    torch.testing.assert_close(
        euler_step(x_t, eps - x0, t, s), ddim_step(x0, eps, s, Flow()), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("process", [Flow(), DiscreteVP(torch.linspace(0.99, 0.01, 50))])
def test_ancestral_steps_keep_the_marginal(process):
    """With x0 known, x_s has mean alpha(s) x0 and standard deviation sigma(s) for every eta."""
    generator = torch.Generator().manual_seed(0)
    eps, extra = torch.randn(2, 1, 200_000, generator=generator)
    x0, t, s = torch.full((1, 200_000), 0.7), torch.tensor([0.8]), torch.tensor([0.4])
    x_s = ddim_step(x0, eps, s, process, eta=1.0, t=t, noise=extra)
    assert float(x_s.mean()) == pytest.approx(0.7 * process.alpha(s).item(), abs=5e-3)
    assert float(x_s.std()) == pytest.approx(process.sigma(s).item(), rel=1e-2)
