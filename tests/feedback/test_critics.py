from __future__ import annotations

import pytest
import torch
from torch import nn

from unifl.data import Sample, collate
from unifl.errors import UserError
from unifl.feedback import Critic, LayoutCritic, StructureCritic, StyleCritic
from unifl.losses.dense import cross_entropy_map, solo_loss

GRID, SIDE, CATEGORIES = 4, 16, 2


class Solo(nn.Module):
    """Reads instances off colours: every cell sees the red (category 0) and green (category 1) of its place."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(10.0))
        self.dropout = nn.Dropout(0.9)

    def forward(self, images):
        cells = nn.functional.adaptive_avg_pool2d(images[:, :CATEGORIES], GRID)
        masks = images[:, :CATEGORIES].amax(1, keepdim=True).expand(-1, GRID * GRID, -1, -1)
        masks = nn.functional.avg_pool2d(masks, 2)
        return self.dropout(self.gain * (cells - 0.9)), self.gain * (masks - 0.5)


class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(10.0))

    def forward(self, images):
        return nn.functional.avg_pool2d(self.gain * images, 2)


class Features(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.0))

    def forward(self, images):
        return [self.gain * images, nn.functional.avg_pool2d(images, 2) ** 2]


def _batch(n: int = 2):
    samples = []
    for index in range(n):
        mask = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
        mask[0, 4:12, 4 : 8 + 4 * index] = True
        image = torch.zeros(3, SIDE, SIDE)
        image[0, mask[0]] = 1.0
        image[2, ~mask[0]] = 1.0
        semantic = torch.where(mask[0], 0, 2)
        samples.append(Sample(image, "a", mask, torch.zeros(1, dtype=torch.long), semantic))
    return collate(samples)


CRITICS = [StructureCritic(Solo()), LayoutCritic(Segmenter()), StyleCritic(Features())]


@pytest.mark.parametrize("critic", CRITICS, ids=lambda critic: critic.name)
def test_gradient_reaches_the_pixels_and_stays_out_of_the_frozen_network(critic):
    batch = _batch()
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).requires_grad_()
    losses = critic(images, batch)
    assert isinstance(critic, Critic) and losses.shape == (2,)
    (gradient,) = torch.autograd.grad(losses.sum(), images)
    assert bool(gradient.flatten(1).norm(dim=1).gt(0).all())
    assert not critic.network.training
    assert all(not parameter.requires_grad for parameter in critic.network.parameters())


@pytest.mark.parametrize("critic", CRITICS, ids=lambda critic: critic.name)
def test_the_real_picture_is_better_than_a_wrong_one(critic):
    batch = _batch()
    wrong = batch.images.flip(0).roll(5, dims=-1) * 0.5
    assert bool((critic(batch.images, batch) < critic(wrong, batch)).all())


@pytest.mark.parametrize("critic", CRITICS, ids=lambda critic: critic.name)
def test_samples_do_not_see_each_other(critic):
    batch = _batch()
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    alone = collate([Sample(i, "a", m, c, s) for i, m, c, s in zip(*_parts(batch), strict=True)][1:])
    assert torch.allclose(critic(images, batch)[1:], critic(images[1:], alone), atol=1e-6)


def _parts(batch):
    return batch.images, batch.masks, batch.labels, batch.semantic


def test_losses_are_those_of_the_papers():
    batch = _batch()
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    categories, masks = CRITICS[0].network(images)
    expected = solo_loss(categories, masks, batch.masks, batch.labels)
    assert torch.equal(CRITICS[0](images, batch), expected)
    large = nn.functional.interpolate(CRITICS[1].network(images), size=(SIDE, SIDE), mode="bilinear")
    assert torch.allclose(CRITICS[1](images, batch), cross_entropy_map(large, batch.semantic))
    assert torch.equal(CRITICS[2](batch.images, batch), torch.zeros(2))


def test_pseudo_annotations_come_from_the_real_picture():
    batch = _batch()
    bare = collate([Sample(image, "a") for image in batch.images])
    for critic in CRITICS[:2]:
        with pytest.raises(UserError, match="gt_source=pseudo"):
            critic(batch.images, bare)
    found = CRITICS[0].pseudo(bare)
    for masks, labels, truth in zip(found.masks, found.labels, batch.masks, strict=True):
        # one object, though four cells report it; its borders may blur, the mask is found at half the size
        assert labels.tolist() == [0] and masks.dtype == torch.bool
        assert float((masks[0] & truth[0]).sum() / (masks[0] | truth[0]).sum()) > 0.7
    assert float((CRITICS[1].pseudo(bare).semantic == batch.semantic).float().mean()) > 0.9
    assert CRITICS[2].pseudo(bare) is bare


def test_no_instance_found_is_no_error():
    critic = StructureCritic(Solo())
    black = collate([Sample(torch.zeros(3, SIDE, SIDE), "nothing")])
    found = critic.pseudo(black)
    assert found.masks[0].shape == (0, SIDE, SIDE) and found.labels[0].shape == (0,)
    assert bool(critic(torch.rand(1, 3, SIDE, SIDE), found).isfinite().all())
