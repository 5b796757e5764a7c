"""Frechet distance between Gaussians fitted to two sets of features.

    d^2 = |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2)

(Dowson and Landau, J. Multivariate Analysis 12, 1982; used for images by Heusel et al., arXiv 1706.08500, who
report the square, as here.) The distance depends on the number of samples: it falls as n grows. So both sets
must have the same n, and values are comparable only at equal n. With at most 64 dimensions a thousand samples
fit the covariance.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Num
from torch import Tensor

from unifl.errors import UserError

MAX_DIMENSIONS = 64


def frechet_distance(a: Num[np.ndarray | Tensor, "n d"], b: Num[np.ndarray | Tensor, "m d"]) -> float:
    """Squared Frechet distance of two feature sets of the same size, in float64.

    Raises:
        UserError: if the sets differ in size, have fewer than two samples, more than 64 dimensions or values
            that are not finite.
    """
    first, second = as_features(a), as_features(b)
    if len(first) != len(second):
        raise UserError(
            f"a Frechet distance needs sets of equal size, got {len(first)} and {len(second)}; "
            "it falls as n grows, so cut the larger set or draw more samples for the smaller one"
        )
    mean_a, covariance_a = _moments(first)
    mean_b, covariance_b = _moments(second)
    cross = _trace_root(symmetric_root(covariance_a), covariance_b)
    shift = ((mean_a - mean_b) ** 2).sum()
    # Rounding may leave a tiny negative number for equal sets; a squared distance has none.
    return float(max(shift + np.trace(covariance_a) + np.trace(covariance_b) - 2 * cross, 0.0))


def frechet_replicates(
    features: Num[np.ndarray | Tensor, "n d"],
    reference: Num[np.ndarray | Tensor, "m d"],
    counts: Float[np.ndarray, "r n"],
) -> Float[np.ndarray, "r"]:
    """The distance for each resample of ``features`` (the reference stays whole: it is common to all models).

    Args:
        features: generated samples.
        reference: the set that they are compared with.
        counts: weight of each sample in each resample, see ``bootstrap_counts``.

    Returns:
        One distance per resample. Their mean lies above the distance of the full set; see
        ``centred_interval``.
    """
    x, r = as_features(features), as_features(reference)
    mean_r, covariance_r = _moments(r)
    root = symmetric_root(covariance_r)
    values = np.empty(len(counts))
    for i, weight in enumerate(counts):
        mean, covariance = _moments(x, weight)
        cross = _trace_root(root, covariance)
        shift = ((mean - mean_r) ** 2).sum()
        values[i] = max(shift + np.trace(covariance) + np.trace(covariance_r) - 2 * cross, 0.0)
    return values


def as_features(features: np.ndarray | Tensor, *, limit: int | None = MAX_DIMENSIONS) -> np.ndarray:
    """Features as a checked float64 array ``(n, d)``; ``limit`` is the most dimensions, None for any number."""
    array = (
        features.detach().cpu().double().numpy()
        if isinstance(features, Tensor)
        else features.astype(np.float64)
    )
    n, d = array.shape
    if n < 2:
        raise UserError(f"a distance between distributions needs at least two samples, got {n}")
    if limit is not None and d > limit:
        raise UserError(
            f"features have {d} dimensions, at most {limit} are allowed: with more, the covariance of a few "
            "thousand samples is mostly noise; project them first"
        )
    if not np.isfinite(array).all():
        raise UserError("features contain values that are not finite; check the pictures and the judge")
    return array


def symmetric_root(matrix: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """Square root of a symmetric positive semidefinite matrix; negative eigenvalues from rounding count as zero."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T


def _trace_root(root_a: np.ndarray, covariance_b: np.ndarray) -> float:
    # tr (S_a S_b)^1/2 through the symmetric product: real for rank-deficient matrices, where sqrtm(S_a S_b)
    # is not.
    eigenvalues = np.linalg.eigvalsh(root_a @ covariance_b @ root_a)
    return float(np.sqrt(np.clip(eigenvalues, 0.0, None)).sum())


def _moments(x: np.ndarray, weight: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    weight = np.ones(len(x)) if weight is None else weight
    total = weight.sum()
    mean = weight @ x / total
    centred = x - mean
    return mean, (centred * weight[:, None]).T @ centred / (total - 1)
