"""Style as second-order statistics of features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from unifl.losses.precision import at_least_float32


def gram(features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c c"]:
    """Inner products of the channels over all positions, divided by c h w.

    Runs in float32 even under autocast: sums over positions lose too much in half precision.

    Args:
        features: one layer's activations.

    Returns:
        A symmetric positive semi-definite matrix per sample.
    """
    with torch.autocast(features.device.type, enabled=False):
        rows = at_least_float32(features).flatten(2)
        return rows @ rows.transpose(1, 2) / (rows.shape[1] * rows.shape[2])


def gram_distance(
    feats_a: Sequence[Float[Tensor, "b _ _ _"]], feats_b: Sequence[Float[Tensor, "b _ _ _"]]
) -> Float[Tensor, " b"]:
    """Frobenius norm of the difference of Gram matrices, averaged over the layers.

    The norm is not squared, so the gradient keeps its size as the styles approach each other; at equal styles
    it is 0. Layers may differ in size from one another, the two pictures in height and width.

    Args:
        feats_a: activations of the first pictures, one tensor per layer.
        feats_b: activations of the second pictures at the same layers; the caller detaches a target.

    Reference:
        UniFL, arXiv 2404.05595, eq. 8; it leaves layers and normalisation open, the mean over layers and the
        division in `gram` are the choice made here.
    """
    assert len(feats_a) == len(feats_b) > 0, "both pictures need features of the same layers"
    return distance_of_grams([gram(a) for a in feats_a], [gram(b) for b in feats_b])


def distance_of_grams(
    grams_a: Sequence[Float[Tensor, "b _ _"]], grams_b: Sequence[Float[Tensor, "b _ _"]]
) -> Float[Tensor, " b"]:
    """`gram_distance` of Gram matrices that are there already."""
    distances = [torch.linalg.vector_norm(a - b, dim=(1, 2)) for a, b in zip(grams_a, grams_b, strict=True)]
    return torch.stack(distances).mean(0)
