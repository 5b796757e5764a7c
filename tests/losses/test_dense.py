from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from unifl.errors import UserError
from unifl.losses.dense import assign_cells, cross_entropy_map, dice_loss, focal_loss, solo_loss


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rectangle(top: int, bottom: int, left: int, right: int, size: int = 64) -> torch.Tensor:
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


# focal


def test_focal_against_numpy():
    logits, targets = randn(2, 3, 4), randn(2, 3, 4, seed=1) > 0.8
    p, y = 1 / (1 + np.exp(-logits.numpy())), targets.numpy()
    entries = np.where(y, -0.25 * (1 - p) ** 2 * np.log(p), -0.75 * p**2 * np.log(1 - p))
    expected = entries.sum((1, 2)) / np.maximum(y.sum((1, 2)), 1)
    np.testing.assert_allclose(focal_loss(logits, targets).numpy(), expected, rtol=1e-10)


def test_focal_without_focus_is_weighted_cross_entropy():
    logits, targets = randn(2, 5), torch.tensor([[1, 0, 0, 1, 0], [0, 0, 1, 0, 0]])
    weight = torch.where(targets > 0, 0.3, 0.7)
    expected = F.binary_cross_entropy_with_logits(logits, targets.double(), weight=weight, reduction="none")
    loss = focal_loss(logits, targets, alpha=0.3, gamma=0.0)
    torch.testing.assert_close(loss, expected.sum(1) / targets.sum(1))


def test_focal_of_pure_background_is_divided_by_one():
    logits = torch.zeros(1, 4)
    expected = 4 * 0.75 * 0.25 * np.log(2)
    assert focal_loss(logits, torch.zeros(1, 4)).item() == pytest.approx(expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_gradient_is_right_and_finite_at_the_extremes(gamma):
    targets = torch.tensor([[1, 0, 1, 0]])
    logits = randn(1, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, targets, gamma=gamma), (logits,))
    extreme = torch.tensor([[200.0, -200.0, -200.0, 200.0]], requires_grad=True)
    loss = focal_loss(extreme, targets, gamma=gamma)
    (slope,) = torch.autograd.grad(loss.sum(), extreme)
    assert slope[0, :2].tolist() == [0, 0]
    assert slope[0, 2:].tolist() == pytest.approx([-0.125, 0.375])


# dice


def test_dice_against_numpy():
    p, q = torch.sigmoid(randn(3, 4, 4)), randn(3, 4, 4, seed=1) > 0
    pn, qn = p.numpy(), q.numpy().astype(float)
    expected = 1 - 2 * (pn * qn).sum((1, 2)) / ((pn**2).sum((1, 2)) + (qn**2).sum((1, 2)))
    np.testing.assert_allclose(dice_loss(p, q).numpy(), expected, rtol=1e-6)


def test_dice_extremes():
    mask = rectangle(2, 5, 1, 7, size=8)[None]
    assert dice_loss(mask.double(), mask).item() == 0
    assert dice_loss((~mask).double(), mask).item() == pytest.approx(1, abs=1e-6)
    empty = torch.zeros(1, 8, 8)
    assert dice_loss(empty, empty).item() == 0
    share = torch.rand(1, 8, 8)
    assert dice_loss(share, share).item() == pytest.approx(0, abs=1e-6)  # soft annotations too


def test_dice_gradient():
    logits, mask = randn(2, 3, 3).requires_grad_(), randn(2, 3, 3, seed=1) > 0
    assert torch.autograd.gradcheck(lambda x: dice_loss(torch.sigmoid(x), mask), (logits,))


# semantic map


def test_cross_entropy_map_against_numpy_with_ignored_pixels():
    logits, target = randn(2, 3, 2, 2), torch.tensor([[[0, 1], [2, 255]], [[255, 255], [255, 1]]])
    log_p = logits.numpy() - np.log(np.exp(logits.numpy()).sum(1, keepdims=True))
    first = -(log_p[0, 0, 0, 0] + log_p[0, 1, 0, 1] + log_p[0, 2, 1, 0]) / 3
    np.testing.assert_allclose(
        cross_entropy_map(logits, target).numpy(), [first, -log_p[1, 1, 1, 1]], rtol=1e-10
    )


def test_cross_entropy_map_without_labels_is_zero_and_uniform_logits_cost_log_k():
    target = torch.full((1, 2, 2), 255)
    assert cross_entropy_map(randn(1, 3, 2, 2), target).item() == 0
    assert cross_entropy_map(torch.zeros(1, 5, 2, 2), target * 0).item() == pytest.approx(np.log(5))


# assignment of grid cells


def cells_of(mask: torch.Tensor, grid_size: int = 8) -> set[tuple[int, int]]:
    targets = assign_cells([mask[None]], [torch.tensor([0])], num_categories=1, grid_size=grid_size)
    return {(i, j) for _, i, j in targets.cells.tolist()}


def test_a_small_object_takes_the_cell_of_its_centre():
    assert cells_of(rectangle(9, 15, 33, 39)) == {(1, 4)}  # centre 12, 36 in cells of 8 pixels
    assert cells_of(rectangle(0, 1, 63, 64)) == {(0, 7)}


def test_the_centre_region_takes_every_cell_that_it_touches():
    # 20 x 20 around (24, 32): region of 4 pixels, 22..26 and 30..34, across two borders
    assert cells_of(rectangle(14, 34, 22, 42)) == {(2, 3), (2, 4), (3, 3), (3, 4)}
    # 20 x 10 around (20, 32): rows 18..22 stay in cell 2, columns 31..33 cross a border
    assert cells_of(rectangle(10, 30, 27, 37)) == {(2, 3), (2, 4)}


def test_large_objects_take_at_most_three_by_three_cells():
    full = torch.ones(64, 64, dtype=torch.bool)
    assert cells_of(full, grid_size=16) == {(i, j) for i in (7, 8, 9) for j in (7, 8, 9)}


def test_the_centre_is_the_centre_of_mass_and_not_of_the_box():
    mask = rectangle(0, 16, 0, 16)
    mask[0, 16:64] = True  # a thin tail makes the box wide, the mass stays left
    columns = np.concatenate([np.repeat(np.arange(16) + 0.5, 16), np.arange(16, 64) + 0.5])
    center, half = columns.mean(), 0.1 * 64
    expected = {j for j in range(8) if j * 8 < center + half and (j + 1) * 8 > center - half}
    assert {j for _, j in cells_of(mask)} == expected
    assert 4 not in expected  # where the box has its centre


def test_the_smaller_instance_gets_a_shared_cell_and_categories_follow():
    large, small = rectangle(0, 64, 0, 64), rectangle(26, 30, 26, 30)
    for order in ([0, 1], [1, 0]):
        masks = torch.stack([large, small])[order]
        labels = torch.tensor([2, 1])[order]
        targets = assign_cells([masks], [labels], num_categories=3, grid_size=8)
        owner = dict(zip(map(tuple, targets.cells.tolist()), targets.instance.tolist(), strict=True))
        assert owner[0, 3, 3] == order.index(1)
        assert targets.category[0, 1].nonzero().tolist() == [[3, 3]]
        assert owner[0, 4, 4] == order.index(0) and targets.category[0, 2, 4, 4]
        assert (targets.category.sum(1) <= 1).all()


def test_instances_are_counted_over_the_batch_and_empty_ones_left_out():
    none = torch.zeros(0, 64, 64, dtype=torch.bool)
    second = torch.stack([torch.zeros(64, 64, dtype=torch.bool), rectangle(9, 15, 33, 39)])
    targets = assign_cells(
        [none, second],
        [torch.zeros(0, dtype=torch.long), torch.tensor([0, 1])],
        num_categories=2,
        grid_size=8,
    )
    assert targets.cells.tolist() == [[1, 1, 4]] and targets.instance.tolist() == [1]
    assert targets.category.nonzero().tolist() == [[1, 1, 1, 4]]


def test_a_missing_label_is_named():
    with pytest.raises(UserError, match="picture 0 of the batch has 2 masks and 1 labels"):
        assign_cells(
            [torch.ones(2, 8, 8, dtype=torch.bool)], [torch.tensor([0])], num_categories=1, grid_size=2
        )


# SOLO


def scene() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    masks = [
        torch.stack([rectangle(4, 20, 4, 20), rectangle(32, 60, 28, 56)]),
        rectangle(8, 40, 16, 32)[None],
    ]
    return masks, [torch.tensor([0, 2]), torch.tensor([1])]


def perfect_logits(masks, labels, grid_size: int, resolution: int) -> tuple[torch.Tensor, torch.Tensor]:
    targets = assign_cells(masks, labels, num_categories=3, grid_size=grid_size)
    category = torch.where(targets.category, 40.0, -40.0)
    mask_logits = torch.full((2, grid_size**2, resolution, resolution), -40.0)
    small = F.max_pool2d(torch.cat(masks).float(), 64 // resolution)
    for (b, i, j), instance in zip(targets.cells.tolist(), targets.instance.tolist(), strict=True):
        mask_logits[b, i * grid_size + j] = 80 * small[instance] - 40
    return category, mask_logits


@pytest.mark.parametrize("grid_size", [8, 16])
def test_solo_loss_of_a_perfect_detection_is_zero(grid_size):
    masks, labels = scene()  # all edges are multiples of 4, so 16 x 16 masks are exact
    loss = solo_loss(*perfect_logits(masks, labels, grid_size, 16), masks, labels)
    assert loss.shape == (2,) and loss.abs().max() < 1e-5


def test_solo_loss_is_focal_plus_three_dice_of_the_positive_cells():
    masks, labels = scene()
    category, mask_logits = randn(2, 3, 8, 8), randn(2, 64, 16, 16, seed=1)
    targets = assign_cells(masks, labels, num_categories=3, grid_size=8)
    focal = focal_loss(category, targets.category)
    probs, everything = torch.sigmoid(mask_logits).numpy(), torch.cat(masks).numpy()
    blocks = everything.reshape(3, 16, 4, 16, 4).mean((2, 4))
    for b in range(2):
        dice = []
        for (sample, i, j), n in zip(targets.cells.tolist(), targets.instance.tolist(), strict=True):
            if sample == b:
                p, q = probs[b, i * 8 + j], blocks[n]
                dice.append(1 - 2 * (p * q).sum() / ((p**2).sum() + (q**2).sum()))
        assert len(dice) > 1
        loss = solo_loss(category, mask_logits, masks, labels)[b].item()
        assert loss == pytest.approx(focal[b].item() + 3 * np.mean(dice), rel=1e-6)


def test_solo_loss_does_not_depend_on_the_rest_of_the_batch():
    masks, labels = scene()
    category, mask_logits = randn(2, 3, 8, 8), randn(2, 64, 16, 16, seed=1)
    together = solo_loss(category, mask_logits, masks, labels)
    for b in range(2):
        alone = solo_loss(category[b : b + 1], mask_logits[b : b + 1], masks[b : b + 1], labels[b : b + 1])
        torch.testing.assert_close(alone, together[b : b + 1])


def test_solo_loss_of_an_empty_picture_is_its_background():
    none, no_label = torch.zeros(0, 64, 64, dtype=torch.bool), torch.zeros(0, dtype=torch.long)
    category, mask_logits = randn(1, 3, 8, 8), randn(1, 64, 16, 16).requires_grad_()
    loss = solo_loss(category, mask_logits, [none], [no_label])
    torch.testing.assert_close(loss, focal_loss(category, torch.zeros_like(category)))


def test_solo_gradient_reaches_categories_everywhere_and_masks_at_positive_cells():
    masks, labels = scene()
    category, mask_logits = randn(2, 3, 4, 4).requires_grad_(), randn(2, 16, 4, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda c, m: solo_loss(c, m, masks, labels), (category, mask_logits))
    slopes = torch.autograd.grad(
        solo_loss(category, mask_logits, masks, labels).sum(), (category, mask_logits)
    )
    assert (slopes[0] != 0).all()
    targets = assign_cells(masks, labels, num_categories=3, grid_size=4)
    touched = torch.zeros(2, 16, dtype=torch.bool)
    touched[targets.cells[:, 0], targets.cells[:, 1] * 4 + targets.cells[:, 2]] = True
    assert torch.equal(slopes[1].abs().sum((2, 3)) > 0, touched)


def test_half_precision_detections_are_judged_in_float32():
    masks, labels = scene()
    loss = solo_loss(torch.zeros(2, 3, 8, 8).bfloat16(), torch.zeros(2, 64, 16, 16).bfloat16(), masks, labels)
    assert loss.dtype == torch.float32 and loss.isfinite().all()
