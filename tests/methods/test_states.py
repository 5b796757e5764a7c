"""States by inversion: what they stand for, closed forms for linear denoisers, and the way back."""

from __future__ import annotations

import itertools

import pytest
import torch

from unifl.errors import UserError
from unifl.methods.states import InvertedStates, _step_back_deviation, inverted
from unifl.models.conditioning import Conditioning, Prediction
from unifl.process import ddim_step, per_sample
from unifl.randomness import Key

KEY = Key(0, 2, (3, 8))
T = torch.tensor([0.95, 0.4]).repeat(2)


@pytest.fixture
def x0():
    return torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def linear(make, monkeypatch):
    """A generator whose network says that the noise is factor(alpha, sigma) times x_t, and when it was asked."""

    def build(factor):
        generator = make()
        generator.asked = []

        def denoise(role, x_t, t, cond):
            assert role == "student" and not torch.is_grad_enabled() and len(cond) == len(x_t)
            generator.asked.append(t)
            alpha, sigma = (per_sample(weight, x_t) for weight in generator.process.weights(t))
            eps = factor(alpha, sigma) * x_t
            return Prediction(x_t, t, eps, (x_t - sigma * eps) / alpha, eps)

        monkeypatch.setattr(generator, "denoise", denoise)
        return generator

    return build


def gaussian(deviation):
    """What a perfect network says of pictures whose values are normal with this deviation."""
    return lambda alpha, sigma: sigma / ((alpha * deviation) ** 2 + sigma**2)


def invert(generator, config, x0, t=T, key=KEY):
    with torch.no_grad():
        return inverted(generator, config, x0, t, Conditioning(torch.zeros(len(x0), 2, 3)), key)


def back(generator, x_t, t, steps):
    """DDIM down the same grid, by the generator's own network."""
    for number in reversed(range(steps)):
        rows = (t > number / steps).nonzero()[:, 0]
        now = t[rows].clamp(max=(number + 1) / steps)
        with torch.no_grad():
            said = generator.denoise("student", x_t[rows], now, torch.zeros(len(rows)))
        down = torch.full_like(now, max(number / steps, 1 / 1000))
        x_t = x_t.index_copy(0, rows, ddim_step(said.x0, said.eps, down, generator.process))
    return x_t


@pytest.mark.parametrize("noise", [0.0, 0.1, 2.0])
@pytest.mark.parametrize("family", ["sd15", "sd21"])
def test_a_state_is_the_picture_with_the_noise_that_it_stands_for(make, x0, family, noise):
    generator = make(family)
    cond = generator.encode_prompts(["a cat"]).repeat(4)
    with torch.no_grad():
        x_t, eps = inverted(generator, InvertedStates(steps=4, noise=noise), x0, T, cond, KEY)
    torch.testing.assert_close(generator.process.add_noise(x0, eps, T), x_t, rtol=1e-5, atol=1e-5)


def test_a_linear_network_has_a_closed_form(linear, x0):
    """With eps = k x_t each step multiplies by alpha' / alpha (1 - sigma k) + sigma' k."""
    generator = linear(lambda alpha, sigma: 0.3)
    x_t, _ = invert(generator, InvertedStates(steps=5, noise=0.0), x0)
    for row, t in enumerate(T.tolist()):
        grid = [1 / 1000, *(point for point in (0.2, 0.4, 0.6, 0.8) if point < t - 1e-6), t]
        alpha, sigma = (w.tolist() for w in generator.process.weights(torch.tensor(grid)))
        factor = 1.0
        for before, after in zip(range(len(grid)), range(1, len(grid)), strict=False):
            factor *= alpha[after] / alpha[before] * (1 - 0.3 * sigma[before]) + 0.3 * sigma[after]
        torch.testing.assert_close(x_t[row], factor * x0[row], rtol=1e-4, atol=1e-5)


def test_it_follows_the_probability_flow_to_first_order(linear, x0):
    """Of normal pictures that flow is known: x_t is x0 times the growth of their deviation."""
    generator = linear(gaussian(0.5))
    alpha, sigma = generator.process.weights(torch.cat([torch.tensor([1 / 1000]), T]))
    deviation = ((0.5 * alpha) ** 2 + sigma**2).sqrt()
    exact = per_sample(deviation[1:] / deviation[0], x0) * x0
    errors = []
    for steps in (20, 40, 80):
        x_t, _ = invert(generator, InvertedStates(steps=steps, noise=0.0), x0)
        errors.append((x_t - exact).square().mean((1, 2, 3)).sqrt())
    for coarse, fine in itertools.pairwise(errors):
        assert bool(((coarse / fine - 2).abs() < 0.4).all())
    assert bool((errors[-1] < 0.08).all())  # where the state's values are near 2


def test_ddim_comes_back_to_the_picture(make, linear, x0):
    """The way back errs by half as much in steps half as long; with the noise of InPO it does not come back."""
    generator = linear(gaussian(0.5))
    off = []
    for steps in (20, 40, 80):
        x_t, _ = invert(generator, InvertedStates(steps=steps, noise=0.0), x0)
        off.append(float((back(generator, x_t, T, steps) - x0).square().mean().sqrt()))
    assert off[0] / off[1] == pytest.approx(2, abs=0.4) and off[1] / off[2] == pytest.approx(2, abs=0.4)
    x_t, _ = invert(generator, InvertedStates(steps=80, noise=2.0), x0)
    assert float((back(generator, x_t, T, 80) - x0).square().mean().sqrt()) > 5 * off[2]


def test_a_row_takes_the_steps_below_its_time(linear, x0):
    """The cost that the config states, exactly: on average over the timesteps, and row by row."""
    generator = linear(lambda alpha, sigma: 0.0)
    t = torch.arange(1, 1001) / 1000
    wide = x0[:1, :, :1, :1].expand(1000, 4, 1, 1)
    key = Key(0, 0, tuple(range(1000)))
    for steps in (1, 10, 16):
        generator.asked.clear()
        invert(generator, InvertedStates(steps=steps, noise=0.0), wide, t=t, key=key)
        asked = sum(len(times) for times in generator.asked)
        assert asked == sum(-(-index * steps // 1000) for index in range(1, 1001))
        assert asked / 1000 == pytest.approx(InvertedStates(steps=steps).evaluations(t))
        earliest = [float(times.min()) for times in generator.asked]
        assert earliest[0] == pytest.approx(1 / 1000) and earliest == sorted(earliest)


def test_the_noise_is_that_of_ddpm_and_shared_by_the_pictures_of_a_pair(linear, x0):
    """A network that says nothing multiplies by alpha' / alpha; what is left over is the noise of one step."""
    generator = linear(lambda alpha, sigma: 0.0)
    t = torch.full((4,), 0.5)
    plain, _ = invert(generator, InvertedStates(steps=2, noise=0.0), x0, t=t)
    noisy, _ = invert(generator, InvertedStates(steps=2, noise=0.7), x0, t=t)
    added = noisy - plain
    torch.testing.assert_close(added[:2], added[2:], rtol=1e-4, atol=1e-5)
    draws = KEY.normal("inversion/0", x0.shape[1:])
    spread = 0.7 * _step_back_deviation(t, torch.full_like(t, 1 / 1000), generator)
    torch.testing.assert_close(added[:2], per_sample(spread, x0)[:2] * draws, rtol=1e-4, atol=1e-5)


def test_the_spread_of_a_step_back_is_that_of_diffusers(make):
    """Timestep by timestep, DDPM's own posterior variance."""
    from diffusers import DDPMScheduler

    generator = make()
    scheduler = DDPMScheduler.from_config(generator.pipeline.scheduler.config, variance_type="fixed_small")
    scheduler.set_timesteps(1000)
    index = torch.tensor([2, 10, 400, 999])
    found = _step_back_deviation((index + 1) / 1000, index / 1000, generator)
    expected = torch.stack([scheduler._get_variance(int(i)) for i in index]).sqrt()
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"steps": 0}, "states.steps is 0; it must be at least 1"), ({"noise": -0.1}, "it must be 0 or more")],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(UserError, match=message):
        InvertedStates(**settings)
