from __future__ import annotations

import pytest
import torch

from unifl.data import Sample, collate
from unifl.errors import UserError


def _sample(n: int, *, size: int = 8, annotated: bool = True) -> Sample:
    masks = torch.zeros(n, size, size, dtype=torch.bool) if annotated else None
    labels = torch.arange(n) if annotated else None
    semantic = torch.zeros(size, size, dtype=torch.long) if annotated else None
    return Sample(torch.rand(3, size, size), f"{n} things", masks, labels, semantic)


def test_collate_keeps_instances_per_picture():
    batch = collate([_sample(2), _sample(0)])
    assert batch.images.shape == (2, 3, 8, 8) and batch.prompts == ["2 things", "0 things"]
    assert [len(masks) for masks in batch.masks] == [2, 0]
    assert batch.semantic.shape == (2, 8, 8) and len(batch) == 2


def test_an_annotation_counts_only_when_all_have_it():
    batch = collate([_sample(2), _sample(1, annotated=False)])
    assert batch.masks is None and batch.labels is None and batch.semantic is None


def test_errors():
    with pytest.raises(UserError, match=r"several sizes .*set `resolution`"):
        collate([_sample(1), _sample(1, size=16)])
    with pytest.raises(UserError, match="no samples"):
        collate([])


def test_replacing_annotations_leaves_the_rest():
    batch = collate([_sample(1)])
    other = batch.with_semantic(torch.ones(1, 8, 8, dtype=torch.long)).to("cpu")
    assert torch.equal(other.images, batch.images) and bool((other.semantic == 1).all())
    assert torch.equal(other.masks[0], batch.masks[0])
