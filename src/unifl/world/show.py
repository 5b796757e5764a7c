"""`unifl world show`: sample scenes with captions and qualities as one picture."""

from __future__ import annotations

import numpy as np
from PIL import Image

from unifl.evaluation.grid import picture_grid, to_pil
from unifl.world.renderer import render
from unifl.world.scenes import QUALITIES, STYLES, Scene, parse, place, sample_scenes


def show_scenes(*, number: int = 24, seed: int = 0, held_out: bool = False, scale: int = 3) -> Image.Image:
    """Random scenes, two in a row, each beside its caption and its four qualities."""
    scenes = sample_scenes(number, seed=seed, held_out=held_out)
    images = render(scenes).images
    return picture_grid(
        [[image] for image in images],
        rows=[_words(scene) for scene in scenes],
        scale=scale,
        caption_width=420,
    )


def show_qualities(
    caption: str = "a large red star left of a small blue cross, hatched style, white background",
) -> Image.Image:
    """What each quality means: a row per quality, from 0 at the left to 1 at the right."""
    wanted, levels = parse(caption), (0.0, 0.25, 0.5, 0.75, 1.0)
    rows = []
    for axis in QUALITIES:
        scenes = [
            place(wanted, np.random.default_rng(1), tuple(level if q == axis else 1.0 for q in QUALITIES))
            for level in levels
        ]
        rows.append([to_pil(image) for image in render(scenes).images])
    return picture_grid(
        rows, rows=list(QUALITIES), columns=[f"{level:g}" for level in levels], caption_width=90
    )


def show_styles(
    caption: str = "a large green triangle above a small purple circle, flat style, grey background",
) -> Image.Image:
    """One scene in every style."""
    scenes = [
        place(parse(caption.replace("flat", style)), np.random.default_rng(2), (0.9,) * 4) for style in STYLES
    ]
    return picture_grid([[to_pil(image) for image in render(scenes).images]], columns=list(STYLES))


def _words(scene: Scene) -> str:
    qualities = ", ".join(f"{axis} {value:.2f}" for axis, value in zip(QUALITIES, scene.quality, strict=True))
    return f"{scene.caption}  ({qualities})"
