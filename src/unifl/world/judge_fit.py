"""Training of a judge on rendered, damaged and re-encoded scenes; each judge has its own seed and pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unifl.world.corruption import damage
from unifl.world.dataset import RenderedSet, batch_rows
from unifl.world.fitting import FitConfig, fit
from unifl.world.judges import JudgeName, JudgeNetwork
from unifl.world.reading import GRID, WHOLE_QUALITIES, split_fields
from unifl.world.scenes import BACKGROUNDS, COLORS, QUALITIES, SHAPES, SIZES, STYLES, Scene

SEEDS: dict[str, int] = {"annotator": 101, "validation": 202, "gold": 303}


def targets(scenes: list[Scene]) -> dict[str, Tensor]:
    """What a perfect judge would say: maps on the grid and labels of the whole."""
    number = len(scenes)
    out = {
        "object": torch.zeros(number, 1, GRID, GRID),
        "offset": torch.zeros(number, 2, GRID, GRID),
        **{key: torch.full((number, GRID, GRID), -100) for key in ("shape", "color", "size")},
        "background": torch.tensor([BACKGROUNDS.index(s.description.background) for s in scenes]),
        "quality": torch.tensor([s.quality for s in scenes]),
    }
    out["style"] = torch.full((number, GRID, GRID), -100)
    for b, scene in enumerate(scenes):
        style = STYLES.index(scene.description.style)
        for placed in scene.objects:
            x, y = placed.x * GRID, placed.y * GRID
            j, i = (min(max(int(v), 0), GRID - 1) for v in (x, y))
            out["object"][b, 0, i, j] = 1
            out["offset"][b, :, i, j] = torch.tensor([x - j - 0.5, y - i - 0.5])
            out["shape"][b, i, j] = SHAPES.index(placed.thing.shape)
            out["color"][b, i, j] = COLORS.index(placed.thing.color)
            out["style"][b, i, j] = style
            out["size"][b, i, j] = SIZES.index(placed.thing.size)
    return out


def judge_loss(
    cells: Float[Tensor, "b c g g"], whole: Float[Tensor, "b d"], truth: dict[str, Tensor], structure: Tensor
) -> Float[Tensor, ""]:
    """Sum of detection, attribute, style, background, quality and structure terms."""
    cell, total = split_fields(cells, whole)
    here = truth["object"]
    loss = F.binary_cross_entropy_with_logits(cell["object"], here, pos_weight=torch.tensor(8.0)) * 8
    loss = loss + ((cell["offset"] - truth["offset"]).abs() * here).sum() / here.sum()
    for key in ("shape", "color", "size", "style"):
        loss = loss + F.cross_entropy(cell[key], truth[key])
    loss = loss + F.cross_entropy(total["background"], truth["background"])
    whole_axes = [QUALITIES.index(axis) for axis in WHOLE_QUALITIES]
    loss = loss + 25 * F.mse_loss(total["quality"].sigmoid(), truth["quality"][:, whole_axes])
    detail = truth["quality"][:, QUALITIES.index("detail")]
    for key, label, weight in (("detail", detail, 25), ("structure", structure, 10)):
        error = (cell[key].sigmoid() - label[:, None, None, None]) ** 2
        loss = loss + weight * (error * here).sum() / here.sum()
    return loss


def fit_judge(
    name: JudgeName,
    data: tuple[RenderedSet, RenderedSet],
    scenes: list[Scene],
    folder: Path,
    *,
    steps: int,
    restart: int,
    batch_size: int = 32,
) -> JudgeNetwork:
    """Train one judge.

    Args:
        data: the scenes as drawn and, in the same order, as they come out of the packaged autoencoder: half of
            a batch is taken from each, since the pictures to be judged are decoded ones.
        restart: at this step the learning rate has fallen to nothing and starts again.
    """
    seed = SEEDS[name]
    torch.manual_seed(seed)
    network = JudgeNetwork(name)
    truth = targets(scenes)

    def loss(step: int) -> Tensor:
        rows = batch_rows(len(scenes), batch_size, step, seed)
        parts = np.array_split(rows, len(data))
        rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
        images = torch.cat([pictures.images(part) for pictures, part in zip(data, parts, strict=True)])
        batch = {key: value[rows] for key, value in truth.items()}
        images, batch["quality"], structure = damage(images, batch["quality"], rng)
        cells, whole = network(images)
        return judge_loss(cells, whole, batch, structure)

    fit(network, loss, FitConfig(steps=steps, learning_rate=2e-3, restarts=(restart,)), folder, name=name)
    return network
