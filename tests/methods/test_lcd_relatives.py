"""Relatives of latent consistency distillation: where theory says that they are the same, they are the same numbers."""

from __future__ import annotations

import pytest
import torch

from unifl.methods.lcd import LCD
from unifl.methods.lcd_config import LCDConfig
from unifl.models.conditioning import Prediction
from unifl.process import SolverConfig
from unifl.randomness import Key
from unifl.sampling import FixedGuidance, RangeGuidance

# the settings of the recipes, on a grid that the tiny pictures afford
RELATIVES = {
    "tcd": {"boundary": "ddim", "end": "uniform", "target": "student", "loss": "l2"},
    "pcm": {"boundary": "ddim", "end": "phases", "phases": 4, "target": "student", "grid_steps": 40},
    "scott": {"solver": SolverConfig(substeps=3, eta=1.0), "loss": "l2", "grid_steps": 40},
    "mlcm": {
        "boundary": "ddim",
        "end": "phases",
        "phases": 8,
        "grid_steps": 40,
        "target": "student",
        "states": "teacher",
        "rollout_steps": 3,
        "guidance": FixedGuidance(scale=8.0),
        "source": "prompts",
    },
}


def _stir(method, size=0.05):
    """Move the student away from its teacher and its average, the same way every time."""
    with torch.no_grad():
        for number, parameter in enumerate(method.parameters["student"]):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.add_(size * noise)


@pytest.fixture
def distil(make, sources):
    def build(*, full=False, **settings):
        generator = make(full=True, embed_guidance=True) if full else make()
        return LCD(generator, LCDConfig(**settings), sources=sources)

    return build


@pytest.fixture
def step(distil, micro):
    """Loss and gradient of one step of a student beside its teacher."""

    def run(*, stir=True, **settings):
        method = distil(**settings)
        if stir:
            _stir(method)
        loss = method.step("student", micro((0, 1, 2))).losses["distillation"]
        gradient = torch.autograd.grad(loss, method.parameters["student"])
        return loss.detach(), torch.cat([part.flatten() for part in gradient])

    return run


def _same(first, second):
    return torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


DDIM_TO_ZERO = {"boundary": "ddim", "end": "zero", "target": "student"}


def test_pcm_with_one_phase_is_lcd_with_exact_jumps_to_t_0(step):
    """Bit for bit; under the same grid, law of w and target, and with the ddim boundary in both (not LCM's own)."""
    lcd = step(**DDIM_TO_ZERO)
    assert _same(step(**{**DDIM_TO_ZERO, "end": "phases"}, phases=1), lcd)
    assert not _same(step(**{**DDIM_TO_ZERO, "end": "phases"}, phases=4), lcd)


def test_tcd_whose_end_is_held_at_t_0_is_lcd_with_exact_jumps(step, monkeypatch):
    """Bit for bit; the draw of the end is all that sets them apart."""
    lcd, tcd = step(**DDIM_TO_ZERO), {**DDIM_TO_ZERO, "end": "uniform"}
    assert not _same(step(**tcd), lcd)
    uniform = Key.uniform

    def held(key, purpose):
        drawn = uniform(key, purpose)
        return 0 * drawn if purpose == "lcd/end" else drawn

    monkeypatch.setattr(Key, "uniform", held)
    assert _same(step(**tcd), lcd)


def test_scott_without_noise_and_in_one_step_is_lcd(step):
    """Bit for bit with eta = 0; to 1e-6 as eta goes to 0 along the stochastic solver's own formula."""
    lcd = step()
    assert _same(step(solver=SolverConfig(substeps=1, eta=0.0)), lcd)
    for part, expected in zip(step(solver=SolverConfig(eta=1e-6)), lcd, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-6)
    assert not _same(step(solver=SolverConfig(eta=1.0)), lcd)
    assert not _same(step(solver=SolverConfig(substeps=3)), lcd)


def test_the_average_right_after_the_start_is_the_student(step):
    """Bit for bit, while the student has not moved; not any more once it has."""
    assert _same(step(stir=False, target="ema"), step(stir=False, target="student"))
    assert not _same(step(target="ema"), step(target="student"))


def test_a_range_of_one_scale_is_that_scale(step):
    """Bit for bit."""
    fixed = step(guidance=FixedGuidance(scale=3.5))
    assert _same(step(guidance=RangeGuidance(low=3.5, high=3.5)), fixed)
    assert not _same(step(guidance=RangeGuidance(low=3.5, high=4.5)), fixed)


def test_a_student_that_is_the_exact_map_has_no_loss_where_the_teacher_s_steps_are_exact(distil, micro):
    """Fixed point, on a Gaussian: 16 steps of order 2 are as good as exact, one step of order 1 is not."""
    mean, std = 0.3, 0.8

    def loss(solver, end):
        phases = 4 if end == "phases" else 1
        settings = DDIM_TO_ZERO | {"end": end, "phases": phases, "loss": "l2", "grid_steps": 8}
        method = distil(**settings, solver=solver)
        process = method.generator.process

        def denoise(role, x_t, t, cond, *, guidance=1.0, negative=None):
            alpha, sigma = (weight.reshape(-1, 1, 1, 1) for weight in process.weights(t))
            spread = ((alpha * std) ** 2 + sigma**2).sqrt()
            x0 = mean + alpha * std**2 / spread**2 * (x_t - alpha * mean)
            if role == "student":  # what its jump to 0 has to be
                x0 = mean + std / spread * (x_t - alpha * mean)
            x0.requires_grad_(role == "student")
            return Prediction(x_t, t, x0, x0, (x_t - alpha * x0) / sigma)

        method.generator.denoise = denoise
        return float(method.step("student", micro((0, 1, 2, 3))).losses["distillation"].detach())

    exact, rough = SolverConfig(substeps=16, order=2), SolverConfig()
    assert loss(exact, "zero") < 1e-6 < 1e-5 < loss(rough, "zero"), (loss(exact, "zero"), loss(rough, "zero"))
    assert loss(exact, "phases") > 1e-5  # that student knows the way to 0 alone


@pytest.mark.parametrize("name", RELATIVES)
def test_evaluations_are_exact(distil, micro, counted, name):
    method = distil(**RELATIVES[name])
    method.step("student", micro())  # fills the cache of prompts
    with counted(method) as found:
        method.step("student", micro())
    assert dict(found) == method.evaluations(2)
    expected = {
        "tcd": 3,
        "pcm": 3,
        "scott": 7,
        "mlcm": 9,
    }  # target, and two halves of each step of the teacher
    assert found["unet forward"] == 2 * expected[name]
    assert ("vae encode" in found) == (name != "mlcm")


@pytest.mark.parametrize("name", RELATIVES)
def test_each_relative_learns_and_moves_the_student_alone(distil, micro, name):
    method = distil(**{"guidance": FixedGuidance(scale=2.0)} | RELATIVES[name])
    generator, trained = method.generator, method.parameters["student"]
    own = {id(parameter) for parameter in trained}
    frozen = [p for n in generator.modules().values() for p in n.parameters() if id(p) not in own]
    before = [[p.detach().clone() for p in group] for group in (frozen, trained)]
    optimizer = torch.optim.Adam(trained, lr=4e-2 if name == "scott" else 1e-2)
    losses = []
    for _ in range(8):
        loss = method.step("student", micro()).losses["distillation"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses[-2:]) < 0.9 * losses[0], losses
    assert all(torch.equal(*pair) for pair in zip(before[0], frozen, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(before[1], trained, strict=True))
