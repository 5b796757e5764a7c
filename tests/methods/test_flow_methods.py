"""Methods on flow-matching transformers: which train them, and which say that they cannot."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from unifl.data.judged import Judged
from unifl.data.pairs import Pair
from unifl.errors import UserError
from unifl.methods.anchors import AnchorConfig
from unifl.methods.base import MicroBatch
from unifl.methods.finetune import FineTune, FineTuneConfig
from unifl.methods.guided_distillation import GuidedDistillation, GuidedDistillationConfig
from unifl.methods.kto import KTO, KTOConfig
from unifl.methods.lcd import LCD
from unifl.methods.lcd_config import LCDConfig
from unifl.methods.objectives import DPO
from unifl.methods.preference import Preference, PreferenceConfig
from unifl.methods.progressive import Progressive, ProgressiveConfig
from unifl.methods.refl import ReFL, ReFLConfig
from unifl.methods.reward_weighted import RewardWeighted, RewardWeightedConfig
from unifl.methods.spaces import NCPConfig
from unifl.models.lora import JOINT_ATTENTION
from unifl.randomness import Key
from unifl.testing import FLOW_FAMILIES, tiny_pipeline

REFL = ReFLConfig(
    num_steps=3, stop=(0, 1), reward="color", grad_scale=1.0, anchors=AnchorConfig(distance_weight=0.1)
)


@pytest.fixture
def pairs(images):
    return [Pair(sample.prompt, sample.image, sample.image.flip(0)) for sample in images]


@pytest.fixture
def judged(images):
    return [Judged(sample.prompt, sample.image, float(row % 2)) for row, sample in enumerate(images)]


@pytest.fixture
def micro(sources, pairs, judged):
    every = {**sources, "pairs": pairs, "likes": judged, "scored": judged}

    def build(rows=(0, 1), step=0):
        data = {name: [source[row] for row in rows] for name, source in every.items()}
        return MicroBatch(Key(0, step, tuple(rows)), data)

    return build


@pytest.fixture
def method(rewards, sources, pairs, judged):
    def build(kind, generator):
        if kind == "finetune":
            return FineTune(generator, FineTuneConfig(), sources=sources)
        if kind == "preference":
            config = PreferenceConfig(objective=DPO(beta=50.0))
            return Preference(generator, config, sources={"pairs": pairs})
        if kind == "kto":
            return KTO(generator, KTOConfig(), sources={"likes": judged})
        if kind == "reward_weighted":
            return RewardWeighted(generator, RewardWeightedConfig(), sources={"scored": judged})
        return ReFL(generator, REFL, rewards=rewards, sources=sources)

    return build


def _everything(generator):
    """All weights of all roles, by their identity."""
    found = dict(enumerate(p for module in generator.modules().values() for p in module.parameters()))
    for role in generator.roles.names:
        for component in generator.roles.components:
            for parameter in generator.roles.module(component, role).parameters():
                found[id(parameter)] = parameter
    return {id(parameter): parameter for parameter in found.values()}


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("family", FLOW_FAMILIES)
@pytest.mark.parametrize("kind", ["finetune", "refl", "preference", "kto", "reward_weighted"])
def test_every_trainable_moves_and_nothing_else(make, micro, method, kind, family, full):
    settings = {} if full else {"target_modules": list(JOINT_ATTENTION)}
    text = kind in ("finetune", "refl")  # the others train the denoiser alone
    trained = method(kind, make(family, full=full, text_encoder=text, **settings))
    own = dict(
        zip(map(id, trained.parameters["student"]), trained.generator.trainable_parameters(), strict=True)
    )
    before = {key: p.detach().clone() for key, p in _everything(trained.generator).items()}
    optimizer = torch.optim.Adam(trained.parameters["student"], lr=1e-3)
    for step in range(2):  # A of a LoRA has no gradient before B has moved
        optimizer.zero_grad()
        sum(trained.step("student", micro(step=step)).losses.values()).backward()
        optimizer.step()
    moved = {key for key, p in _everything(trained.generator).items() if not torch.equal(p, before[key])}
    assert own and not {name for key, name in own.items() if key not in moved}
    assert not moved - own.keys()


def test_the_denoising_loss_is_that_of_the_plain_transformer(make, micro, sources):
    trained = FineTune(make("sd3"), FineTuneConfig(), sources=sources)
    batch = micro()
    loss = trained.step("student", batch).losses["denoising"]
    pipeline = tiny_pipeline("sd3")
    scheduler, key = pipeline.scheduler, batch.key
    images = torch.stack([sample.image for sample in batch.data["images"]])
    with torch.no_grad():
        x0 = (pipeline.vae.encode(images * 2 - 1).latent_dist.mode() - 0.0609) * 1.5305
        eps = key.normal("anchor/noise", x0.shape[1:])
        # the scheduler counts from noise on
        timesteps = scheduler.timesteps.flip(0)[key.integers("anchor/timestep", 0, 1000)]
        prompts = [sample.prompt for sample in batch.data["images"]]
        embeds, _, pooled, _ = pipeline.encode_prompt(prompts, None, None)
        noisy = scheduler.scale_noise(x0, timesteps, eps)
        raw = pipeline.transformer(noisy, embeds, pooled, timestep=timesteps).sample
    assert float(loss.detach()) == pytest.approx(float((raw - (eps - x0)).square().mean()), rel=1e-4)


def test_fine_tuning_learns_the_pictures(make, micro, method):
    losses = []
    trained = method("finetune", make("sd3", full=True))
    optimizer = torch.optim.Adam(trained.parameters["student"], lr=3e-3)
    for step in range(60):
        optimizer.zero_grad()
        loss = trained.step("student", micro((0, 1, 2, 3), step=step)).losses["denoising"]
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_a_reward_rises(make, rewards, sources, micro):
    config = ReFLConfig(num_steps=2, stop=(0, 0), reward="color", grad_scale=1.0)
    trained = ReFL(make("sd3"), config, rewards=rewards, sources=sources)
    optimizer = torch.optim.AdamW(trained.parameters["student"], lr=5e-2)
    scores = []
    for _ in range(15):
        optimizer.zero_grad()
        output = trained.step("student", micro())
        sum(output.losses.values()).backward()
        optimizer.step()
        scores.append(float(output.metrics["reward/color"]))
    assert scores[-1] > scores[0] + 0.01


@pytest.mark.parametrize("kind", ["finetune", "refl"])
def test_evaluations_are_exact(make, micro, method, run_step, counted, kind):
    trained = method(kind, make("sd3"))
    run_step(trained, micro())  # fills the cache of prompts
    with counted(trained) as found:
        stop = run_step(trained, micro())["student"].metrics.get("stop/aesthetic")
    expected = trained.evaluations(2)
    if kind == "refl":
        expected.pop("reward/color forward+backward")
        # 2 steps without a graph less those that are left, and the reference of the anchor
        expected["unet forward"] = 2 * (2 - stop + 1)
    assert dict(found) == expected


def test_methods_that_count_in_timesteps_refuse_a_flow(make, sources):
    for build, config in (
        (LCD, LCDConfig(source="images")),
        (Progressive, ProgressiveConfig(source="images")),
        (GuidedDistillation, GuidedDistillationConfig(source="images")),
    ):
        name = {LCD: "lcd", Progressive: "progressive"}.get(build, "guided_distillation")
        message = f"{name} counts in the timesteps of a diffusion model.*flow model.*another method"
        with pytest.raises(UserError, match=message):
            build(make("sd3"), config, sources=sources)


def test_features_of_a_transformer_are_those_of_a_block_that_is_named(make, pairs):
    config = PreferenceConfig(objective=DPO(), space=NCPConfig())
    with pytest.raises(
        UserError, match="layer is down_last, which is of UNets, and this model is a transformer; name one"
    ):
        Preference(make("sd3"), config, sources={"pairs": pairs})
    method = Preference(make("sd3"), replace(config, space=NCPConfig(layer=1)), sources={"pairs": pairs})
    output = method.step("student", MicroBatch(Key(0, 0, (0, 1)), {"pairs": [pairs[0], pairs[1]]}))
    assert float(output.losses["preference"].detach()) == pytest.approx(math.log(2), rel=1e-5)
