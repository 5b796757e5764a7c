"""What is drawn agrees with the masks, the maps and the qualities."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unifl.world.renderer import render
from unifl.world.scenes import COLORS, QUALITIES, SHAPES, parse, place, sample_scenes


def _draw(caption: str, **quality: float) -> torch.Tensor:
    levels = tuple(quality.get(axis, 1.0) for axis in QUALITIES)
    return render([place(parse(caption), np.random.default_rng(0), levels)]).images[0]


def test_masks_maps_and_depth_agree() -> None:
    scenes = sample_scenes(40, seed=5, held_out=False)
    out = render(scenes)
    assert out.images.min() >= 0 and out.images.max() <= 1
    assert (out.masks.sum(1) <= 1).all(), "visible parts must not overlap"
    assert torch.equal(out.masks.any(1), out.semantic > 0)
    for b, scene in enumerate(scenes):
        for i, placed in enumerate(scene.objects):
            mask = out.masks[b, i]
            assert (out.semantic[b][mask] == 1 + SHAPES.index(placed.thing.shape)).all()
            assert (out.depth[b][mask] == i + 1).all()
            assert mask.sum() > 20, "every object must be visible"


def test_centre_of_mass_is_where_the_scene_says() -> None:
    scene = place(parse("a large red square, flat style, white background"), np.random.default_rng(3))
    mask = render([scene]).masks[0, 0].float()
    ys, xs = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    x, y = (xs * mask).sum() / mask.sum() / 64, (ys * mask).sum() / mask.sum() / 64
    assert (x - scene.objects[0].x).abs() < 0.02 and (y - scene.objects[0].y).abs() < 0.02


@pytest.mark.parametrize("color", COLORS)
def test_colour_quality_is_saturation(color: str) -> None:
    caption = f"a large {color} circle, flat style, grey background"

    def saturation(level: float) -> float:
        middle = _draw(caption, color=level)[:, 30:34, 30:34].mean((1, 2))
        return float(middle.max() - middle.min())

    assert saturation(1.0) > saturation(0.5) > saturation(0.0) > 0.05


def test_detail_quality_is_sharpness() -> None:
    caption = "a large red cross, hatched style, white background"
    sharp = [_draw(caption, detail=level).diff(dim=-1).abs().amax() for level in (0.0, 0.5, 1.0)]
    assert sharp[0] < sharp[1] < sharp[2]


def test_lighting_quality_is_contrast_of_light() -> None:
    caption = "a small red circle, flat style, grey background"
    spread = [_draw(caption, lighting=level)[:, :, :8].std() for level in (0.0, 0.5, 1.0)]
    assert spread[0] < spread[1] < spread[2]


def test_styles_differ_inside_the_object() -> None:
    body = ", {} style, white background"
    pictures = {
        s: _draw("a large blue square" + body.format(s), lighting=0.0)  # no shadow behind the outline
        for s in ("flat", "outline", "hatched", "dotted")
    }
    inside = {s: p[:, 24:40, 24:40] for s, p in pictures.items()}
    roughness = {s: float(p.diff(dim=-1).abs().mean()) for s, p in inside.items()}
    assert min(roughness["hatched"], roughness["dotted"]) > 4 * roughness["flat"]
    assert inside["outline"].mean() > inside["flat"].mean() + 0.2
    assert (inside["hatched"] - inside["dotted"]).abs().mean() > 0.05
