"""Preference optimisation on pairs: closed forms at the start, symmetry, the public script, and learning."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler

from unifl.data.encoded import EncodedSample
from unifl.data.pairs import EncodedPair, Pair
from unifl.errors import UserError
from unifl.methods.base import Method, MicroBatch
from unifl.methods.logit_scale import LogitConfig
from unifl.methods.ncp import NCPConfig
from unifl.methods.objectives import CPO, DPO, IPO, PSO, SFT, Hinge, MaPO
from unifl.methods.preference import Preference, PreferenceConfig
from unifl.methods.states import InvertedStates
from unifl.methods.surrogate import Surrogate
from unifl.randomness import Key


class OfRows(list):
    """A source that can say more of itself."""


ALL = (DPO(), IPO(), Hinge(), CPO(), SFT(), MaPO(), PSO(), PSO(without_reference=True))
IDS = [f"{type(one).__name__}{'-none' if getattr(one, 'without_reference', False) else ''}" for one in ALL]


@pytest.fixture
def pairs(images):
    """Four pairs: a picture, and the same in other colours."""
    return [Pair(sample.prompt, sample.image, sample.image.flip(0)) for sample in images]


@pytest.fixture
def batch(pairs):
    def build(rows=(0, 1), step=0, source=None):
        source = source or pairs
        return MicroBatch(Key(0, step, tuple(rows)), {"pairs": [source[row] for row in rows]})

    return build


def method_of(generator, pairs, objective, **settings):
    return Preference(generator, PreferenceConfig(objective=objective, **settings), sources={"pairs": pairs})


def gradient(method, batch):
    losses = method.step("student", batch).losses
    parameters = method.parameters["student"]
    return torch.cat([g.flatten() for g in torch.autograd.grad(sum(losses.values()), parameters)])


def stirred(generator, scale=0.05):
    """Move the student away from its start."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in generator.trainable_parameters().values():
            parameter.add_(scale * torch.randn_like(parameter))


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl", "sd3"])
@pytest.mark.parametrize(
    ("objective", "expected"),
    [(DPO(), math.log(2)), (IPO(beta=0.1), 25.0), (Hinge(), 1.0), (PSO(), math.log(2))],
    ids=["dpo", "ipo", "hinge", "pso"],
)
def test_at_the_reference_the_loss_has_its_closed_form(make, pairs, batch, family, objective, expected):
    method = method_of(make(family), pairs, objective)
    assert isinstance(method, Method)
    output = method.step("student", batch())
    assert float(output.losses["preference"].detach()) == pytest.approx(expected, rel=1e-5)
    assert float(output.metrics["drift"]) == 0 and float(output.metrics["accuracy"]) == 0.5


@pytest.mark.parametrize(
    "objective", [DPO(beta=50.0), IPO(beta=0.1), Hinge(beta=50.0)], ids=["dpo", "ipo", "hinge"]
)
def test_swapping_winner_and_loser_mirrors_the_gradient(make, pairs, batch, objective):
    generator = make(full=True)
    swapped = [replace(pair, win=pair.lose, lose=pair.win) for pair in pairs]
    forth = gradient(method_of(generator, pairs, objective), batch())
    back = gradient(method_of(generator, pairs, objective), batch(source=swapped))
    assert forth.norm() > 0
    torch.testing.assert_close(forth, -back, rtol=1e-3, atol=1e-3 * float(forth.abs().max()))


@pytest.mark.parametrize("settings", [{}, {"times": "logit_normal"}, {"grid_steps": 4}], ids=str)
def test_times_of_a_flow_are_shifted_as_it_is_sampled(make, settings):
    method = Surrogate(make("sd3"), PreferenceConfig(**settings), needs_reference=False, wanted_by="dpo")
    schedule, key = method.generator.schedule, Key(0, 0, tuple(range(6)))
    cond = method.generator.encode_prompts(["a cat"] * 6)
    shown = {}
    for shift in (1.0, 3.0):
        schedule.shift = shift
        with torch.no_grad():
            shown[shift] = method.compare(torch.zeros(6, *method.generator.latent_shape), cond, key).t
    torch.testing.assert_close(shown[3.0], 3 * shown[1.0] / (1 + 2 * shown[1.0]))
    assert shown[1.0].unique().numel() > 2


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_dpo_is_that_of_the_published_script(make, pairs, batch, family):
    """Written out with the pipeline's own networks and scheduler, as diffusers' script for SDXL does it."""
    generator = make(family)
    method = method_of(generator, pairs, DPO(beta=200.0))
    stirred(generator)
    given = batch((0, 2))
    loss = float(method.step("student", given).losses["preference"].detach())
    pipeline, key, rows = generator.pipeline, given.key, given.data["pairs"]
    pictures = torch.stack([row.win for row in rows] + [row.lose for row in rows])
    mean, std = generator.posterior(pictures)
    x0 = mean + std * key.normal("posterior", mean.shape[1:]).repeat(2, 1, 1, 1)
    noise = key.normal("surrogate/noise", x0.shape[1:]).repeat(2, 1, 1, 1)
    steps = (key.integers("surrogate/time", 1, 1001) - 1).repeat(2)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    noisy = scheduler.add_noise(x0, noise, steps)
    target = scheduler.get_velocity(x0, noise, steps) if family == "sd21" else noise
    cond = generator.encode_prompts([row.prompt for row in rows]).repeat(2)
    added = {"text_embeds": cond.pooled, "time_ids": cond.time_ids} if family == "sdxl" else None

    def errors(role):
        with torch.no_grad(), generator.roles.use(role):
            unet = generator.roles.module("unet", role)
            said = unet(
                noisy, steps, encoder_hidden_states=cond.embeds, added_cond_kwargs=added, return_dict=False
            )[0]
        return (said - target).square().mean((1, 2, 3)).chunk(2)

    (win, lose), (win_ref, lose_ref) = errors("student"), errors("reference")
    inside = -0.5 * 200.0 * ((win - lose) - (win_ref - lose_ref))
    assert loss == pytest.approx(float(-torch.nn.functional.logsigmoid(inside).mean()), rel=1e-4)


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("objective", ALL, ids=IDS)
def test_a_step_moves_what_trains_and_nothing_else(make, pairs, batch, objective, full, counted):
    generator = make(full=full)
    method = method_of(generator, pairs, objective)
    stirred(generator)  # LoRA starts at zero, where one of its factors has no gradient
    frozen = {
        role: {name: value.clone() for name, value in generator.roles.state(role).items()}
        for role in method.roles
    }
    before = [parameter.detach().clone() for parameter in method.parameters["student"]]
    optimizer = torch.optim.AdamW(method.parameters["student"], lr=1e-3)
    method.step("student", batch())  # encodes the prompts
    with counted(method) as found:
        sum(method.step("student", batch()).losses.values()).backward()
    assert dict(found) == method.evaluations(2)
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, method.parameters["student"], strict=True))
    for role, kept in frozen.items():
        for name, value in generator.roles.state(role).items():
            assert torch.equal(value, kept[name])


@pytest.mark.parametrize(
    "objective", [DPO(beta=500.0), CPO(beta=100.0), IPO(beta=5.0)], ids=["dpo", "cpo", "ipo"]
)
def test_winners_gain_on_losers(make, pairs, batch, objective):
    method = method_of(make(full=True), pairs, objective)
    optimizer = torch.optim.Adam(method.parameters["student"], lr=1e-2)

    def lead():
        with torch.no_grad():
            found = [
                method.step("student", batch((0, 1, 2, 3), step=step)).metrics for step in range(1000, 1010)
            ]
        return sum(float(m["error/loser"] - m["error/winner"]) for m in found) / len(found)

    start = lead()
    for step in range(60):
        optimizer.zero_grad()
        sum(method.step("student", batch((0, 1, 2, 3), step=step)).losses.values()).backward()
        optimizer.step()
    assert lead() > start + 5e-4  # of errors near 1, paired draw by draw


def test_auto_beta_reaches_its_scale_whatever_the_reduction(make, pairs, batch):
    """The logits' mean size after the first steps, and the gradient at the start, do not depend on the first guess."""
    ends, starts = [], []
    for initial in (1.0, 1e5):
        objective = DPO(beta="auto", auto=LogitConfig(scale=0.3, steps=5, initial=initial))
        method = method_of(make(full=True), pairs, objective)
        starts.append(gradient(method, batch()) / initial)
        method = method_of(make(full=True), pairs, objective)
        optimizer = torch.optim.SGD(method.parameters["student"], lr=0.3 / initial)
        metrics = {}
        for step in range(8):
            optimizer.zero_grad()
            output = method.step("student", batch((0, 1, 2, 3), step=step))
            sum(output.losses.values()).backward()
            optimizer.step()
            metrics = output.metrics
        ends.append((metrics["beta"], float(output.metrics["logit/deviation"])))
        state = method.state_dict()
        again = method_of(make(full=True), pairs, objective)
        again.load_state_dict(state)
        assert again.state_dict() == state
    torch.testing.assert_close(starts[0], starts[1], rtol=1e-3, atol=1e-5 * float(starts[0].abs().max()))
    assert 0.7 < ends[0][0] / ends[1][0] < 1.4  # where the first guesses are 100,000 times apart
    assert 0.03 < ends[0][1] < 3


def test_a_scale_that_is_flat_is_told_once(make, pairs, batch):
    method = method_of(make(), pairs, DPO(beta=1e-6))
    stirred(method.generator)
    with pytest.warns(UserWarning, match=r"the logits are flat.*choose a larger beta, or beta: auto") as told:
        for step in range(55):
            with torch.no_grad():
                method.step("student", batch(step=step))
    assert len(told) == 1


def test_accumulated_rows_are_those_of_one_batch(make, pairs, batch):
    method = method_of(make(full=True), pairs, DPO(beta=300.0))
    stirred(method.generator)
    whole = gradient(method, batch((0, 1, 2, 3)))
    parts = (gradient(method, batch((0, 1))) + gradient(method, batch((2, 3)))) / 2
    torch.testing.assert_close(whole, parts, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))


def test_encoded_pairs_give_the_loss_of_pictures(make, pairs, batch):
    generator = make()
    stirred(generator)

    def encoded(image, prompt):
        mean, std = generator.posterior(image[None])
        embeds = generator.encode_prompts([prompt]).embeds[0]
        return EncodedSample(prompt, mean[0], std[0], embeds)

    kept = [
        EncodedPair(pair.prompt, encoded(pair.win, pair.prompt), encoded(pair.lose, pair.prompt))
        for pair in pairs
    ]
    losses = [
        float(
            method_of(generator, rows, DPO())
            .step("student", batch(source=rows))
            .losses["preference"]
            .detach()
        )
        for rows in (pairs, kept)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_strengths_weigh_pairs_and_regions_weigh_places(make, pairs, batch):
    generator = make(full=True)
    plain = method_of(generator, pairs, DPO())
    half = [replace(pair, strength=0.5) for pair in pairs]
    weighed = method_of(generator, half, DPO(), weighting="strength")
    torch.testing.assert_close(
        gradient(weighed, batch(source=half)), gradient(plain, batch()) / 2, rtol=1e-4, atol=1e-6
    )
    size = pairs[0].win.shape[-2:]
    everywhere = [replace(p, win_mask=torch.ones(size), lose_mask=torch.ones(size)) for p in pairs]
    torch.testing.assert_close(
        gradient(plain, batch(source=everywhere)), gradient(plain, batch()), rtol=1e-4, atol=1e-6
    )
    left = torch.zeros(size)
    left[:, : size[1] // 2] = 1
    stirred(generator)
    region = [replace(p, win_mask=left, lose_mask=left) for p in pairs]
    a = plain.step("student", batch(source=region)).metrics["error/winner"]
    assert float(a) != pytest.approx(float(plain.step("student", batch()).metrics["error/winner"]), rel=1e-3)


def test_ties_need_a_model_of_ties(make, pairs, batch):
    drawn = [replace(pair, tie=True) for pair in pairs]
    with pytest.raises(UserError, match="holds ties, which dpo has no use for"):
        method_of(make(), drawn, DPO()).step("student", batch(source=drawn))
    generator = make(full=True)
    method = method_of(generator, drawn, DPO(ties=2.0, beta=100.0))
    assert gradient(method, batch(source=drawn)).norm() < 1e-5  # equal already: nothing pulls
    stirred(generator)
    assert gradient(method, batch(source=drawn)).norm() > 1e-3


def test_inverted_states_cost_the_steps_below_their_time(make, pairs, batch):
    """InPO's cost and its closed form at the start."""
    method = method_of(make(), pairs, DPO(), states=InvertedStates(steps=4, noise=0.0))
    output = method.step("student", batch())
    assert float(output.losses["preference"].detach()) == pytest.approx(math.log(2), rel=1e-5)
    assert method.evaluations(2)["unet forward"] == 2 * 2 * 2.5 + 2 * 2


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DPO(label_smoothing=0.6), "must be in \\[0, 0.5\\)"),
        (lambda: DPO(ties=1.0), "theta must be above 1"),
        (lambda: DPO(ties=2.0, margin=1.0), "set label_smoothing and margin to 0"),
        (lambda: PreferenceConfig(grid_steps=0), "at least 1"),
        (lambda: PreferenceConfig(grid_steps=4, times="logit_normal"), "give one of the two"),
        (lambda: InvertedStates(steps=0), "at least 1"),
        (lambda: LogitConfig(scale=0.0), "must be above 0"),
    ],
)
def test_settings_that_make_no_sense(build, message):
    with pytest.raises(UserError, match=message):
        build()


def test_what_does_not_fit_is_told_before_training(make, pairs):
    with pytest.raises(UserError, match="dpo compares the student with a reference, and reference is none"):
        method_of(make(), pairs, DPO(), reference="none")
    method_of(make(), pairs, CPO(), reference="none")  # needs none
    with pytest.raises(UserError, match="must hold preference pairs, not str"):
        method_of(make(), ["a cat"], DPO())
    small = [replace(pair, win=pair.win[:, ::2, ::2], lose=pair.lose[:, ::2, ::2]) for pair in pairs]
    with pytest.raises(UserError, match="have 16 x 16 px but the model draws 32 x 32"):
        method_of(make(), small, DPO())
    masked = OfRows(pairs)
    masked.has_masks = True
    method_of(make(), masked, DPO())
    with pytest.raises(UserError, match="the source 'pairs' has masks.*set space to {kind: latent}"):
        method_of(make(), masked, DPO(), space=NCPConfig())
    with pytest.raises(UserError, match="text_encoder to false"):
        method_of(make(full=True, text_encoder=True), pairs, DPO())
    with pytest.raises(UserError, match="beta is -1"):
        method_of(make(), pairs, DPO(beta=-1.0))
