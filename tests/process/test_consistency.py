from __future__ import annotations

import pytest
import torch
from diffusers import LCMScheduler, TCDScheduler

from unifl.errors import UserError
from unifl.process import ConsistencySampler, DiscreteVP, ddim_map, lcm_map, lcm_scalings, to_eps, to_x0

NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}


@pytest.mark.parametrize("number", [1, 2, 3, 4, 7, 8, 50])
@pytest.mark.parametrize("points", [20, 50])
def test_times_are_those_of_the_diffusers_schedulers(number, points):
    if number > points:
        with pytest.raises(UserError, match=f"choose 1 to {points}, the points of the grid"):
            ConsistencySampler(origin_steps=points).times(number)
        return
    times = ConsistencySampler(origin_steps=points).times(number)
    for cls in (LCMScheduler, TCDScheduler):
        scheduler = cls(**NOISE, original_inference_steps=points)
        scheduler.set_timesteps(number)
        assert (times * 1000 - 1).round().long().tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize(("kind", "gamma"), [("lcm", 0.3), ("tcd", 0.0), ("tcd", 0.3), ("tcd", 1.0)], ids=str)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_steps_are_those_of_the_diffusers_schedulers(kind, gamma, prediction, monkeypatch):
    """Every step of a schedule of five, the last included."""
    sampler = ConsistencySampler(kind=kind, gamma=gamma)
    cls = {"lcm": LCMScheduler, "tcd": TCDScheduler}[kind]
    scheduler = cls(**(NOISE | {"prediction_type": prediction}))
    scheduler.set_timesteps(5)
    process = DiscreteVP(scheduler.alphas_cumprod)
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 3, 3, generator=draws)
    times = sampler.times(5)
    for number in range(5):
        raw, noise = (torch.randn(x.shape, generator=draws) for _ in range(2))
        monkeypatch.setattr(
            f"diffusers.schedulers.scheduling_{kind}.randn_tensor", lambda *_, n=noise, **__: n
        )
        asked = {} if kind == "lcm" else {"eta": gamma}
        theirs = scheduler.step(raw, scheduler.timesteps[number], x, **asked).prev_sample
        t = times[number].expand(2)
        alpha, sigma = process.weights(t)
        x0, eps = (convert(raw, x, alpha, sigma, prediction) for convert in (to_x0, to_eps))
        is_last = number == 4
        then = None if is_last else times[number + 1].expand(2)
        added = noise if sampler.adds_noise(is_last) else None
        ours = sampler.step(x, x0, eps, t, then, added, process)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        x = theirs


def test_scalings_of_the_boundary():
    theirs = LCMScheduler(**NOISE)
    for index in (0, 1, 19, 999):
        skip, out = lcm_scalings(torch.tensor([(index + 1) / 1000]))
        expected = theirs.get_scalings_for_boundary_condition_discrete(torch.tensor(float(index)))
        assert float(skip) == pytest.approx(float(expected[0]), rel=1e-5)
        assert float(out) == pytest.approx(float(expected[1]), rel=1e-5)
    x, x0 = torch.randn(2, 1, 4)
    assert torch.equal(lcm_map(x, x0, torch.tensor([0.001])), x)  # index 0: the state itself
    torch.testing.assert_close(lcm_map(x, x0, torch.tensor([1.0])), x0, rtol=1e-4, atol=1e-5)


def test_a_jump_to_where_one_is_changes_nothing():
    process = DiscreteVP(torch.linspace(0.999, 0.01, 1000, dtype=torch.float64))
    x, x0, eps = torch.randn(3, 4, 8)
    t = torch.tensor([0.1, 0.5, 0.9, 1.0])
    assert torch.equal(ddim_map(x, x0, eps, t, t, process), x)
    assert torch.equal(ddim_map(x, x0, eps, t, torch.zeros(4), process), x0)


def test_settings_that_make_no_sense():
    with pytest.raises(UserError, match="gamma is 2"):
        ConsistencySampler(kind="tcd", gamma=2.0)
    with pytest.raises(UserError, match="origin_steps is 0"):
        ConsistencySampler(origin_steps=0)
