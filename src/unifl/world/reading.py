"""From a judge's raw outputs to what it read, and from that to scores against a caption.

A judge sees a picture as a grid of cells: is the centre of an object here, which one, drawn in what style, how
sharp and how well formed; and as a whole: background, color, layout and lighting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from unifl.world.scenes import BACKGROUNDS, COLORS, QUALITIES, SHAPES, SIZES, STYLES, Description, parse

GRID = 16
_CELL_FIELDS = {
    "object": 1,
    "offset": 2,
    "shape": len(SHAPES),
    "color": len(COLORS),
    "size": len(SIZES),
    "style": len(STYLES),
    "detail": 1,
    "structure": 1,
}
WHOLE_QUALITIES = tuple(axis for axis in QUALITIES if axis != "detail")  # sharpness is read at the objects
_WHOLE_FIELDS = {"background": len(BACKGROUNDS), "quality": len(WHOLE_QUALITIES)}
CELL_CHANNELS = sum(_CELL_FIELDS.values())
WHOLE_CHANNELS = sum(_WHOLE_FIELDS.values())
_THRESHOLD = 0.4
_MARGIN = 0.03  # a relation needs the centres to differ by this part of the picture's side


def split_fields(
    cells: Float[Tensor, "b c g g"], whole: Float[Tensor, "b d"]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Name the channels of a judge's outputs."""
    cell = dict(zip(_CELL_FIELDS, cells.split(list(_CELL_FIELDS.values()), dim=1), strict=True))
    return cell, dict(zip(_WHOLE_FIELDS, whole.split(list(_WHOLE_FIELDS.values()), dim=1), strict=True))


@dataclass(frozen=True)
class Found:
    """One object as it was read; x and y are in units of the picture's side."""

    x: float
    y: float
    shape: str
    color: str
    size: str


@dataclass(frozen=True)
class Reading:
    """Everything read from one picture; qualities and structure are in [0, 1]."""

    objects: tuple[Found, ...]
    style: str
    background: str
    quality: tuple[float, ...]
    structure: float


def read(cells: Float[Tensor, "b c g g"], whole: Float[Tensor, "b d"]) -> list[Reading]:
    """Decode a batch: local maxima of the object map, then the fields at these cells."""
    cell, total = split_fields(cells, whole)
    heat = cell["object"].sigmoid()
    # An even window would shift peaks; 3 x 3 keeps one peak per object (they lie at least 4 cells apart).
    peaks = (heat == F.max_pool2d(heat, 3, stride=1, padding=1)) & (heat > _THRESHOLD)
    style = _at_objects(cell["style"], heat, peaks).argmax(1).tolist()
    detail = _at_objects(cell["detail"].sigmoid(), heat, peaks)[:, 0].tolist()
    structure = _at_objects(cell["structure"].sigmoid(), heat, peaks)[:, 0].tolist()
    background, quality = total["background"].argmax(1).tolist(), total["quality"].sigmoid().tolist()
    readings = []
    for b in range(len(cells)):
        objects = tuple(_found(cell, b, int(i), int(j)) for i, j in peaks[b, 0].nonzero())
        levels = dict(zip(WHOLE_QUALITIES, quality[b], strict=True)) | {"detail": detail[b]}
        ordered = tuple(levels[axis] for axis in QUALITIES)
        readings.append(Reading(objects, STYLES[style[b]], BACKGROUNDS[background[b]], ordered, structure[b]))
    return readings


def _at_objects(
    values: Float[Tensor, "b k g g"], heat: Float[Tensor, "b 1 g g"], peaks: Bool[Tensor, "b 1 g g"]
) -> Float[Tensor, "b k"]:
    """Mean over the objects that were found; where there are none, over the likeliest cells."""
    found = peaks.flatten(1).any(1)[:, None, None, None]
    weight = torch.where(found, heat * peaks, heat**4)
    return (values * weight).sum((2, 3)) / weight.sum((2, 3)).clamp(min=1e-8)


def _found(cell: dict[str, Tensor], b: int, i: int, j: int) -> Found:
    dx, dy = cell["offset"][b, :, i, j].tolist()
    name = {key: int(cell[key][b, :, i, j].argmax()) for key in ("shape", "color", "size")}
    x, y = (j + 0.5 + dx) / GRID, (i + 0.5 + dy) / GRID
    return Found(x, y, SHAPES[name["shape"]], COLORS[name["color"]], SIZES[name["size"]])


def matches(reading: Reading, wanted: Description) -> list[bool]:
    """One answer per statement of the caption: count, background, three per object, the relation.

    Objects are assigned to each other in the way that satisfies most statements.  The style is judged apart.
    """
    count = len(reading.objects) == len(wanted.things)
    background = reading.background == wanted.background
    number = len(wanted.things)
    nothing = [False] * (3 * number + (wanted.relation not in (None, "count")))
    # Clutter must not cost n! time: no picture with more than six finds can be right.
    found = reading.objects[:6]
    padded: list[Found | None] = [*found, *([None] * max(0, number - len(found)))]
    options = (_agreement(chosen, wanted) for chosen in permutations(padded, number))
    best = max(options, key=sum, default=nothing)
    return [count, background, *best]


def _agreement(chosen: Sequence[Found | None], wanted: Description) -> list[bool]:
    answers: list[bool] = []
    for found, thing in zip(chosen, wanted.things, strict=True):
        for field in ("shape", "color", "size"):
            answers.append(found is not None and getattr(found, field) == getattr(thing, field))
    if wanted.relation not in (None, "count"):
        answers.append(_relation_holds(chosen, str(wanted.relation)))
    return answers


def _relation_holds(chosen: Sequence[Found | None], relation: str) -> bool:
    if any(found is None for found in chosen):
        return False
    places = [found for found in chosen if found is not None]
    axis = "x" if relation in ("left of", "right of", "row") else "y"
    values = [getattr(found, axis) for found in places]
    if relation in ("right of", "below"):
        values = values[::-1]
    return all(later - earlier > _MARGIN for earlier, later in pairwise(values))


def score(readings: Sequence[Reading], prompts: Sequence[str]) -> dict[str, Float[Tensor, " b"]]:
    """Scores of pictures against their captions, each in [0, 1] and higher is better.

    Returns:
        alignment (every statement holds), alignment_fraction, structure, style (the style is recognised),
        color, layout, lighting, detail, and quality, the mean of these four.
    """
    rows = []
    for reading, prompt in zip(readings, prompts, strict=True):
        wanted = parse(prompt)
        answers = matches(reading, wanted)
        row = {
            "alignment": float(all(answers)),
            "alignment_fraction": sum(answers) / len(answers),
            "structure": reading.structure,
            "style": float(reading.style == wanted.style),
            **dict(zip(QUALITIES, reading.quality, strict=True)),
            "quality": sum(reading.quality) / len(QUALITIES),
        }
        rows.append(row)
    return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}
