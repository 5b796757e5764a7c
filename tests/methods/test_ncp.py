from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch

from unifl.config import load
from unifl.errors import UserError
from unifl.methods.counting import Evaluations
from unifl.methods.spaces import NCP, LatentSpaceConfig, NCPConfig, make_space
from unifl.models import FullTraining, LoraTraining, make_generator
from unifl.models.conditioning import Prediction
from unifl.process import Flow, from_x0_eps, reverse_scale, to_eps, to_x0
from unifl.randomness import Key
from unifl.testing import FAMILIES, tiny_pipeline

PROMPTS = ["a red circle", "a photo of a cat"]
KEY = Key(0, 3, (5, 9))
LORA = LoraTraining(rank=4)
STATES = ("reverse", "renoise")


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Case:
    """A model and noisy latents, b winners and their b losers; everything that a method hands over."""

    def __init__(self, family="sd15", train=LORA, t=(0.8, 0.3), dtype=torch.float32, **config):
        self.generator = make_generator(tiny_pipeline(family), train=train)
        self.space = NCP(NCPConfig(**config), self.generator)
        for role in ("reference", *self.space.roles):
            self.generator.roles.add(role)
        self.t = torch.tensor(t, dtype=dtype).repeat(2)
        shape = self.generator.latent_shape
        x0 = normal(len(self.t), *shape, seed=0).to(dtype)
        eps = normal(len(t), *shape, seed=1).to(dtype).repeat(2, 1, 1, 1)
        self.cond = self.generator.encode_prompts(PROMPTS[: len(t)], role="reference").repeat(2)
        self.args = (x0, eps, self.generator.process.add_noise(x0, eps, self.t), self.t, self.cond)

    def truth(self, key=KEY):
        return self.space.truth(*self.args, key)

    def says(self, role="student"):
        return self.generator.denoise(role, *self.args[2:])

    def off_by(self, error):
        """The prediction of a network that errs by this much."""
        x0, eps, x_t, t, _ = self.args
        alpha, sigma = self.generator.process.weights(t)
        kind = self.generator.kind
        raw = from_x0_eps(x0, eps, alpha, sigma, kind) + error
        return Prediction(x_t, t, raw, *(f(raw, x_t, alpha, sigma, kind) for f in (to_x0, to_eps)))

    def disturb(self):
        with torch.no_grad():
            for number, parameter in enumerate(self.generator.trainable_parameters().values()):
                parameter.add_(0.05 * normal(*parameter.shape, seed=number))


@pytest.mark.parametrize(
    ("layer", "states"), [("down_last", "reverse"), ("mid", "renoise"), ("all_down", "reverse")]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_perfect_prediction_has_no_distance_and_the_start_has_the_reference_s(family, layer, states):
    case = Case(family, layer=layer, states=states)
    truth = case.truth()
    assert torch.equal(case.space.distance(case.off_by(0.0), truth), torch.zeros(4))
    with torch.no_grad():
        reference = case.space.distance(case.says("reference"), truth)
    student = case.space.distance(case.says(), truth)
    assert student.shape == (4,) and student.requires_grad and not reference.requires_grad
    assert torch.equal(student.detach(), reference) and bool((reference > 0).all())
    case.disturb()
    moved = case.space.distance(case.says(), truth).detach()
    assert ((moved - reference).abs() / reference).max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("train", [LORA, FullTraining()], ids=["lora", "full"])
def test_the_gradient_reaches_every_student_weight_and_no_other(family, train):
    case = Case(family, train)
    case.disturb()
    case.space.distance(case.says(), case.truth()).sum().backward()
    own = case.generator.trainable_parameters()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in own.values())
    mine = {id(p) for p in own.values()}
    networks = [*case.generator.modules().values(), case.generator.roles.module("unet", "reference")]
    assert all(p.grad is None for m in networks for p in m.parameters() if id(p) not in mine)


def test_the_gradient_is_that_of_the_input_alone():
    """Chain rule by hand: d distance / d x_s times d x_s / d raw, the student's graph being cut between."""
    case = Case("sd21")
    truth, said = case.truth(), case.says()
    raw = said.raw.detach().requires_grad_(True)
    alpha, sigma = case.generator.process.weights(case.t)
    x0, eps = (f(raw, said.x_t, alpha, sigma, "v_prediction") for f in (to_x0, to_eps))
    case.space.distance(dataclasses.replace(said, raw=raw, x0=x0, eps=eps), truth).sum().backward()
    x_s = case.space._state(said, truth.s, truth.z).detach().requires_grad_(True)
    (found,) = case.space.features(x_s, truth.s, truth.cond)
    ((found - truth.features[0]).square().flatten(1).mean(1) / truth.divisor).sum().backward()
    scale = reverse_scale(case.t, truth.s, case.generator.process, "v_prediction")
    torch.testing.assert_close(raw.grad, -scale[:, None, None, None] * x_s.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("states", STATES)
def test_the_gradient_is_that_of_finite_differences(states):
    case = Case(dtype=torch.float64, states=states)
    case.generator.pipeline.unet.to(torch.float64)
    error, way = (0.1 * normal(4, 4, 8, 8, seed=seed).double() for seed in (2, 3))
    truth = case.truth()

    def value(at):
        return case.space.distance(case.off_by(at), truth).sum()

    leaf = error.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(value(leaf), leaf)
    with torch.no_grad():
        slope = (value(error + 1e-4 * way) - value(error - 1e-4 * way)) / 2e-4
    assert value(error).dtype == torch.float64
    torch.testing.assert_close((gradient * way).sum(), slope, rtol=1e-6, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("states", STATES)
def test_distances_are_linear_in_the_step(family, states):
    """PL is about (k |J error|)^2: J by finite differences in float64 with steps of its own."""
    case = Case(family, dtype=torch.float64, normalise="none", states=states, t=(0.8, 0.01))
    case.generator.pipeline.unet.to(torch.float64)
    error = normal(4, 4, 8, 8, seed=2).double()
    truth, small = case.truth(), 1e-3
    with torch.no_grad():
        found = case.space.distance(case.off_by(small * error), truth)
        x_s = case.space._state(case.off_by(0.0), truth.s, truth.z)
        ahead, behind = (case.space.features(x_s + h * error, truth.s, truth.cond)[0] for h in (1e-5, -1e-5))
    slope = ((ahead - behind) / 2e-5).square().flatten(1).mean(1)
    scale = case.space._scale(case.t, truth.s, case.generator.process, case.generator.kind)
    torch.testing.assert_close(found, (small * scale).square() * slope, rtol=1e-2, atol=0)


def test_step_normalisation_makes_distances_alike_over_time():
    times = tuple((index + 1) / 1000 for index in (1, 10, 100, 300, 500, 700, 900, 999))
    found = {}
    for normalise in ("none", "step"):
        for t in times:
            case = Case(t=(t,), normalise=normalise)
            error = 0.1 * normal(2, 4, 8, 8, seed=2)
            with torch.no_grad():
                found[normalise, t] = case.space.distance(
                    case.off_by(error), case.truth(Key(0, 3, (5,)))
                ).mean()
    spread = {n: max(found[n, t] for t in times) / min(found[n, t] for t in times) for n in ("none", "step")}
    # what is left is the slope of the encoder
    assert spread["none"] > 20 and spread["step"] < 3
    # the mean square of this error is 0.01
    assert all(found["step", t] / 0.01 > 0.02 and found["none", t] / 0.01 < 1e-4 for t in times[1:])


def test_normalisations_divide_by_what_they_say():
    cases = {n: Case(normalise=n, layer="all_down") for n in ("none", "step", "energy")}
    with torch.no_grad():
        found = {n: case.space.distance(case.says(), case.truth()) for n, case in cases.items()}
    truth = cases["none"].truth()
    maps = torch.cat([found.flatten(1) for found in truth.features], 1)
    torch.testing.assert_close(found["none"] / found["energy"], maps.square().mean(1))
    scale = reverse_scale(cases["none"].t, truth.s, cases["none"].generator.process, "epsilon")
    torch.testing.assert_close(found["none"] / found["step"], scale.square())


def test_noise_is_shared_and_cancels():
    case, noisy = Case(), Case(noise=True)
    truths = case.truth(), noisy.truth()
    assert truths[0].z is None and torch.equal(truths[1].z[:2], truths[1].z[2:])
    said = case.says()
    with torch.no_grad():
        assert torch.equal(noisy.space.distance(noisy.off_by(0.0), truths[1]), torch.zeros(4))
        states = [
            tuple(c.space._state(p, tr.s, tr.z) for p in (c.off_by(0.0), said))
            for c, tr in zip((case, noisy), truths, strict=True)
        ]
        found = [c.space.distance(said, tr) for c, tr in zip((case, noisy), truths, strict=True)]
    moved, plain = (states[1][0] - states[0][0]).abs().max(), (states[0][1] - states[0][0]).abs().max()
    assert moved > 0.1
    torch.testing.assert_close(
        states[1][1] - states[1][0], states[0][1] - states[0][0], rtol=0, atol=float(2e-4 * plain) + 3e-7
    )
    torch.testing.assert_close(found[1], found[0], rtol=0.5, atol=0)  # seen from another place
    assert not torch.equal(found[1], found[0])


def test_draws_are_those_of_the_rows():
    case = Case(states="renoise", noise=False)
    whole = case.truth()
    index = (whole.s * 1000).round()
    assert torch.equal(whole.s[:2], whole.s[2:]) and bool((index >= 1).all() and (index <= 1000).all())
    single = Case(states="renoise", t=(0.3,)).truth(Key(0, 3, (9,)))
    assert torch.equal(single.s, whole.s[1::2])
    every = torch.tensor([0.5]).repeat(2000)
    drawn = (case.space._times(every, Key(0, 0, tuple(range(2000)))) * 1000).round()
    assert not bool((drawn == 500).any()) and drawn.min() < 10 and drawn.max() > 990
    assert abs(float(drawn.mean()) - 500.5) < 25
    with pytest.raises(UserError, match="4 rows cannot share the draws of 3 samples"):
        case.truth(Key(0, 0, (1, 2, 3)))


def test_times_below_the_earliest_are_refused():
    for states, earliest in (("reverse", 0.002), ("renoise", 0.001)):
        case = Case(states=states, t=(0.5, earliest))
        assert case.space.earliest == earliest
        case.truth()
    with pytest.raises(
        UserError, match="asked at timestep 0, which has no earlier one; draw times of at least 0.002"
    ):
        Case(t=(0.5, 0.001)).truth()


def test_masks_noise_again_and_noise_of_flows_are_refused():
    case = Case()
    with pytest.raises(UserError, match="masks weigh places of latents.*set space to {kind: latent}"):
        case.space.truth(*case.args, KEY, mask=torch.ones(4, 1, 8, 8))
    with pytest.raises(UserError, match="space.noise is for states: reverse"):
        NCPConfig(noise=True, states="renoise")
    case.generator.process = Flow()
    with pytest.raises(UserError, match="the step of a flow adds no noise, set it to false"):
        NCP(NCPConfig(noise=True), case.generator)


@pytest.mark.parametrize("states", STATES)
def test_a_flow_is_normalised_by_its_step(states):
    """The tiny network stands for the velocity of a straight path."""
    case = Case(states=states)
    generator = case.generator
    generator.process, generator.kind = Flow(), "flow"
    x0, eps, _, t, cond = case.args
    case.args = (x0, eps, generator.process.add_noise(x0, eps, t), t, cond)
    truth = case.truth()
    if states == "reverse":
        torch.testing.assert_close(truth.divisor, torch.full((4,), 1e-6), rtol=1e-3, atol=0)
    with torch.no_grad():
        assert torch.equal(case.space.distance(case.off_by(0.0), truth), torch.zeros(4))
        found = case.space.distance(case.off_by(0.1 * normal(4, 4, 8, 8, seed=2)), truth)
    assert bool(((found > 1e-3) & (found < 0.1)).all())


def relative_errors(case, **settings):
    """Beside float64, for errors of the prediction of 0.3, 0.1 and 0.03."""
    exact, off = Case(dtype=torch.float64, **settings), {}
    exact.generator.pipeline.unet.to(torch.float64)
    for size in (0.3, 0.1, 0.03):
        error = size * normal(4, 4, 8, 8, seed=2)
        with torch.no_grad():
            found = case.space.distance(case.off_by(error), case.truth())
            right = exact.space.distance(exact.off_by(error.double()), exact.truth())
        off[size] = float((found / right - 1).abs().max())
    return off


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_small_step_in_half_precision_is_rounding_noise_and_says_so(precision):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        case = Case(precision=precision)
    told = [str(warning.message) for warning in said if "space.precision" in str(warning.message)]
    assert bool(told) == (precision != "float32")
    if told:
        spacing = {"bfloat16": "0.008", "float16": "0.001"}[precision]
        assert f"space.precision is {precision}: an error of 0.1 in the prediction moves the input" in told[0]
        assert f"by 0.0004 to 0.002 (median 0.0006), and values near 1 are {spacing} apart" in told[0]
    off = relative_errors(case)
    if precision == "float32":
        assert max(off.values()) < 2e-3
    elif precision == "bfloat16":
        assert off[0.3] > 20 and off[0.1] > 200 and off[0.03] > 2000
    else:
        assert off[0.3] > 0.3 and off[0.1] > 3 and off[0.03] > 30


@pytest.mark.parametrize(("precision", "limit"), [("bfloat16", 1.0), ("float16", 0.05)])
def test_a_large_step_in_half_precision_is_not(precision, limit):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        case = Case(precision=precision, states="renoise")
    assert relative_errors(case, states="renoise")[0.1] < limit


def test_the_cost_is_that_of_the_encoder():
    case, calls = Case(), []
    case.generator.pipeline.unet.conv_in.register_forward_hook(lambda _m, a, _o: calls.append(len(a[0])))
    up = []
    case.generator.pipeline.unet.up_blocks[0].register_forward_hook(lambda *_: up.append(1))
    said, start = case.says(), case.says("reference")
    assert calls == [4, 4] and len(up) == 2
    truth = case.truth()
    with torch.no_grad():
        case.space.distance(start, truth)
    case.space.distance(said, truth)
    assert calls == [4] * 5 and len(up) == 2
    count = Evaluations(2, trains_text=False)
    case.space.count(count, 2, reference=True)
    assert count.per_step == {"unet encoder forward": 8, "unet encoder forward+backward": 4}
    count = Evaluations(2, trains_text=False)
    case.space.count(count, 2, reference=False)
    assert count.per_step == {"unet encoder forward": 4, "unet encoder forward+backward": 4}


def test_a_space_comes_from_its_config():
    generator = make_generator(tiny_pipeline("sd15"), train=LORA)
    config = load({"layer": "mid", "states": "renoise", "normalise": "energy"}, NCPConfig)
    space = make_space(config, generator)
    assert isinstance(space, NCP) and space.roles == ("reference",) and space.features.layer == "mid"
    assert make_space(LatentSpaceConfig(), generator).roles == ()
    assert make_space(NCPConfig(encoder="random"), generator).roles == ()
    with pytest.raises(UserError, match="layer is 3: blocks go by number in transformers"):
        make_space(load({"layer": 3}, NCPConfig), generator)


@pytest.mark.parametrize("states", STATES)
def test_a_transformer_compares_what_a_block_hands_on(states):
    case = Case("sd3", layer=1, states=states)
    truth = case.truth()
    assert torch.equal(case.space.distance(case.off_by(0.0), truth), torch.zeros(4))
    with torch.no_grad():
        reference = case.space.distance(case.says("reference"), truth)
    student = case.space.distance(case.says(), truth)
    assert torch.equal(student.detach(), reference) and bool((reference > 0).all())
    case.disturb()
    case.space.distance(case.says(), truth).sum().backward()
    own = case.generator.trainable_parameters()
    assert max(float(p.grad.abs().max()) for p in own.values() if p.grad is not None) > 0
    mine = {id(p) for p in own.values()}
    assert all(p.grad is None for p in case.generator.pipeline.transformer.parameters() if id(p) not in mine)
