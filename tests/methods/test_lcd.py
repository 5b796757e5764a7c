from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, LCMScheduler

from unifl.errors import UserError
from unifl.feedback import as_feedback
from unifl.methods.base import Method
from unifl.methods.guiding import GuidingConfig
from unifl.methods.lcd import LCD
from unifl.methods.lcd_config import LCDConfig
from unifl.process import SolverConfig
from unifl.sampling import FixedGuidance, NoGuidance, RangeGuidance
from unifl.training.config import TrainingConfig
from unifl.training.state import TrainingState


def stirred(generator, seed=1):
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in generator.trainable_parameters().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draws))
    return generator


@pytest.mark.parametrize("family", ["sd15", "sd21"])
@pytest.mark.parametrize("embed", [True, False])
def test_the_loss_is_that_of_the_published_script(make, micro, sources, family, embed):
    """Step by step with integer timesteps, diffusers' own networks, tables and boundary."""
    generator = make(family, full=True, embed_guidance=embed)
    method = LCD(generator, LCDConfig(), sources=sources)
    assert isinstance(method, Method) and method.roles == ("teacher", "ema")
    teacher, average = (generator.roles.module("unet", role) for role in ("teacher", "ema"))
    stirred(generator)
    batch = micro((0, 1, 2, 3))
    output = method.step("student", batch)

    pipeline, key = generator.pipeline, batch.key
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    prompts = [sample.prompt for sample in batch.data["images"]]
    embeds, nothing = (generator.encode_prompts(texts).embeds for texts in (prompts, [""] * 4))
    x0 = generator.encode(torch.stack([sample.image for sample in batch.data["images"]]), key=key)
    start = 20 * (key.integers("lcd/index", 0, 50) + 1) - 1
    ahead = (start - 20).clamp(min=0)
    scale = 5 + 10 * key.uniform("lcd/guidance")  # LCM's own convention, [5, 15]
    noisy = scheduler.add_noise(x0, key.normal("lcd/noise", x0.shape[1:]), start)
    told = pipeline.get_guidance_scale_embedding(scale, 256) if embed else None

    def origin(unet, sample, index, cond, **more):
        raw = unet(sample, index, encoder_hidden_states=cond, **more).sample
        abar = scheduler.alphas_cumprod[index][:, None, None, None]
        if family == "sd15":
            return (sample - (1 - abar).sqrt() * raw) / abar.sqrt(), raw
        return abar.sqrt() * sample - (1 - abar).sqrt() * raw, abar.sqrt() * raw + (1 - abar).sqrt() * sample

    def jump(unet, sample, index):
        scalings = LCMScheduler().get_scalings_for_boundary_condition_discrete
        skip, out = (
            torch.stack(found)[:, None, None, None] for found in zip(*map(scalings, index), strict=True)
        )
        return skip * sample + out * origin(unet, sample, index, embeds, timestep_cond=told)[0]

    with torch.no_grad():
        clean, eps = origin(teacher, noisy, start, embeds)
        clean_without, eps_without = origin(teacher, noisy, start, nothing)
        w = scale[:, None, None, None]
        clean, eps = clean + w * (clean - clean_without), eps + w * (eps - eps_without)
        abar = scheduler.alphas_cumprod[ahead][:, None, None, None]
        target = jump(average, abar.sqrt() * clean + (1 - abar).sqrt() * eps, ahead)
        difference = jump(pipeline.unet, noisy, start) - target
        expected = (torch.sqrt(difference**2 + 0.001**2) - 0.001).mean()
    assert float(output.losses["distillation"].detach()) == pytest.approx(float(expected), rel=2e-3)


@pytest.mark.parametrize(
    "settings", [{}, {"solver": SolverConfig(substeps=3, eta=1.0)}, {"target": "student"}]
)
@pytest.mark.parametrize("states", ["data", "teacher", "student"])
def test_evaluations_are_counted(make, micro, sources, counted, settings, states):
    rewards = {"redness": as_feedback(lambda images, prompts: images[:, 0].mean((1, 2)))}
    config = LCDConfig(
        **settings, states=states, rewards=GuidingConfig(weights={"redness": 1.0}, batch_size=2)
    )
    method = LCD(make(), config, sources=sources, rewards=rewards)
    with counted(method) as found:
        method.step("student", micro((0, 1, 2, 3)))
    found = {name: number for name, number in found.items() if "text" not in name}  # cached prompts
    stated = {name: number for name, number in method.evaluations(4).items() if "reward" not in name}
    assert {name.replace("vae decode forward+backward", "vae decode"): n for name, n in stated.items()} == {
        name.replace("vae decode forward+backward", "vae decode"): n for name, n in found.items()
    }


@pytest.mark.parametrize("full", [True, False])
def test_the_student_moves_and_nothing_else(make, micro, sources, full):
    generator = make(full=full, **({"embed_guidance": True} if full else {}))
    method = LCD(generator, LCDConfig(), sources=sources)
    before = {role: _copied(generator, role) for role in ("teacher", "ema")}
    optimizer = torch.optim.Adam(method.parameters["student"], lr=0.01)
    own = [parameter.detach().clone() for parameter in method.parameters["student"]]
    for step in range(2):  # the second factor of a fresh LoRA gets its gradient in the second step
        method.step("student", micro(step=step)).losses["distillation"].backward()
        optimizer.step()
    unmoved = [
        n for n, (a, b) in enumerate(zip(own, method.parameters["student"], strict=True)) if torch.equal(a, b)
    ]
    assert not unmoved
    for role, weights in before.items():
        assert all(torch.equal(weights[name], tensor) for name, tensor in _copied(generator, role).items())


def test_it_learns_the_jump_of_the_teacher(make, micro, sources):
    """After some steps one jump is nearer to the end of the teacher's trajectory than it was."""
    generator = make(full=True, embed_guidance=True)
    config = LCDConfig(guidance=FixedGuidance(scale=2.0), grid_steps=4, target="student")
    method = LCD(generator, config, sources=sources)
    optimizer = torch.optim.Adam(method.parameters["student"], lr=2e-3)
    losses = []
    for step in range(60):
        loss = method.step("student", micro((0, 1, 2, 3), step=step)).losses["distillation"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-15:]) < 0.7 * sum(losses[:15])


# --- rewards of the prediction ------------------------------------------------------------------------------


def gradient_with(
    make, micro, sources, weights, *, balance="weights", batch_size=None, rewards=None, **settings
):
    generator = make(full=True)
    rewards = rewards or {
        "red": as_feedback(lambda images, prompts: images[:, 0].mean((1, 2))),
        "loud": as_feedback(lambda images, prompts: 100 * images[:, 0].mean((1, 2))),
    }
    config = LCDConfig(
        guidance=NoGuidance(),
        rewards=GuidingConfig(weights=weights, balance=balance, batch_size=batch_size),
        **settings,
    )
    method = LCD(generator, config, sources=sources, rewards=rewards)
    stirred(generator)
    output = method.step("student", micro((0, 1, 2, 3)))
    parameters = method.parameters["student"]
    (sum(output.losses.values())).backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in parameters])
    return output, gradient


def test_a_reward_pulls_by_its_own_gradient(make, micro, sources):
    """The shortcut around a second way back through the decoder gives the gradient of -weight mean R."""
    none, plain = gradient_with(make, micro, sources, {})
    assert list(none.losses) == ["distillation"]
    output, pulled = gradient_with(make, micro, sources, {"red": 2.0})
    assert float(output.losses["reward/red"].detach()) == pytest.approx(
        -2 * float(output.metrics["reward/red"])
    )

    generator = make(full=True)
    method = LCD(generator, LCDConfig(guidance=NoGuidance()), sources=sources)
    stirred(generator)
    seen = []
    method._jump = lambda prediction, end, jump=method._jump: seen.append(jump(prediction, end)) or seen[-1]
    method.step("student", micro((0, 1, 2, 3)))
    loss = -2 * generator.decode(seen[-1], grad=True)[:, 0].mean()
    found = torch.autograd.grad(loss, method.parameters["student"])
    expected = torch.cat([part.flatten() for part in found])
    torch.testing.assert_close(pulled - plain, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def test_a_sub_batch_is_decoded_and_the_rest_only_distilled(make, micro, sources):
    shapes = []
    rewards = {
        "red": as_feedback(
            lambda images, prompts: (shapes.append(images.shape), images[:, 0].mean((1, 2)))[1]
        )
    }
    gradient_with(make, micro, sources, {"red": 1.0}, batch_size=3, rewards=rewards)
    assert {shape[0] for shape in shapes[1:]} == {3}  # the first was the trial of the gradient


@pytest.mark.parametrize("settings", [{}, {"boundary": "ddim", "end": "uniform"}], ids=["lcd", "tcd"])
def test_balanced_rewards_pull_alike_whatever_their_scale(make, micro, sources, settings):
    """Two rewards of one direction, one a hundred times the other, move the student by the same amount."""

    def gradient(weights, balance="gradient_norm"):
        return gradient_with(make, micro, sources, weights, balance=balance, **settings)[1]

    plain = gradient({})
    quiet, loud = gradient({"red": 1.0}), gradient({"loud": 1.0})
    torch.testing.assert_close(quiet, loud, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(gradient({"red": 2.0}) - plain, 2 * (quiet - plain), rtol=1e-3, atol=1e-6)
    by_hand = gradient({"red": 1.0}, balance="weights")
    assert not torch.allclose(by_hand, quiet, rtol=0.1)


@pytest.mark.parametrize(("balance", "ways"), [("weights", 1), ("gradient_norm", 2)])
def test_several_rewards_share_one_way_back_through_the_decoder(make, micro, sources, balance, ways):
    """Only where each pull is needed by itself does each go back alone."""
    passed = []
    generator = make(full=True)
    first = generator.pipeline.vae.decoder.conv_in
    first.register_full_backward_hook(lambda *_: passed.append(1))
    reward = as_feedback(lambda images, prompts: images[:, 0].mean((1, 2)))
    config = GuidingConfig(weights={"red": 1.0, "again": 0.5}, balance=balance)
    method = LCD(
        generator,
        LCDConfig(guidance=NoGuidance(), rewards=config),
        sources=sources,
        rewards={"red": reward, "again": reward},
    )
    passed.clear()  # of the trials of the gradient
    output = method.step("student", micro())
    sum(output.losses.values()).backward()
    assert len(passed) == ways


def test_a_level_ends_the_pull_of_a_reward(make, micro, sources):
    def pull(level):
        generator = make(full=True)
        config = GuidingConfig(weights={"red": 1.0}, levels={} if level is None else {"red": level})
        rewards = {"red": as_feedback(lambda images, prompts: images[:, 0].mean((1, 2)))}
        method = LCD(
            generator, LCDConfig(guidance=NoGuidance(), rewards=config), sources=sources, rewards=rewards
        )
        stirred(generator)
        loss = method.step("student", micro()).losses["reward/red"]
        return loss, torch.autograd.grad(loss, method.parameters["student"][0])[0]

    free, pulled = pull(None)
    loss, same = pull(50.0)  # far above every score: the gradient of -r
    torch.testing.assert_close(same, pulled)
    assert float(loss.detach()) == pytest.approx(50 + float(free.detach()), rel=1e-5)
    loss, none = pull(-50.0)
    assert float(loss.detach()) == 0 and not none.any()
    with pytest.raises(UserError, match="names 'blue', which has no weight"):
        GuidingConfig(weights={"red": 1.0}, levels={"blue": 1.0})


def test_a_reward_of_latents_costs_no_decode(make, micro, sources, counted):
    class Small:
        name, space, differentiable, needs, range = "small", "latent", True, frozenset(), None

        def __call__(self, latents, prompts):
            return -latents.square().mean((1, 2, 3))

    method = LCD(
        make(),
        LCDConfig(rewards=GuidingConfig(weights={"small": 1.0})),
        sources=sources,
        rewards={"small": Small()},
    )
    with counted(method) as found:
        output = method.step("student", micro())
    assert "reward/small" in output.losses and not any("decode" in name for name in found)


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"end": "uniform"}, "set lcd.boundary to ddim"),
        ({"phases": 4}, "which takes `end: phases`"),
        ({"boundary": "ddim", "end": "phases", "phases": 60}, "choose at most 50"),
        ({"huber_c": 0.0}, "must be above 0"),
        ({"grid_steps": 0}, "at least 1"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(UserError, match=message):
        LCDConfig(**settings)


def test_what_does_not_fit_is_told_before_training(make, sources):
    with pytest.raises(UserError, match="choose a divisor of 1000"):
        LCD(make(), LCDConfig(grid_steps=30), sources=sources)
    with pytest.raises(UserError, match="text_encoder to false"):
        LCD(make(full=True, text_encoder=True), LCDConfig(), sources=sources)
    with pytest.raises(UserError, match="names the reward 'red', which is not there"):
        LCD(make(), LCDConfig(rewards=GuidingConfig(weights={"red": 1.0})), sources=sources)
    blind = {"red": as_feedback(lambda images, prompts: images.detach().mean((1, 2, 3)))}
    with pytest.raises(UserError, match="LCD needs a gradient through the feedback"):
        LCD(make(), LCDConfig(rewards=GuidingConfig(weights={"red": 1.0})), sources=sources, rewards=blind)
    with pytest.raises(UserError, match="must hold pictures with captions"):
        LCD(make(), LCDConfig(), sources={"images": ["a cat"]})
    LCD(make(), LCDConfig(states="teacher"), sources={"images": ["a cat"]})  # no pictures are needed


def test_an_average_that_nobody_moves_is_refused(make, sources):
    method = LCD(make(), LCDConfig(), sources=sources)
    with pytest.raises(UserError, match=r"training.ema_decay is null; set it to 0.95"):
        TrainingState.new(method, TrainingConfig())
    TrainingState.new(method, TrainingConfig(ema_decay=0.95))


def test_ranges_of_guidance():
    assert LCDConfig().guidance_range == (6.0, 16.0)
    assert LCDConfig(guidance=RangeGuidance(low=2.0, high=3.0)).guidance_range == (2.0, 3.0)
    assert LCDConfig(guidance=NoGuidance()).guidance_range == (1.0, 1.0)
    assert LCDConfig(boundary="ddim", end="phases", phases=4).sampled_steps == (4, 4)


def _copied(generator, role):
    if generator.roles.num_copies:
        return {k: v.clone() for k, v in generator.roles.module("unet", role).state_dict().items()}
    return {name: tensor.clone() for name, tensor in generator.roles.state(role).items()}
