"""Each critic on a tiny checkpoint of its architecture, and pictures for it."""

from __future__ import annotations

import pytest
import torch

from unifl.data import Sample, collate
from unifl.feedback import (
    DepthConfig,
    EdgesConfig,
    InstancesConfig,
    SemanticConfig,
    StyleConfig,
    open_critic,
)

SIDE = 64

CASES = {
    "mask2former": (InstancesConfig, {}),
    "mask2former-queries": (InstancesConfig, {"reading": "queries"}),
    "maskformer": (InstancesConfig, {}),
    "segformer": (SemanticConfig, {}),
    "upernet": (SemanticConfig, {}),
    "deeplab": (SemanticConfig, {}),
    "dpt_semantic": (SemanticConfig, {}),
    "beit": (SemanticConfig, {}),
    "dpt": (DepthConfig, {}),
    "depth_anything": (DepthConfig, {}),
    "glpn": (DepthConfig, {}),
    "edges": (EdgesConfig, {}),
    "vgg16": (StyleConfig, {}),
    "resnet": (StyleConfig, {"network": "backbone"}),
    "convnext": (StyleConfig, {"network": "backbone"}),
    "swin": (StyleConfig, {"network": "backbone", "layers": ["stage1", "stage2"]}),
    "dinov2": (StyleConfig, {"network": "backbone", "layers": ["stage2", "stage4"]}),
}
# one of each kind, where the sort of network does not count
KINDS = ["mask2former", "segformer", "dpt", "edges", "vgg16"]
# every case, those of a kind that is there already in the slow tier
THOROUGH = [case if case in KINDS else pytest.param(case, marks=pytest.mark.slow) for case in CASES]


def opened(case, checkpoint, **changes):
    cls, settings = CASES[case]
    if cls is not EdgesConfig:
        settings = settings | {"model": checkpoint(case.partition("-")[0])} | changes
    return open_critic(cls(**settings), name=case)


def batch_of(n=2, side=SIDE, seed=0):
    """Pictures of a bright rectangle on a gradient, with its mask and its map."""
    draw = torch.Generator().manual_seed(seed)
    samples = []
    for index in range(n):
        mask = torch.zeros(1, side, side, dtype=torch.bool)
        mask[0, side // 4 : side // 2 + 8 * index, side // 4 : 3 * side // 4] = True
        image = torch.linspace(0, 0.5, side).expand(3, side, side) + 0.1 * torch.rand(
            3, side, side, generator=draw
        )
        image = torch.where(mask, image + torch.tensor([0.4, 0.1, 0.0]).view(3, 1, 1), image)
        semantic = torch.where(mask[0], 1 + index, 0)
        semantic[:4] = 255
        samples.append(Sample(image, "a", mask, torch.tensor([1 + index]), semantic))
    return collate(samples)


def start(batch):
    """What is optimised: the same pictures, spoilt."""
    noise = torch.rand(batch.images.shape, generator=torch.Generator().manual_seed(1))
    return (0.5 * batch.images.flip(-1) + 0.5 * noise).requires_grad_()
