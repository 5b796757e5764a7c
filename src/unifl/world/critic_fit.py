"""Training of the packaged critics: SOLO, semantic segmentation and style features on one shared trunk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unifl.data import collate
from unifl.feedback.networks import SegmentationNetwork, SharedTrunk, SoloNetwork, StyleNetwork, save_family
from unifl.losses.dense import cross_entropy_map, solo_loss
from unifl.world.annotated import SceneImages
from unifl.world.corruption import photometric
from unifl.world.dataset import batch_rows
from unifl.world.fitting import FitConfig, fit
from unifl.world.scenes import SHAPES, STYLES

_SEED = 31
NUM_CLASSES = len(SHAPES)


def critic_networks(trunk: SharedTrunk) -> dict[str, nn.Module]:
    """The heads of the family around one trunk, untrained."""
    return {
        "solo": SoloNetwork(trunk, NUM_CLASSES),
        "semantic": SegmentationNetwork(trunk, NUM_CLASSES + 1),
        "style": StyleNetwork(trunk, len(STYLES)),
    }


def fit_critics(
    data: SceneImages, folder: Path, *, steps: int, batch_size: int = 32, reencode: Callable[[Tensor], Tensor]
) -> dict[str, nn.Module]:
    """Train all heads together on clean, re-encoded and photometrically damaged scenes."""
    torch.manual_seed(_SEED)
    trunk = SharedTrunk()
    networks = nn.ModuleDict(critic_networks(trunk))
    style = networks["style"]
    assert isinstance(style, StyleNetwork)
    styles = torch.tensor([STYLES.index(s.description.style) for s in data.scenes])

    def loss(step: int) -> Tensor:
        rows = batch_rows(len(data), batch_size, step, _SEED)
        batch = collate([data[int(row)] for row in rows])
        assert batch.masks is not None and batch.labels is not None and batch.semantic is not None
        some = batch_size // 4
        images = torch.cat([reencode(batch.images[:some]), batch.images[some:]])
        rng = torch.Generator().manual_seed(_SEED * 1_000_003 + step)
        images, _ = photometric(images, torch.ones(batch_size, 4), rng)
        categories, masks = networks["solo"](images)
        total = solo_loss(categories, masks, batch.masks, batch.labels).mean()
        logits = F.interpolate(networks["semantic"](images), scale_factor=2.0, mode="bilinear")
        total = total + cross_entropy_map(logits, batch.semantic).mean()
        return total + F.cross_entropy(style.classify(images), styles[rows])

    fit(networks, loss, FitConfig(steps=steps, learning_rate=1.5e-3), folder, name="critics")
    save_family(trunk, dict(networks), folder / "final")
    return dict(networks)
