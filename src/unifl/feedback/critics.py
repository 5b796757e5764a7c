"""Critics around frozen perception networks: instances (structure), class maps (layout), Gram matrices (style).

The networks stay in eval mode and their parameters frozen, while their *training* losses are computed; gradients
go through them to the pixels (UniFL, arXiv 2404.05595, section 4.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

from unifl.data import Batch
from unifl.errors import UserError
from unifl.feedback.by_picture import by_picture
from unifl.losses.dense import cross_entropy_map, solo_loss
from unifl.losses.style import distance_of_grams, gram

IGNORED = 255
"""Class of pixels that do not count, as in COCO-Stuff."""


class StructureCritic:
    """Dense instance segmentation in the manner of SOLO: focal categories + 3 * Dice masks.

    Args:
        network: Returns category logits (b, k, S, S) and mask logits (b, S * S, h, w); channel i S + j is the
            mask of the instance whose centre lies in the cell of row i and column j.
        name: Name of losses and metrics.
        score_threshold: Pseudo annotations keep instances whose category probability is at least this.
        overlap_threshold: Of two pseudo instances that overlap by more (intersection over union), the more
            certain one is kept.

    Reference:
        UniFL eq. 4; SOLO, arXiv 1912.04488.
    """

    needs: frozenset[str] = frozenset({"masks"})

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str = "structure",
        score_threshold: float = 0.3,
        overlap_threshold: float = 0.5,
    ) -> None:
        self.network = _frozen(network)
        self.name = name
        self.score_threshold = score_threshold
        self.overlap_threshold = overlap_threshold

    def __call__(self, images: Float[Tensor, "b 3 h w"], batch: Batch) -> Float[Tensor, " b"]:
        """SOLO's training loss against the instances of the batch.

        Raises:
            UserError: No instances in the batch, or labels that the network does not have.
        """
        if batch.masks is None or batch.labels is None:
            raise missing_annotation(self.name, "masks")
        categories, masks = self.network(images)
        check_labels(self.name, batch.labels, categories.shape[1])
        return solo_loss(categories, masks, batch.masks, batch.labels)

    @torch.no_grad()
    def pseudo(self, batch: Batch) -> Batch:
        """The instances that the network finds in the real pictures; there may be none."""
        categories, masks = self.network(batch.images)
        size = batch.images.shape[-2:]
        found = [self._instances(c, m, size) for c, m in zip(categories, masks, strict=True)]
        return batch.with_instances([masks for masks, _ in found], [labels for _, labels in found])

    def _instances(
        self, categories: Float[Tensor, "k S S"], masks: Float[Tensor, "cells h w"], size: torch.Size
    ) -> tuple[Bool[Tensor, "n H W"], Int64[Tensor, " n"]]:
        scores, labels = categories.sigmoid().flatten(1).max(0)
        order = scores.argsort(descending=True)
        order = order[scores[order] >= self.score_threshold]
        if len(order) == 0:
            return torch.zeros(0, *size, dtype=torch.bool, device=masks.device), labels[order]
        large = F.interpolate(masks[order][None], size=size, mode="bilinear", align_corners=False)[0] > 0
        kept = distinct(large, self.overlap_threshold)
        return large[kept], labels[order[kept]]


class LayoutCritic:
    """Cross-entropy of a semantic segmentation, mean over pixels.

    Args:
        network: Returns class logits (b, k, h, w), at the size of the picture or below.
        name: Name of losses and metrics.
        checkpointing: Compute the loss again during backward, one picture at a time (`by_picture`).

    Reference:
        UniFL eq. 9.
    """

    needs: frozenset[str] = frozenset({"semantic"})

    def __init__(self, network: nn.Module, *, name: str = "layout", checkpointing: bool = False) -> None:
        self.network = _frozen(network)
        self.name = name
        self.checkpointing = checkpointing

    def __call__(self, images: Float[Tensor, "b 3 h w"], batch: Batch) -> Float[Tensor, " b"]:
        """Mean cross-entropy against the class maps of the batch; 255 is ignored.

        Raises:
            UserError: No class maps in the batch, or classes that the network does not have.
        """
        if batch.semantic is None:
            raise missing_annotation(self.name, "semantic")
        return by_picture(self._loss, images, batch.semantic, checkpointing=self.checkpointing)

    @torch.no_grad()
    def pseudo(self, batch: Batch) -> Batch:
        """The most probable class of each pixel of the real pictures."""
        return batch.with_semantic(self._logits(batch.images, batch.images.shape[-2:]).argmax(1))

    def _loss(
        self, images: Float[Tensor, "b 3 h w"], semantic: Int64[Tensor, "b H W"]
    ) -> Float[Tensor, " b"]:
        logits = self._logits(images, semantic.shape[-2:])
        check_labels(self.name, [semantic[semantic != IGNORED]], logits.shape[1])
        return cross_entropy_map(logits, semantic, ignore_index=IGNORED)

    def _logits(self, images: Float[Tensor, "b 3 h w"], size: torch.Size) -> Float[Tensor, "b k H W"]:
        logits = self.network(images)
        if logits.shape[-2:] == size:
            return logits
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


class StyleCritic:
    """Distance of Gram matrices to the real picture's.

    Args:
        network: Returns a list of feature maps (b, c, h, w); layers of VGG-16 in the paper.
        name: Name of losses and metrics.
        checkpointing: Compute the loss again during backward, one picture at a time (`by_picture`).

    Reference:
        UniFL eq. 8.
    """

    needs: frozenset[str] = frozenset({"image"})

    def __init__(self, network: nn.Module, *, name: str = "style", checkpointing: bool = False) -> None:
        self.network = _frozen(network)
        self.name = name
        self.checkpointing = checkpointing

    def __call__(self, images: Float[Tensor, "b 3 h w"], batch: Batch) -> Float[Tensor, " b"]:
        """Distance of Gram matrices to the real pictures of the batch."""
        if self.checkpointing:
            return by_picture(self._distance, images, *self._target(batch), checkpointing=True)
        made = self._grams(images)  # first: a trunk shared with other critics still holds these pictures
        return distance_of_grams(made, self._target(batch))

    def pseudo(self, batch: Batch) -> Batch:
        """Unchanged: the real picture itself is the target."""
        return batch

    def _distance(self, images: Float[Tensor, "b 3 h w"], *target: Tensor) -> Float[Tensor, " b"]:
        return distance_of_grams(self._grams(images), target)

    @torch.no_grad()
    def _target(self, batch: Batch) -> list[Tensor]:
        return self._grams(batch.images)

    def _grams(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        return [gram(features) for features in self.network(images)]


def _frozen(network: nn.Module) -> nn.Module:
    return network.eval().requires_grad_(False)


def distinct(masks: Bool[Tensor, "n h w"], threshold: float) -> list[int]:
    """Indices of masks that are not empty and overlap with no earlier one by more (intersection over union)."""
    kept: list[int] = []
    for candidate, mask in enumerate(masks):
        if mask.any() and all(_overlap(mask, masks[other]) <= threshold for other in kept):
            kept.append(candidate)
    return kept


def _overlap(a: Bool[Tensor, "h w"], b: Bool[Tensor, "h w"]) -> float:
    """Intersection over union; both masks are not empty."""
    return float((a & b).sum() / (a | b).sum())


def check_labels(name: str, labels: Sequence[Int[Tensor, "..."]], count: int) -> None:
    """Refuse labels outside 0 to count - 1.

    Raises:
        UserError: See above.
    """
    everything = torch.cat([found.flatten() for found in labels])
    if len(everything) and not 0 <= int(everything.min()) <= int(everything.max()) < count:
        raise UserError(
            f"the critic {name!r} knows the labels 0 to {count - 1}, but the annotation holds "
            f"{int(everything.min())} to {int(everything.max())}; give the data the labels of this model "
            "(COCO's ids are no labels: it has 80 categories with ids up to 90)"
        )


def missing_annotation(name: str, what: str) -> UserError:
    """What to say when a batch lacks what a critic compares with."""
    return UserError(
        f"the critic {name!r} needs {what}, which the pictures do not have; "
        "annotate them, or let the critic read them off the real pictures with gt_source=pseudo"
    )
