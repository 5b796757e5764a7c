"""Critics around segmenters with queries, depth estimators, and edges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from unifl.data import Batch
from unifl.feedback.by_picture import by_picture
from unifl.feedback.critics import check_labels, distinct, missing_annotation
from unifl.losses.depth import scale_shift_invariant
from unifl.losses.edges import edge_distance
from unifl.losses.queries import dense_query_loss, matched_query_loss


class QueryCritic:
    """Instances of a segmenter that answers with queries (MaskFormer, Mask2Former).

    Args:
        network: Returns class logits (b, q, k + 1), the last being "no object", and mask logits (b, q, h, w).
        name: Name of losses and metrics.
        reading: "dense" tells every pixel (`dense_query_loss`), "queries" pairs each instance with one query
            (`matched_query_loss`).
        num_categories: The annotation knows the first so many of the k categories; None is all of them.
        score_threshold: Pseudo annotations keep queries whose class probability, times the mean probability
            inside their mask, is at least this.
        overlap_threshold: Of two pseudo instances that overlap by more (intersection over union), the more
            certain one is kept.
        checkpointing: Compute the loss again during backward, one picture at a time (`by_picture`).

    Reference:
        Perceptual feedback of UniFL, eq. 4, with another detector. UniFL found sparse queries (Mask2Former) worse
        than dense supervision (SOLO), appendix A.2, hence the default.
    """

    needs: frozenset[str] = frozenset({"masks"})

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str = "instances",
        reading: Literal["dense", "queries"] = "dense",
        num_categories: int | None = None,
        score_threshold: float = 0.5,
        overlap_threshold: float = 0.5,
        checkpointing: bool = False,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.checkpointing = checkpointing
        self.name = name
        self.reading = reading
        self.num_categories = num_categories
        self.score_threshold = score_threshold
        self.overlap_threshold = overlap_threshold

    def __call__(self, images: Float[Tensor, "b 3 h w"], batch: Batch) -> Float[Tensor, " b"]:
        """Loss against the instances of the batch.

        Raises:
            UserError: No instances in the batch, or labels that the model does not have.
        """
        if batch.masks is None or batch.labels is None:
            raise missing_annotation(self.name, "masks")
        return by_picture(self._loss, images, batch.masks, batch.labels, checkpointing=self.checkpointing)

    @torch.no_grad()
    def pseudo(self, batch: Batch) -> Batch:
        """The instances that the network finds in the real pictures; there may be none."""
        classes, masks = self.network(batch.images)
        size = batch.images.shape[-2:]
        found = [self._instances(c, m, size) for c, m in zip(classes, masks, strict=True)]
        return batch.with_instances([masks for masks, _ in found], [labels for _, labels in found])

    def _loss(
        self, images: Float[Tensor, "b 3 h w"], masks: list[Tensor], labels: list[Tensor]
    ) -> Float[Tensor, " b"]:
        classes, answered = self.network(images)
        check_labels(self.name, labels, self._known(classes))
        if self.reading == "queries":
            return matched_query_loss(classes, answered, masks, labels)
        return dense_query_loss(classes, answered, masks, labels, num_categories=self._known(classes))

    def _known(self, classes: Tensor) -> int:
        return self.num_categories or classes.shape[-1] - 1

    def _instances(
        self, classes: Float[Tensor, "q k1"], logits: Float[Tensor, "q h w"], size: Sequence[int]
    ) -> tuple[Bool[Tensor, "n H W"], Int64[Tensor, " n"]]:
        likely, labels = classes.float().softmax(-1)[:, : self._known(classes)].max(1)
        probs = F.interpolate(logits[None].float(), size=tuple(size), mode="bilinear")[0].sigmoid()
        inside = probs > 0.5
        certainty = (probs * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
        scores = likely * certainty
        order = scores.argsort(descending=True)
        order = order[scores[order] >= self.score_threshold]
        kept = order[distinct(inside[order], self.overlap_threshold)]
        return inside[kept], labels[kept]


class DepthCritic:
    """Depth against that of the real picture, both as the same network sees them; an extension of UniFL.

    Args:
        network: Returns depth or inverse depth (b, h, w).
        name: Name of losses and metrics.
        gradient_weight: See `scale_shift_invariant`.
        checkpointing: Compute the loss again during backward, one picture at a time (`by_picture`).
    """

    needs: frozenset[str] = frozenset({"image"})

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str = "depth",
        gradient_weight: float = 0.5,
        checkpointing: bool = False,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.name = name
        self.gradient_weight = gradient_weight
        self.checkpointing = checkpointing

    def __call__(self, images: Float[Tensor, "b 3 h w"], batch: Batch) -> Float[Tensor, " b"]:
        """Scale- and shift-invariant distance to the depth of the real pictures."""
        with torch.no_grad():
            real = self.network(batch.images)
        return by_picture(self._loss, images, real, checkpointing=self.checkpointing)

    def pseudo(self, batch: Batch) -> Batch:
        """Unchanged: the target is read off the real picture in any case."""
        return batch

    def _loss(self, images: Float[Tensor, "b 3 h w"], real: Float[Tensor, "b H W"]) -> Float[Tensor, " b"]:
        return scale_shift_invariant(self.network(images), real, gradient_weight=self.gradient_weight)


class EdgeCritic:
    """Edges against those of the real picture; an extension of UniFL.

    Args:
        name: Name of losses and metrics.
        sigma: Of the blur, in px.
        threshold: See `unifl.losses.edges.edge_map`.
    """

    needs: frozenset[str] = frozenset({"image"})

    def __init__(self, *, name: str = "edges", sigma: float = 1.0, threshold: float | None = 0.1) -> None:
        self.name = name
        self.sigma = sigma
        self.threshold = threshold

    def __call__(self, images: Float[Tensor, "b 3 h w"], batch: Batch) -> Float[Tensor, " b"]:
        """Mean absolute difference of the edge maps."""
        return edge_distance(images, batch.images, sigma=self.sigma, threshold=self.threshold)

    def pseudo(self, batch: Batch) -> Batch:
        """Unchanged: the real picture itself is the target."""
        return batch
