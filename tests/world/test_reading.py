"""A judge's raw outputs are decoded and compared with captions as they should be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unifl.world.judge_fit import judge_loss, targets
from unifl.world.reading import (
    CELL_CHANNELS,
    WHOLE_CHANNELS,
    Found,
    Reading,
    matches,
    read,
    score,
    split_fields,
)
from unifl.world.scenes import BACKGROUNDS, COLORS, SHAPES, SIZES, STYLES, Scene, parse, sample_scenes


def _perfect(scene: Scene) -> Reading:
    found = tuple(Found(p.x, p.y, p.thing.shape, p.thing.color, p.thing.size) for p in scene.objects)
    return Reading(found, scene.description.style, scene.description.background, scene.quality, 1.0)


def _outputs(scenes: list[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs of a judge that knows the scene."""
    truth = targets(scenes)
    cells = torch.zeros(len(scenes), CELL_CHANNELS, 16, 16)
    whole = torch.zeros(len(scenes), WHOLE_CHANNELS)
    cell, total = split_fields(cells, whole)  # views
    cell["object"].copy_(truth["object"] * 20 - 10)
    cell["offset"].copy_(truth["offset"])
    for key, names in (("shape", SHAPES), ("color", COLORS), ("size", SIZES), ("style", STYLES)):
        for k in range(len(names)):
            cell[key][:, k] = 10.0 * (truth[key] == k)
    for k in range(len(BACKGROUNDS)):
        total["background"][:, k] = 10.0 * (truth["background"] == k)
    total["quality"].copy_(torch.logit(truth["quality"][:, :3]))
    cell["detail"].copy_(torch.logit(truth["quality"][:, 3])[:, None, None, None].expand(-1, 1, 16, 16))
    cell["structure"].fill_(10.0)
    return cells, whole


def test_perfect_outputs_are_read_as_the_scene() -> None:
    scenes = sample_scenes(60, seed=8, held_out=False)
    cells, whole = _outputs(scenes)
    readings = read(cells, whole)
    scores = score(readings, [s.caption for s in scenes])
    assert scores["alignment"].mean() == 1 and scores["style"].mean() == 1
    quality = torch.tensor([s.quality for s in scenes])
    assert torch.allclose(scores["quality"], quality.mean(1), atol=1e-4)
    assert judge_loss(cells, whole, targets(scenes), torch.ones(60)) < 0.05


@pytest.mark.parametrize("wrong", ["color", "shape", "size"])
def test_one_wrong_attribute_is_one_wrong_statement(wrong: str) -> None:
    scene = next(s for s in sample_scenes(50, seed=2, held_out=False) if s.description.relation == "left of")
    reading = _perfect(scene)
    values = {"color": COLORS, "shape": SHAPES, "size": SIZES}[wrong]
    first = reading.objects[0]
    other = next(v for v in values if v != getattr(first, wrong))
    changed = replace(reading, objects=(replace(first, **{wrong: other}), *reading.objects[1:]))
    assert matches(reading, scene.description).count(False) == 0
    assert matches(changed, scene.description).count(False) == 1


def test_swapped_places_break_the_relation_only() -> None:
    wanted = parse("a small red circle left of a large blue star, flat style, white background")
    a = Found(0.7, 0.5, "circle", "red", "small")
    b = Found(0.3, 0.5, "star", "blue", "large")
    answers = matches(Reading((a, b), "flat", "white", (1.0,) * 4, 1.0), wanted)
    assert answers.count(False) == 1 and answers[-1] is False


def test_missing_and_extra_objects_break_the_count() -> None:
    wanted = parse("two small red circles, flat style, white background")
    a = Found(0.3, 0.5, "circle", "red", "small")
    assert (
        matches(Reading((a,), "flat", "white", (1.0,) * 4, 1.0), wanted).count(False) == 4
    )  # count and one object
    many = tuple(replace(a, x=0.1 * i) for i in range(9))
    assert matches(Reading(many, "flat", "white", (1.0,) * 4, 1.0), wanted).count(False) == 1
