from __future__ import annotations

from dataclasses import replace

import pytest

from unifl import config as configs
from unifl.data import Sample
from unifl.errors import UserError
from unifl.feedback import FunctionFeedback, as_feedback
from unifl.methods.adversarial import AdversarialConfig
from unifl.methods.unifl import UniFL
from unifl.methods.unifl_config import AestheticConfig, PerceptualConfig, UniFLConfig

STAGE_1 = {"perceptual": {"weights": {"structure": 0.01}}, "aesthetic": {"levels": {"color": 1.8}}}


def test_a_recipe_reads_and_writes():
    read = configs.load(
        STAGE_1, UniFLConfig, ["perceptual.stop=[0, 3]", "aesthetic.guidance={kind: fixed, scale: 2}"]
    )
    assert read.perceptual.stop == (0, 3) and read.aesthetic.guidance.scale == 2.0
    assert configs.load(configs.dump(read), UniFLConfig) == read
    with pytest.raises(UserError, match=r"unknown key 'perceptual.weight'"):
        configs.load(STAGE_1, UniFLConfig, ["perceptual.weight=2"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["perceptual.stop=[0, 10]"], r"perceptual.stop is \[0, 10\].*<= 9"),
        (["perceptual.start=21"], "perceptual.start is 21; choose 1 to 20"),
        (["aesthetic.num_steps=4"], r"aesthetic.stop is \[0, 5\].*<= 3"),
        (["perceptual.weights.structure=-1"], "perceptual.weights.structure is -1"),
        (["aesthetic.weight=-1"], "aesthetic.weight is -1"),
        (["aesthetic.weights.colour=1"], "names the axis 'colour'.*did you mean 'color'"),
        (["aesthetic.levels={}"], "levels is empty"),
        (["perceptual=null", "aesthetic=null"], "no feedback is on"),
        (["perceptual.weights.structure=0", "aesthetic.weight=0"], "no feedback is on"),
        (["perceptual.critic_sources={style: x}"], "names the critic 'style'"),
        (["adversarial.loss=hinge"], "adversarial"),
        (["anchors.distance_weight=-1"], "anchors.distance_weight is -1"),
    ],
)
def test_settings_that_make_no_sense(overrides, message):
    with pytest.raises(UserError, match=message):
        configs.load(STAGE_1, UniFLConfig, overrides)


def _build(make, config, **parts):
    return UniFL(make(), config, **parts)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda images: images.detach().mean((1, 2, 3)), "needs a gradient through the critic 'blind'"),
        (
            lambda images: (images > 0.5).float().mean((1, 2, 3)),
            "needs a gradient through the critic 'blind'",
        ),
        (lambda images: images.mean(), r"'blind' returned shape \(\) for 1 pictures"),
    ],
)
def test_a_critic_without_gradient_is_refused(make, rewards, sources, loss, message):
    class Blind:
        name = "blind"
        needs = frozenset({"image"})

        def __call__(self, images, batch):
            return loss(images)

        def pseudo(self, batch):
            return batch

    # beside another term the step would run, without any effect of the critic
    config = UniFLConfig(
        perceptual=PerceptualConfig(weights={"blind": 1.0}), aesthetic=AestheticConfig(levels={"color": 0.5})
    )
    with pytest.raises(UserError, match=message):
        _build(make, config, rewards=rewards, critics={"blind": Blind()}, sources=sources)


def test_missing_parts_are_named(make, rewards, critics, sources, detail):
    config = UniFLConfig(perceptual=PerceptualConfig(), aesthetic=AestheticConfig(levels={"color": 0.5}))
    parts = dict(rewards=rewards, critics=critics, sources=sources)
    with pytest.raises(UserError, match="aesthetic.levels names the reward 'color'.*given: lighting"):
        _build(make, config, **parts | {"rewards": {"lighting": rewards["lighting"]}})
    with pytest.raises(UserError, match="perceptual.weights names the critic 'structure'"):
        _build(make, config, **parts | {"critics": {}})
    with pytest.raises(UserError, match="names the source 'prompts'"):
        _build(make, config, **parts | {"sources": {"images": sources["images"]}})
    with pytest.raises(UserError, match="the source 'prompts' is empty"):
        _build(make, config, **parts | {"sources": sources | {"prompts": []}})
    with pytest.raises(UserError, match="needs a reward to start its discriminator from"):
        _build(make, UniFLConfig(adversarial=AdversarialConfig()), **parts)


def test_feedback_without_gradient_is_refused(make, rewards, sources):
    blind = as_feedback(lambda images, prompts: images.detach().mean((1, 2, 3)), name="color")
    config = UniFLConfig(aesthetic=AestheticConfig(levels={"color": 0.5}))
    with pytest.raises(UserError, match="aesthetic feedback needs a gradient through the feedback 'color'"):
        _build(make, config, rewards={"color": blind}, sources=sources)
    latent = FunctionFeedback(function=rewards["color"], name="color", space="latent")
    with pytest.raises(UserError, match="aesthetic feedback works in pixel space.*reads latent"):
        _build(make, config, rewards={"color": latent}, sources=sources)
    with pytest.raises(UserError, match="has no network to train"):
        _build(
            make,
            UniFLConfig(adversarial=AdversarialConfig()),
            sources=sources,
            discriminator=rewards["color"],
        )


@pytest.mark.parametrize(
    ("critic", "field", "what"), [("structure", "masks", "masks"), ("layout", "semantic", "semantic")]
)
def test_a_critic_without_annotations_is_told_about_pseudo_ones(make, critics, images, critic, field, what):
    bare = [replace(sample, **{field: None}) for sample in images]
    config = UniFLConfig(perceptual=PerceptualConfig(weights={critic: 1.0}))
    with pytest.raises(UserError, match=f"critic '{critic}' needs {what}.*perceptual.gt_source=pseudo"):
        _build(make, config, critics=critics, sources={"images": bare})


def test_pictures_must_have_the_size_of_the_model(make, critics, images):
    config = UniFLConfig(perceptual=PerceptualConfig(weights={"style": 1.0}))
    small = [Sample(sample.image[:, :16, :16], sample.prompt) for sample in images]
    with pytest.raises(UserError, match="have 16 x 16 px but the model draws 32 x 32"):
        _build(make, config, critics=critics, sources={"images": small})
    with pytest.raises(UserError, match="must hold pictures with captions, not str"):
        _build(make, config, critics=critics, sources={"images": ["a cat"]})


def test_what_is_off_needs_nothing(make, rewards, sources):
    config = UniFLConfig(
        perceptual=PerceptualConfig(weights={"structure": 0.0}),
        aesthetic=AestheticConfig(levels={"color": 0.5, "detail": 1.0}, weights={"detail": 0.0}),
        adversarial=AdversarialConfig(weight=0.0),
    )
    method = _build(make, config, rewards=rewards, sources={"prompts": sources["prompts"]})
    assert (
        list(method.sources) == ["prompts"]
        and method.updates == ("student",)
        and list(method.rewards) == ["color"]
    )
