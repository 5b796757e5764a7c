from __future__ import annotations

import pytest
import torch

from unifl.methods.adversarial import AdversarialConfig
from unifl.methods.anchors import AnchorConfig
from unifl.methods.base import Method
from unifl.methods.refl import ReFL, ReFLConfig
from unifl.methods.unifl import UniFL
from unifl.methods.unifl_config import AestheticConfig, PerceptualConfig, UniFLConfig
from unifl.sampling import FixedGuidance

LEVELS = {"color": 0.5, "lighting": 0.9}


def perceptual(**settings):
    weights = {"structure": 0.1, "layout": 0.2, "style": 0.3}
    return PerceptualConfig(**{"num_steps": 4, "start": 3, "stop": (0, 1), "weights": weights} | settings)


def aesthetic(**settings):
    return AestheticConfig(**{"num_steps": 3, "stop": (0, 1), "levels": LEVELS, "weight": 1.0} | settings)


def adversarial(**settings):
    return AdversarialConfig(**{"num_steps": 3, "weight": 0.5} | settings)


STAGE_1 = UniFLConfig(perceptual=perceptual(), aesthetic=aesthetic())
STAGE_2 = UniFLConfig(adversarial=adversarial(), aesthetic=aesthetic())


@pytest.fixture
def unifl(make, rewards, critics, detail, sources):
    def build(config, generator=None, **changes):
        parts = dict(rewards=rewards, critics=critics, sources=sources, discriminator=detail) | changes
        return UniFL(generator or make(), config, **parts)

    return build


def _weights(method):
    """Everything that could move: networks of the pipeline, discriminator, rewards, critics."""
    found = {}
    for name, module in method.generator.modules().items():
        found |= {f"{name}.{key}": value.clone() for key, value in module.state_dict().items()}
    for name, critic in method.critics.items():
        found |= {f"critic.{name}.{key}": v.clone() for key, v in critic.network.state_dict().items()}
    return found


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl", "sd3"])
def test_every_trainable_moves_and_nothing_else(unifl, make, micro, family, full):
    both = UniFLConfig(perceptual=perceptual(), aesthetic=aesthetic(), adversarial=adversarial())
    method = unifl(both, make(family, full=full))
    assert isinstance(method, Method)
    before, everything = (
        [p.detach().clone() for ps in method.parameters.values() for p in ps],
        _weights(method),
    )
    optimizers = {name: torch.optim.Adam(ps, lr=1e-3, eps=1e-30) for name, ps in method.parameters.items()}
    for step in range(2):  # LoRA's A has no gradient before B has moved
        batch = micro(step=step)
        for update, optimizer in optimizers.items():
            losses = method.step(update, batch).losses
            assert all(loss.ndim == 0 and bool(loss.isfinite()) for loss in losses.values())
            sum(losses.values()).backward()
            optimizer.step()
            for other in optimizers.values():
                other.zero_grad()
    after = [p.detach() for ps in method.parameters.values() for p in ps]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    trained = {name for name, value in _weights(method).items() if not torch.equal(everything[name], value)}
    assert trained and all(
        name.startswith(method.generator.denoiser) and (full or "lora" in name) for name in trained
    )


def test_terms_are_named_and_weighted(unifl, micro):
    output = unifl(STAGE_1).step("student", micro())
    assert set(output.losses) == {
        "perceptual/structure", "perceptual/layout", "perceptual/style", "aesthetic/color", "aesthetic/lighting"
    }  # fmt: skip
    for name, weight in {"structure": 0.1, "layout": 0.2, "style": 0.3}.items():
        assert torch.allclose(output.losses[f"perceptual/{name}"], weight * output.metrics[f"critic/{name}"])
    lighting = output.previews["aesthetic"].mean((1, 2, 3))
    assert torch.allclose(output.losses["aesthetic/lighting"], (0.9 - lighting).relu().mean(), atol=1e-6)
    assert 0 <= output.metrics["stop/perceptual"] <= 1


def test_defaults_are_the_papers():
    config = UniFLConfig(perceptual=PerceptualConfig(), aesthetic=AestheticConfig(levels=LEVELS))
    assert (config.perceptual.num_steps, config.perceptual.start, config.perceptual.stop) == (20, 10, (0, 5))
    second = AdversarialConfig()
    assert (second.num_steps, second.stop_range(20), second.loss) == (20, (0, 19), "linear")


@pytest.mark.parametrize(
    "config",
    [
        UniFLConfig(perceptual=perceptual(stop=(1, 1))),
        UniFLConfig(
            perceptual=perceptual(stop=(2, 2), gt_source="pseudo", guidance=FixedGuidance(scale=2.0))
        ),
        UniFLConfig(aesthetic=aesthetic(stop=(0, 0), grad_guidance=2.0)),
        UniFLConfig(adversarial=adversarial(stop=(1, 1))),
        UniFLConfig(adversarial=adversarial(stop=(1, 1), train_discriminator=False, loss="bounded")),
        UniFLConfig(
            adversarial=adversarial(stop=(0, 0), start="image", real="reconstruction", loss="bounded")
        ),
        UniFLConfig(
            adversarial=adversarial(stop=(2, 2)),
            aesthetic=aesthetic(stop=(0, 0)),
            perceptual=perceptual(stop=(0, 0), weights={"style": 1.0, "layout": 0.0}),
            anchors=AnchorConfig(denoising_weight=0.1, distance_weight=0.1),
        ),
        UniFLConfig(adversarial=adversarial(stop=(2, 2)), aesthetic=aesthetic(stop=(2, 2), source="images")),
    ],
)
def test_evaluations_are_exact(unifl, micro, run_step, counted, config):
    method = unifl(config)
    run_step(method, micro())  # fills the cache of prompts
    with counted(method) as found:
        run_step(method, micro())
    expected = {
        name: count for name, count in method.evaluations(2).items() if not name.startswith("reward/")
    }
    assert dict(found) == expected


def test_expected_evaluations_are_the_mean_over_stops(unifl, make):
    generator = make()

    def forward(stop):
        method = unifl(UniFLConfig(adversarial=adversarial(stop=stop)), generator)
        return method.evaluations(8).get("unet forward", 0.0)

    alone = [forward((k, k)) for k in range(3)]
    assert alone == [16.0, 8.0, 0.0] and forward(None) == sum(alone) / 3


def test_text_encoders_that_train_are_counted_and_get_gradients(unifl, make, micro, run_step, counted):
    config = UniFLConfig(perceptual=perceptual(), aesthetic=aesthetic(guidance=FixedGuidance(scale=2.0)))
    method = unifl(config, make(text_encoder=True))
    with counted(method) as found:
        run_step(method, micro())
    assert found["text forward+backward"] == method.evaluations(2)["text forward+backward"] == 5
    names = method.generator.trainable_parameters()
    text = [parameter for name, parameter in names.items() if "text_encoder" in name and "lora_B" in name]
    assert text and all(float(parameter.grad.abs().max()) > 0 for parameter in text)


@pytest.mark.parametrize(("stop", "guidance"), [(2, 1.0), (0, 2.0)])
def test_one_aesthetic_reward_is_refl(unifl, make, rewards, sources, micro, run_step, stop, guidance):
    schedule = dict(num_steps=3, stop=(0, stop), guidance=FixedGuidance(scale=guidance))
    ours = unifl(UniFLConfig(aesthetic=AestheticConfig(levels={"color": 0.7}, weight=0.25, **schedule)))
    config = ReFLConfig(reward="color", margin=0.7, grad_scale=0.25, **schedule)
    refl = ReFL(make(), config, rewards=rewards, sources=sources)
    a = run_step(ours, micro(step=3))["student"].losses["aesthetic/color"]
    b = run_step(refl, micro(step=3))["student"].losses["reward/color"]
    assert torch.equal(a, b)
    for p, q in zip(ours.parameters["student"], refl.parameters["student"], strict=True):
        assert torch.equal(p.grad, q.grad)


def test_terms_do_not_disturb_each_other(unifl, micro, run_step):
    """The sum of the terms alone is the whole: same draws, same losses, whatever else is on."""
    whole = run_step(
        unifl(UniFLConfig(perceptual=perceptual(), aesthetic=aesthetic(), adversarial=adversarial())), micro()
    )
    for part in (
        UniFLConfig(perceptual=perceptual(weights={"layout": 0.2})),
        UniFLConfig(aesthetic=aesthetic(weights={"color": 0.0})),
        UniFLConfig(adversarial=adversarial()),
    ):
        for update, output in run_step(unifl(part), micro()).items():
            for name, loss in output.losses.items():
                assert torch.equal(loss, whole[update].losses[name]), name


def test_halves_of_a_batch_average_to_the_whole(unifl, micro, run_step):
    # a bound taken from the mean of a batch, instead of from each real picture, would fail here
    config = UniFLConfig(
        perceptual=perceptual(), aesthetic=aesthetic(), adversarial=adversarial(loss="bounded")
    )
    method = unifl(config)
    whole, first, second = (run_step(method, micro(rows)) for rows in ((0, 1, 2, 3), (0, 1), (2, 3)))
    for update in method.updates:
        for name, value in whole[update].losses.items():
            mean = (first[update].losses[name] + second[update].losses[name]) / 2
            assert torch.allclose(value, mean, atol=1e-5), name


def test_each_update_leaves_the_other_alone(unifl, micro):
    method = unifl(STAGE_2)
    assert method.updates == ("student", "discriminator")
    batch = micro()
    sum(method.step("student", batch).losses.values()).backward()
    assert any(float(p.grad.abs().max()) > 0 for p in method.parameters["student"] if p.grad is not None)
    assert all(p.grad is None for p in method.parameters["discriminator"])
    for parameter in method.parameters["student"]:
        parameter.grad = None
    output = method.step("discriminator", batch)
    output.losses["discriminator"].backward()
    assert all(float(p.grad.abs().max()) > 0 for p in method.parameters["discriminator"])
    assert all(p.grad is None for p in method.parameters["student"])
    assert 0 <= float(output.metrics["discriminator/accuracy"]) <= 1


def test_discriminator_learns_and_the_reward_it_came_from_does_not(unifl, micro, detail):
    before = [p.clone() for p in detail.network.parameters()]
    method = unifl(UniFLConfig(adversarial=adversarial()))
    optimizer = torch.optim.AdamW(method.parameters["discriminator"], lr=1e-2)
    gaps = []
    for step in range(15):
        batch = micro((0, 1, 2, 3), step=step)
        method.step("student", batch)
        output = method.step("discriminator", batch)
        optimizer.zero_grad()
        output.losses["discriminator"].backward()
        optimizer.step()
        gaps.append(
            float(output.metrics["discriminator/real_logit"] - output.metrics["discriminator/fake_logit"])
        )
    assert gaps[-1] > gaps[0] + 0.2
    assert all(torch.equal(p, q) for p, q in zip(before, detail.network.parameters(), strict=True))
    assert list(method.modules) == ["discriminator"]


def test_a_frozen_discriminator_is_an_ordinary_reward(unifl, micro, run_step, detail):
    method = unifl(UniFLConfig(adversarial=adversarial(train_discriminator=False)))
    assert (
        method.updates == ("student",) and method.modules == {} and "discriminator" not in method.parameters
    )
    batch = micro()
    output = run_step(method, batch)["student"]
    expected = -0.5 * detail(output.previews["adversarial"], batch.data["prompts"]).mean()
    assert torch.allclose(output.losses["adversarial"], expected, atol=1e-6) and batch.scratch == {}


def test_bounded_loss_ends_where_a_picture_scores_like_the_real_one(unifl, micro, run_step):
    method = unifl(UniFLConfig(adversarial=adversarial(loss="bounded")))
    batch = micro()
    output = run_step(method, batch)["student"]
    real = method.discriminator(
        torch.stack([s.image for s in batch.data["images"]]), [s.prompt for s in batch.data["images"]]
    )
    fake = method.discriminator(output.previews["adversarial"], [s.prompt for s in batch.data["images"]])
    assert torch.allclose(output.losses["adversarial"], 0.5 * (real - fake).relu().mean(), atol=1e-6)


def test_a_rollout_that_would_be_drawn_alike_is_shared(unifl, micro, run_step):
    alike = UniFLConfig(adversarial=adversarial(), aesthetic=aesthetic(stop=None, source="images"))
    assert alike.shares_rollout and not STAGE_2.shares_rollout
    method = unifl(alike)
    output = run_step(method, micro())["student"]
    assert set(output.previews) == {"adversarial"}
    score = output.previews["adversarial"].mean((1, 2, 3))
    assert torch.allclose(output.losses["aesthetic/lighting"], (0.9 - score).relu().mean(), atol=1e-6)
    for change in ({"num_steps": 4}, {"spacing": "leading"}, {"grad_guidance": 2.0}, {"source": "prompts"}):
        other = aesthetic(**{"stop": None, "source": "images"} | change)
        assert not UniFLConfig(adversarial=adversarial(), aesthetic=other).shares_rollout


def test_pseudo_annotations_need_none(unifl, images, micro):
    from dataclasses import replace

    bare = [replace(sample, masks=None, labels=None, semantic=None) for sample in images]
    config = UniFLConfig(perceptual=perceptual(gt_source="pseudo"))
    method = unifl(config, sources={"images": bare, "prompts": []})
    batch = micro()
    batch.data["images"] = bare[:2]
    assert all(bool(loss.isfinite()) for loss in method.step("student", batch).losses.values())


def test_critics_of_other_sources_get_their_own_rollout(unifl, images, micro):
    config = UniFLConfig(perceptual=perceptual(critic_sources={"style": "styles"}))
    method = unifl(config, sources={"images": images, "styles": images[::-1]})
    assert list(method.sources) == ["images", "styles"]
    batch = micro()
    batch.data["styles"] = images[2:]
    output = method.step("student", batch)
    assert set(output.previews) == {"perceptual/images", "perceptual/styles"}
    assert method.evaluations(2)["vae encode"] == 4


def _train(method, micro, metric, *, steps=12, lr=5e-3):
    """First and last value of a metric over some steps with the same noise."""
    optimizer = torch.optim.AdamW(method.parameters["student"], lr=lr)
    found = []
    for _ in range(steps):
        output = method.step("student", micro())
        optimizer.zero_grad()
        sum(output.losses.values()).backward()
        optimizer.step()
        found.append(float(output.metrics[metric]))
    return found[0], found[-1]


@pytest.mark.parametrize("critic", ["structure", "layout", "style"])
def test_each_critic_alone_improves(unifl, make, micro, critic):
    config = UniFLConfig(perceptual=perceptual(weights={critic: 1.0}, stop=(2, 2)))
    first, last = _train(unifl(config, make(full=True)), micro, f"critic/{critic}")
    assert last < 0.98 * first


def test_a_reward_rises_to_its_level(unifl, make, micro):
    config = UniFLConfig(aesthetic=aesthetic(levels={"lighting": 0.9}, num_steps=2))
    first, last = _train(unifl(config, make(full=True)), micro, "reward/lighting")
    assert last > first + 0.03


def test_a_reward_that_is_nan_shows_in_its_own_term(unifl, rewards, micro):
    from unifl.feedback import as_feedback

    broken = as_feedback(lambda images, prompts: images.mean((1, 2, 3)) * float("nan"), name="color")
    losses = unifl(STAGE_1, rewards=rewards | {"color": broken}).step("student", micro()).losses
    assert [name for name, loss in losses.items() if bool(loss.isnan())] == ["aesthetic/color"]
