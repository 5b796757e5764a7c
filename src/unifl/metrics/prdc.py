"""Precision, recall, density and coverage of a set of pictures, by nearest neighbours of their features.

With a ball around each sample that reaches its k-th nearest neighbour in its own set:

    precision  share of generated samples in a ball of some reference sample
    recall     share of reference samples in a ball of some generated sample
    density    how many balls of reference samples hold a generated one, on average, divided by k
    coverage   share of balls of reference samples that hold some generated sample

(Kynkaanniemi et al., arXiv 1904.06991; Naeem et al., arXiv 2002.09797.) Precision and density tell fidelity, recall and
coverage diversity. One outlier of the reference makes precision, and one of the generated set recall, too large;
density and coverage mind them less. All depend on n and k.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Num
from scipy.spatial.distance import cdist
from torch import Tensor

from unifl.errors import UserError
from unifl.metrics.frechet import as_features

NEAREST = 5


@dataclass(frozen=True)
class Prdc:
    """The four shares; density alone may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(
    generated: Num[np.ndarray | Tensor, "n d"],
    reference: Num[np.ndarray | Tensor, "m d"],
    *,
    nearest: int = NEAREST,
) -> Prdc:
    """Precision, recall, density and coverage, in float64; memory grows with n m.

    Args:
        generated: Features of the pictures in question.
        reference: Features of those that they should be like.
        nearest: k, which neighbour a ball reaches.

    Raises:
        UserError: Fewer than k + 1 samples on a side, or values that are not finite.
    """
    ours, real = as_features(generated), as_features(reference)
    if nearest < 1 or min(len(ours), len(real)) <= nearest:
        raise UserError(
            f"the {nearest}-th neighbour of {min(len(ours), len(real))} samples was asked for; give at least "
            f"{max(nearest, 1) + 1} samples on each side, and nearest of 1 or more"
        )
    apart = cdist(ours, real)
    in_real: Bool[np.ndarray, "n m"] = apart < _radii(real, nearest)[None, :]
    in_ours: Bool[np.ndarray, "n m"] = apart < _radii(ours, nearest)[:, None]
    return Prdc(
        precision=float(in_real.any(axis=1).mean()),
        recall=float(in_ours.any(axis=0).mean()),
        density=float(in_real.sum(axis=1).mean() / nearest),
        coverage=float(in_real.any(axis=0).mean()),
    )


def _radii(x: np.ndarray, nearest: int) -> Float[np.ndarray, " n"]:
    """Distance of each sample to its k-th nearest neighbour."""
    return np.partition(cdist(x, x), nearest, axis=1)[:, nearest]  # the sample itself is number 0
