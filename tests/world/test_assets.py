"""The packaged networks do what the docs say of them, measured on scenes that nothing was trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unifl.world.assets import ASSETS
from unifl.world.scenes import QUALITIES

pytestmark = pytest.mark.skipif(
    not (ASSETS / "pipeline").exists(), reason="the packaged weights have not been built (unifl world build)"
)


def _size(folder: Path) -> float:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6


def test_everything_together_stays_small() -> None:
    assert _size(ASSETS) < 20, "MB"


@pytest.fixture(scope="module")
def reencode():
    from unifl.models import load_generator
    from unifl.world.assets import PIPELINE

    generator = load_generator(PIPELINE, roles=())

    @torch.no_grad()
    def through(images: torch.Tensor) -> torch.Tensor:
        return generator.decode(generator.encode(images)).clamp(0, 1)

    return through


JUDGES = ("annotator", "validation", "gold")


def _judge(name: str):
    from unifl.world.judges import load_judge_file

    return load_judge_file(name, ASSETS / "judges" / f"{name}.safetensors")  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=JUDGES)
def trusted(request, reencode) -> tuple[str, dict[str, float]]:
    """A judge's name and its figures on the scenes of the docs page."""
    from unifl.world.trust import judge_numbers

    return request.param, judge_numbers(_judge(request.param), reencode)


def test_judges_can_be_trusted(trusted) -> None:
    _, numbers = trusted
    assert numbers["attribute_accuracy"] >= 0.98
    assert numbers["attribute_accuracy"] - numbers["attribute_accuracy_reencoded"] <= 0.02
    for axis in QUALITIES:
        assert numbers[f"rank_correlation_{axis}"] >= 0.9, axis
    for damage in ("noise_0.1", "blur_1.5px", "gain_1.5"):
        assert numbers[f"quality_change_{damage}"] < -0.03, damage


def test_reencoding_costs_little_quality(trusted, request) -> None:
    name, numbers = trusted
    if name == "validation":
        reason = "it reads 0.057 less detail in re-encoded pictures; docs/world.md says so"
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason))
    for axis in QUALITIES:
        assert abs(numbers[f"reencoding_cost_{axis}"]) <= 0.05, axis


@pytest.mark.xfail(
    strict=True,
    reason="flat pictures with crisp rims are taken for outlined ones; docs/world.md says how often",
)
def test_judges_read_styles(trusted) -> None:
    _, numbers = trusted
    assert numbers["style_accuracy"] >= 0.97


def test_judges_share_no_weights() -> None:
    from safetensors.torch import load_file

    weights = [load_file(path) for path in sorted((ASSETS / "judges").glob("*.safetensors"))]
    assert len(weights) == 3
    shapes = [{tuple(v.shape) for v in w.values() if v.dim() == 4} for w in weights]
    assert shapes[0] != shapes[1] != shapes[2] != shapes[0]


_SLOW_AXES = [
    pytest.param(axis, marks=pytest.mark.slow) for axis in ("layout", "lighting", "detail", "global")
]


@pytest.mark.parametrize("axis", ["color", *_SLOW_AXES])
def test_rewards_are_climbed_without_impressing_gold(axis: str) -> None:
    from unifl.world.annotated import SceneImages
    from unifl.world.assets import load_rewards
    from unifl.world.gold import load_gold
    from unifl.world.trust import pixel_ascent

    data = SceneImages.sample(40, seed=79, held_out=True)
    reward, gold = load_rewards()[axis], load_gold()
    climbed = pixel_ascent(reward, data.images, data.prompts)
    with torch.no_grad():
        gain = (reward(climbed, data.prompts) - reward(data.images, data.prompts)).mean()
        before, after = gold(data.images, data.prompts), gold(climbed, data.prompts)
    assert gain > 1, "the ascent must have worked"
    assert after["quality"].mean() < before["quality"].mean()
    if axis in QUALITIES:
        assert after[axis].mean() <= before[axis].mean() + 0.02


def test_rewards_order_what_people_see() -> None:
    """Scenes that differ in one quality only are ordered by its reward, mostly."""
    import numpy as np

    from unifl.world.assets import load_rewards
    from unifl.world.renderer import render
    from unifl.world.scenes import place, sample_scenes

    rewards = load_rewards()
    wanted = [scene.description for scene in sample_scenes(60, seed=80, held_out=True)]
    for i, axis in enumerate(QUALITIES):
        pictures = []
        for level in (0.15, 0.85):
            quality = tuple(level if j == i else 0.5 for j in range(4))
            pictures.append(
                render([place(d, np.random.default_rng(n), quality) for n, d in enumerate(wanted)]).images
            )
        prompts = [d.caption for d in wanted]
        with torch.no_grad():
            low, high = (rewards[axis](image, prompts) for image in pictures)
        assert (high > low).float().mean() > 0.8, axis


def test_critics_prefer_the_annotated_picture() -> None:
    from unifl.data import collate
    from unifl.world.annotated import SceneImages
    from unifl.world.assets import load_critics
    from unifl.world.corruption import warp

    data = SceneImages.sample(32, seed=81, held_out=True)
    batch = collate([data[i] for i in range(32)])
    bent = warp(batch.images, torch.full((32,), 1.5), torch.Generator().manual_seed(0))
    others = batch.images.roll(1, 0)
    for name, critic in load_critics().items():
        with torch.no_grad():
            own, wrong, warped = (critic(images, batch) for images in (batch.images, others, bent))
        assert (own < wrong).float().mean() > 0.9, name
        if name != "style":
            assert (own < warped).float().mean() > 0.8, name


@pytest.fixture(scope="module")
def start() -> dict[str, float]:
    """Gold on held-out prompts, other ones than those of the docs page, at the setting on record for 20 steps."""
    from unifl.assembly.open_model import open_model
    from unifl.world.fair_start import fair_start_numbers
    from unifl.world.gold import load_gold

    opened = open_model("world:pipeline", num_steps=20)
    how = opened.sampling
    return fair_start_numbers(
        opened.generator, load_gold(), guidance=how.guidance, spacing=how.spacing, number=300, seed=182
    )


@pytest.mark.slow
def test_base_model_is_a_fair_start(start) -> None:
    """One-object prompts mostly right, styles recognised, pictures varied: something to improve, nothing broken."""
    assert 0.75 <= start["right_1"] <= 0.97
    assert start["right_2"] >= 0.45
    assert min(value for key, value in start.items() if key.startswith("style_")) >= 0.6
    assert start["diversity_share"] >= 0.7


@pytest.mark.slow
@pytest.mark.parametrize("axis", QUALITIES)
def test_base_model_draws_mixed_quality(axis: str, start) -> None:
    assert 0.35 <= start[f"mean_{axis}"] <= 0.65
    assert start[f"std_{axis}"] >= 0.15
