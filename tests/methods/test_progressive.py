from __future__ import annotations

import pytest
import torch

from unifl import config as configs
from unifl.errors import UserError
from unifl.methods.base import Method
from unifl.methods.progressive import Progressive, ProgressiveConfig, RoundConfig
from unifl.models.conditioning import Prediction
from unifl.process import SolverConfig, solve, time_grid
from unifl.sampling import FixedGuidance, NoGuidance
from unifl.training.config import TrainingConfig
from unifl.training.loop import train

MEAN, STD = 0.3, 0.8


def _rounds(*pairs):
    return [RoundConfig(num_steps=number, steps=steps) for number, steps in pairs]


@pytest.fixture
def progress(make, sources):
    def build(*rounds, full=True, family="sd15", **settings):
        train = {"full": True, "embed_guidance": True} if full else {}
        settings = settings if full else {"guidance": NoGuidance()} | settings
        config = ProgressiveConfig(rounds=_rounds(*(rounds or [(4, 10)])), **settings)
        return Progressive(make(family, **train), config, sources=sources)

    return build


def _loss(method, batch):
    return method.step("student", batch).losses["distillation"]


def _weights(method, role):
    return {name: value.clone() for name, value in method.generator.roles.state(role).items()}


def _equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_the_config_survives_its_file():
    config = ProgressiveConfig()
    assert [round_.num_steps for round_ in config.rounds] == [32, 16, 8, 4]
    assert configs.load(configs.dump(config), ProgressiveConfig) == config


@pytest.mark.parametrize("num_steps", [1, 4, 16])
def test_the_student_that_jumps_as_far_as_two_exact_steps_has_no_loss(progress, micro, num_steps):
    """With a teacher whose field is exact (a Gaussian): nothing else than its two steps is the target.

    16 steps do not divide 1000: the grid is the rounded one of the sampler, every other point of the teacher's.
    """
    method = progress((num_steps, 10))
    generator, told, grid = method.generator, [], time_grid(num_steps, "trailing")
    process, double = generator.process, time_grid(2 * num_steps, "trailing")

    def field(x_t, t):
        alpha, sigma = (weight.reshape(-1, 1, 1, 1) for weight in process.weights(t))
        x0 = MEAN + alpha * STD**2 / ((alpha * STD) ** 2 + sigma**2) * (x_t - alpha * MEAN)
        return x0, (x_t - alpha * x0) / sigma

    def two_steps(x_t, t):
        """By the solver, and then the x0 of one step, from its definition."""
        position = (double[None] - t[:, None]).abs().argmin(1)
        for _ in range(2):
            now, then = double[position], double[position + 1]
            x_t = solve(field, x_t, now, then, process, SolverConfig())
            position = position + 1
        return x_t, then

    def denoise(role, x_t, t, cond, *, guidance=1.0, negative=None):
        told.append((role, t, guidance))
        x0, eps = field(x_t, t)
        if role == "student":
            assert all(float((grid - time).abs().min()) < 1e-6 for time in t)
            ends, s = two_steps(x_t, t)
            alpha, sigma = (weight.reshape(-1, 1, 1, 1).double() for weight in process.weights(t))
            alpha_s, sigma_s = (weight.reshape(-1, 1, 1, 1).double() for weight in process.weights(s))
            x0 = (ends * sigma - sigma_s * x_t) / (alpha_s * sigma - sigma_s * alpha)
            x0 = x0.float().requires_grad_()
        return Prediction(x_t, t, x0, x0, eps)

    generator.denoise = denoise
    loss = _loss(method, micro((0, 1, 2, 3)))
    assert float(loss.detach()) < 1e-9
    assert [role for role, *_ in told] == ["old", "old", "student"]
    assert all(torch.equal(guidance, told[0][2]) for *_, guidance in told)  # the same w for both
    generator.denoise = lambda *args, **named: Prediction(
        *(value.requires_grad_() for value in vars(denoise("old", *args[1:], **named)).values())
    )
    assert float(_loss(method, micro((0, 1, 2, 3))).detach()) > 1e-6  # one step goes elsewhere


def test_each_round_begins_with_the_student_as_its_own_teacher(progress, micro):
    """Twice at the first step of a round, as with gradient accumulation, changes nothing; later steps do not reset."""
    method = progress((8, 2), (4, 2), (2, 1), full=False)
    optimizer = torch.optim.Adam(method.parameters["student"], lr=1e-2)
    found, resets = [], []
    for step in range(6):
        before = _weights(method, "student")
        for rows in ((0,), (1,)):  # two micro-batches of one update
            output = method.step("student", micro(rows, step=step))
            output.losses["distillation"].backward()
            resets.append(_equal(_weights(method, "old"), before))
        optimizer.step()
        found.append(output.metrics["num_steps"])
        optimizer.zero_grad()
    assert found == [8, 8, 4, 4, 2, 2]
    assert resets == [number in (0, 2, 4) for number in range(6) for _ in range(2)]


def test_a_run_that_is_resumed_at_any_step_is_the_same_bit_for_bit(progress, tmp_path):
    def run(folder, stop_after=None):
        method = progress((4, 2), (2, 2), full=False)
        config = TrainingConfig(
            max_train_steps=4,
            train_batch_size=1,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            checkpointing_steps=1,
        )
        steps = train(method, config, folder, resume_from_checkpoint="latest")
        results = []
        for result in steps:
            results.append(result.losses)
            if result.step == stop_after:
                break
        steps.close()
        return method, results

    straight, losses = run(tmp_path / "straight")
    torn = []
    for stop in (1, 2, None):  # within a round, and at the boundary of two
        resumed, some = run(tmp_path / "torn", stop_after=stop)
        torn += some
    assert torn == losses and len(losses) == 4
    for role in ("student", "old"):
        assert _equal(_weights(resumed, role), _weights(straight, role))
    assert not _equal(_weights(straight, "student"), _weights(straight, "old"))


@pytest.mark.parametrize("full", [True, False])
def test_it_learns_and_moves_the_student_alone(progress, micro, counted, full):
    method = progress((2, 100), full=full, family="sd21")
    assert isinstance(method, Method) and method.roles == ("old",)
    generator, trained = method.generator, method.parameters["student"]
    with torch.no_grad():
        for number, parameter in enumerate(trained):  # away from where both steps agree
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.add_((0.1 if full else 0.3) * noise)
    own = {id(parameter) for parameter in trained}
    frozen = [p for n in generator.modules().values() for p in n.parameters() if id(p) not in own]
    method.step("student", micro())
    frozen += generator.roles.parameters("old").values()
    before = [[p.detach().clone() for p in group] for group in (frozen, trained)]
    optimizer = torch.optim.Adam(trained, lr=1e-3)
    losses = []
    for _ in range(8):
        loss = _loss(method, micro(step=1))  # the same draws, and not the round's first step
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < (0.7 if full else 0.97) * losses[0], losses
    assert all(torch.equal(*pair) for pair in zip(before[0], frozen, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(before[1], trained, strict=True))
    with counted(method) as found:
        method.step("student", micro())
    assert dict(found) == method.evaluations(2)


def test_errors(make, sources, progress):
    with pytest.raises(UserError, match=r"rounds is empty; give at least one"):
        ProgressiveConfig(rounds=[])
    with pytest.raises(UserError, match=r"rounds\[1\].steps is 0; it must be at least 1"):
        ProgressiveConfig(rounds=_rounds((4, 1), (2, 0)))
    with pytest.raises(UserError, match=r"goes from 8 steps to 2; every round must have half the steps"):
        ProgressiveConfig(rounds=_rounds((8, 1), (2, 1)))
    with pytest.raises(UserError, match=r"set method.guidance to \{kind: none\}"):
        progress(full=False, guidance=FixedGuidance(scale=2.0))
    with pytest.raises(UserError, match=r"num_steps is 512; .* choose at most 500"):
        progress((512, 1))
    with pytest.raises(UserError, match="set model.train.text_encoder to false"):
        Progressive(make(text_encoder=True), ProgressiveConfig(guidance=NoGuidance()), sources=sources)
    with pytest.raises(UserError, match="progressive names the source 'images'"):
        Progressive(make(), ProgressiveConfig(guidance=NoGuidance()), sources={})
