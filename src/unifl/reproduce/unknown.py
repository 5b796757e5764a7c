"""Concepts that a critic was never shown: a structure critic of the embedded world trained without some shapes.

UniFL (arXiv 2404.05595, appendix A.3) finds that feedback of a segmentation network of COCO's 80 categories also
improves things that are none of them. Here the critic, and the pictures that feedback is given on, know three of five
shapes, and the pictures that are judged show the other two.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from unifl.feedback import Critic
from unifl.models import Generator, load_generator
from unifl.world.annotated import SceneImages
from unifl.world.assets import PIPELINE, load_critics
from unifl.world.critic_fit import fit_critics
from unifl.world.scenes import Scene, parse, sample_scenes

SHAPES = frozenset({"star", "cross"})
"""What the critic never saw."""
_CRITIC_SEED, _PICTURE_SEED = 32, 9


def names_unknown(prompt: str) -> bool:
    """Whether a prompt names a shape that the critic never saw."""
    return any(thing.shape in SHAPES for thing in parse(prompt).things)


def names_only_unknown(prompt: str) -> bool:
    """Whether a prompt names nothing but shapes that the critic never saw."""
    return all(thing.shape in SHAPES for thing in parse(prompt).things)


class KnownScenes(SceneImages):
    """Good pictures without those shapes, as data of a recipe."""

    def __init__(self) -> None:
        super().__init__(_known_scenes(3000, seed=_PICTURE_SEED, min_quality=0.7))


def critic(folder: str) -> Critic:
    """The structure critic that `fit_critic` wrote, as a critic of a recipe."""
    return load_critics(Path(folder))["structure"]


def fit_critic(folder: Path, *, pictures: int = 4000, steps: int = 700) -> None:
    """Train the critic, as the packaged one is trained but on pictures without those shapes.

    Args:
        folder: Gets `final/`, which `critic` reads; a fit under way goes on.
        pictures: Scenes to train on.
        steps: Training steps of 32 scenes.
    """
    if not (folder / "final" / "trunk.safetensors").is_file():
        scenes = _known_scenes(pictures, seed=_CRITIC_SEED, min_quality=0.0)
        generator = load_generator(PIPELINE, roles=())
        fit_critics(SceneImages(scenes), folder, steps=steps, reencode=lambda x: _again(generator, x))


def _again(generator: Generator, images: Tensor) -> Tensor:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return generator.decode(generator.encode(images))


def _known_scenes(number: int, *, seed: int, min_quality: float) -> list[Scene]:
    several = sample_scenes(4 * number, seed=seed, held_out=False, min_quality=min_quality)
    chosen = [scene for scene in several if not names_unknown(scene.caption)]
    assert len(chosen) >= number
    return chosen[:number]
