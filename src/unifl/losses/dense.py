"""Losses of dense predictions against annotations: categories, masks, semantic maps, instances on a grid.

Letters: b samples, k categories, S cells per side of the grid, N instances of the whole batch, P positive
cells of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from unifl.errors import UserError
from unifl.losses.precision import at_least_float32

MASK_WEIGHT = 3.0
"""The factor lambda of SOLO eq. 1."""


def focal_loss(
    logits: Float[Tensor, "b first *d"],
    targets: Shaped[Tensor, "b first *d"],
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Float[Tensor, " b"]:
    """Binary cross-entropy that plays down what is already right: -alpha_y (1 - p_y)^gamma log p_y.

    Args:
        logits: before the sigmoid.
        targets: 0 or 1 (any dtype), same shape.
        alpha: weight of the positives; negatives get 1 - alpha.
        gamma: 0 gives the weighted binary cross-entropy.

    Returns:
        Per sample, the sum over all entries divided by the number of positives (by 1 where there are none).

    Reference:
        Lin et al., arXiv 1708.02002, eq. 5 and the normalisation of section 4.1.
    """
    positive = targets > 0.5
    margin = torch.where(positive, at_least_float32(logits), -at_least_float32(logits))  # logit of p_y
    # (1 - p_y)^gamma in logs, so that the gradient stays finite at confident entries for every gamma
    modulation = torch.exp(gamma * F.logsigmoid(-margin))
    weight = torch.where(positive, alpha, 1 - alpha)
    entries = weight * modulation * F.softplus(-margin)
    count = positive.flatten(1).sum(1).clamp(min=1)
    return entries.flatten(1).sum(1) / count


def dice_loss(probs: Float[Tensor, "b first *d"], masks: Shaped[Tensor, "b first *d"]) -> Float[Tensor, " b"]:
    """1 - 2 sum(p q) / (sum p^2 + sum q^2), per sample over all other dimensions.

    Args:
        probs: predicted masks in [0, 1].
        masks: true masks: bool, 0 and 1, or the covered share of each pixel.

    Returns:
        Values in [0, 1]; 0 for equal masks (also where both are empty), 1 for disjoint ones.

    Reference:
        SOLO, arXiv 1912.04488, eq. 3 and 4.
    """
    p = at_least_float32(probs).flatten(1)
    q = masks.to(p.dtype).flatten(1)
    tiny = 1e-6  # makes two empty masks equal instead of undefined
    return 1 - (2 * (p * q).sum(1) + tiny) / (p.square().sum(1) + q.square().sum(1) + tiny)


def cross_entropy_map(
    logits: Float[Tensor, "b k h w"], target: Int[Tensor, "b h w"], *, ignore_index: int = 255
) -> Float[Tensor, " b"]:
    """Cross-entropy of a semantic map, mean over the pixels that carry a label.

    Args:
        logits: one channel per category.
        target: category of each pixel, 0 to k - 1, or `ignore_index`.
        ignore_index: label of pixels that do not count (255 in COCO-Stuff).

    Returns:
        One value per sample; 0 where no pixel carries a label.
    """
    entries = F.cross_entropy(
        at_least_float32(logits), target.long(), ignore_index=ignore_index, reduction="none"
    )
    count = (target != ignore_index).sum((1, 2)).clamp(min=1)
    return entries.sum((1, 2)) / count


@dataclass(frozen=True)
class GridTargets:
    """Which cell of the grid stands for which instance."""

    category: Bool[Tensor, "b k S S"]
    """True where the cell of row i, column j stands for an instance of that category."""
    cells: Int[Tensor, "P 3"]
    """(sample, row, column) of every positive cell."""
    instance: Int[Tensor, " P"]
    """Its instance, counted over the batch in the order given."""


def assign_cells(
    masks: Sequence[Bool[Tensor, "_ H W"]],
    labels: Sequence[Int[Tensor, " _"]],
    *,
    num_categories: int,
    grid_size: int,
    center_scale: float = 0.2,
) -> GridTargets:
    """Gives each instance the grid cells around its centre of mass.

    The centre region is the instance's bounding box shrunk by `center_scale` and moved to the centre of mass.
    Every cell that it touches becomes positive, the centre's own always among them, but none further than one
    from that. Where two instances claim a cell, the smaller one gets it. Empty masks are left out.

    Args:
        masks: per picture (n, H, W), n >= 0; the same H and W for the whole batch.
        labels: per picture (n,), categories 0 to k - 1.
        num_categories: k.
        grid_size: S.
        center_scale: side of the centre region relative to the box, above 0.

    Raises:
        UserError: when a picture has another number of labels than of masks.

    Reference:
        SOLO, arXiv 1912.04488, "label assignment", here on one level of scale.
    """
    for number, (m, c) in enumerate(zip(masks, labels, strict=True)):
        if len(m) != len(c):
            raise UserError(
                f"picture {number} of the batch has {len(m)} masks and {len(c)} labels; give as many of both"
            )
    everything, categories = torch.cat(list(masks)), torch.cat(list(labels)).long()
    device = everything.device
    picture = torch.repeat_interleave(torch.tensor([len(m) for m in masks], device=device))

    claimed = _claimed_cells(everything, grid_size, center_scale)  # (N, S, S)
    cells, instance = _settle_claims(claimed, everything.sum((1, 2)), picture, len(masks))
    sample, row, column = cells.unbind(1)
    category = torch.zeros(len(masks), num_categories, grid_size, grid_size, dtype=torch.bool, device=device)
    category[sample, categories[instance], row, column] = True
    return GridTargets(category, cells, instance)


def _settle_claims(
    claimed: Bool[Tensor, "N S S"], area: Int[Tensor, " N"], picture: Int[Tensor, " N"], num_pictures: int
) -> tuple[Int[Tensor, "P 3"], Int[Tensor, " P"]]:
    """One owner per cell, the smallest of the instances that claim it: (cells, instance of each)."""
    by_area = torch.argsort(area, descending=True, stable=True)
    rank = torch.empty_like(area)
    rank[by_area] = torch.arange(1, len(area) + 1, device=area.device)  # the smallest has the highest rank
    owner = torch.zeros(num_pictures, *claimed.shape[1:], dtype=torch.long, device=area.device)
    owner.scatter_reduce_(0, picture[:, None, None].expand_as(claimed), claimed * rank[:, None, None], "amax")
    cells = owner.nonzero()
    return cells, by_area[owner[cells.unbind(1)] - 1]


def _claimed_cells(
    masks: Bool[Tensor, "N H W"], grid_size: int, center_scale: float
) -> Bool[Tensor, "N S S"]:
    """The cells that each instance would take if it were alone."""
    rows = _claimed_along(masks.sum(2), grid_size, center_scale)
    columns = _claimed_along(masks.sum(1), grid_size, center_scale)
    return rows[:, :, None] & columns[:, None, :] & masks.any(2).any(1)[:, None, None]


def _claimed_along(profile: Int[Tensor, "N L"], grid_size: int, center_scale: float) -> Bool[Tensor, "N S"]:
    """One axis of the centre region: `profile` counts the pixels of each mask at each of L positions."""
    length = profile.shape[1]
    position = torch.arange(length, device=profile.device) + 0.5  # pixel centres, in pixels
    center = (profile * position).sum(1) / profile.sum(1).clamp(min=1)
    inside = profile > 0
    first, last = inside.int().argmax(1), length - 1 - inside.flip(1).int().argmax(1)
    half = center_scale * (last - first + 1) / 2
    cells_per_pixel = grid_size / length
    cell = torch.arange(grid_size, device=profile.device)
    own = (center * cells_per_pixel).floor()[:, None]
    low = ((center - half) * cells_per_pixel)[:, None]
    high = ((center + half) * cells_per_pixel)[:, None]
    return (cell + 1 > low) & (cell < high) & ((cell - own).abs() <= 1)


def solo_loss(
    category_logits: Float[Tensor, "b k S S"],
    mask_logits: Float[Tensor, "b cells h w"],
    masks: Sequence[Bool[Tensor, "_ H W"]],
    labels: Sequence[Int[Tensor, " _"]],
) -> Float[Tensor, " b"]:
    """Dense instance segmentation loss: focal loss of the categories + 3 * Dice loss of the masks.

    Args:
        category_logits: categories of each cell of the S x S grid; background is no category.
        mask_logits: channel i S + j is the mask of the instance at row i, column j; h and w may be smaller
            than H and W, the annotation is then averaged down to them.
        masks: per picture (n, H, W); n may be 0.
        labels: per picture (n,), categories 0 to k - 1.

    Returns:
        Per sample: the focal sum over the number of its positive cells, plus 3 times the mean Dice loss over
        those cells (0 where the picture holds no instance).

    Reference:
        SOLO, arXiv 1912.04488, eq. 1 and 2 with lambda = 3 and the Dice loss.
    """
    batch, num_categories, grid_size, _ = category_logits.shape
    assert mask_logits.shape[1] == grid_size**2, "mask_logits needs one channel per cell"
    targets = assign_cells(masks, labels, num_categories=num_categories, grid_size=grid_size)
    focal = focal_loss(category_logits, targets.category)

    sample, row, column = targets.cells.unbind(1)
    predicted = torch.sigmoid(at_least_float32(mask_logits[sample, row * grid_size + column]))  # (P, h, w)
    annotated = torch.cat(list(masks)).to(predicted.dtype)  # (N, H, W)
    height, width = mask_logits.shape[2:]
    dice = dice_loss(predicted, F.adaptive_avg_pool2d(annotated, (height, width))[targets.instance])
    positives = torch.bincount(sample, minlength=batch).clamp(min=1)
    mean_dice = dice.new_zeros(batch).index_add(0, sample, dice) / positives
    return focal + MASK_WEIGHT * mean_dice
