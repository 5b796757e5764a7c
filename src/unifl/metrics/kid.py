"""Kernel distance: the unbiased estimate of the squared maximum mean discrepancy.

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),   k(x, y) = (x . y / d + 1)^3

(Binkowski et al., arXiv 1801.01401, section 4; pairs of a sample with itself are left out.) Unlike the
Frechet distance its mean does not depend on the number of samples; for equal distributions it is zero on
average, and may be slightly negative.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Num
from torch import Tensor

from unifl.errors import UserError
from unifl.metrics.blocks import row_blocks
from unifl.metrics.frechet import as_features


def kernel_distance(a: Num[np.ndarray | Tensor, "n d"], b: Num[np.ndarray | Tensor, "m d"]) -> float:
    """Unbiased squared MMD with the cubic kernel, over all pairs, in float64. The sets may differ in size."""
    x, y = as_features(a), as_features(b)
    return float(_within(x) + _within(y) - 2 * _means(x, y).mean())


def kernel_subsets(
    a: Num[np.ndarray | Tensor, "n d"],
    b: Num[np.ndarray | Tensor, "m d"],
    *,
    subsets: int = 100,
    size: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """KID as it is often reported: mean and standard deviation of the distance over random subsets of both sets.

    The mean estimates the same as `kernel_distance`, with more noise. The deviation is that of one subset of this size:
    no interval of the mean, and comparable only at equal `size`.

    Args:
        a: Features.
        b: The other set.
        subsets: How many.
        size: Samples in each, drawn without replacement.
        seed: Of the drawing.

    Raises:
        UserError: A set that has fewer samples than a subset, or numbers that make no sense.
    """
    x, y = as_features(a), as_features(b)
    if subsets < 1 or not 2 <= size <= min(len(x), len(y)):
        raise UserError(
            f"{subsets} subsets of {size} samples cannot be drawn of {len(x)} and {len(y)}; take a size of at least 2 "
            f"and at most {min(len(x), len(y))}"
        )
    rng = np.random.default_rng([seed, size])
    found = [
        kernel_distance(x[rng.permutation(len(x))[:size]], y[rng.permutation(len(y))[:size]])
        for _ in range(subsets)
    ]
    return float(np.mean(found)), float(np.std(found))


def kernel_replicates(
    features: Num[np.ndarray | Tensor, "n d"],
    reference: Num[np.ndarray | Tensor, "m d"],
    counts: Float[np.ndarray, "r n"],
) -> Float[np.ndarray, "r"]:
    """The distance for each resample of ``features``; the reference stays whole.

    A sample that was drawn twice is not paired with its own copy, so the replicates stay close to unbiased.
    """
    x, y = as_features(features), as_features(reference)
    total = counts.sum(axis=1)
    pairs = total**2 - (counts**2).sum(axis=1)
    pairs = np.where(pairs > 0, pairs, np.nan)  # one sample drawn n times has no pair: no replicate
    inside = np.zeros(len(counts))
    for rows in row_blocks(len(x), len(x)):
        drawn = counts @ _kernel(x, x[rows])  # of each sample of the block with all of a resample
        inside += ((drawn - counts[:, rows] * _kernel_with_itself(x[rows])) * counts[:, rows]).sum(axis=1)
    across = counts @ _means(x, y) / total
    return inside / pairs + _within(y) - 2 * across


def _kernel(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    inner = x @ y.T / x.shape[1] + 1.0
    return inner * inner * inner


def _kernel_with_itself(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    return ((x * x).sum(axis=1) / x.shape[1] + 1.0) ** 3


def _means(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> Float[np.ndarray, " n"]:
    """Mean of the kernel of each row of x with all of y."""
    return np.concatenate([_kernel(x[rows], y).mean(axis=1) for rows in row_blocks(len(x), len(y))])


def _within(x: Float[np.ndarray, "n d"]) -> float:
    """Mean over pairs of different samples."""
    return float((_means(x, x).sum() * len(x) - _kernel_with_itself(x).sum()) / (len(x) * (len(x) - 1)))
