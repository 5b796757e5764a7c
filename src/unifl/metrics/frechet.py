"""Frechet distance between Gaussians fitted to two sets of features.

    d^2 = |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2)

(Dowson and Landau, J. Multivariate Analysis 12, 1982; used for images by Heusel et al., arXiv 1706.08500, who
report the square, as here.) The distance depends on the number of samples: it falls as n grows. So both sets
must have the same n, and values are comparable only at equal n. With n of at most d samples the covariance is
singular, and the value says more about n than about the pictures: that is refused unless `few` is set.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int, Num
from torch import Tensor

from unifl.errors import UserError
from unifl.metrics.intervals import LEVEL, Interval, influence_interval

_NOTHING = 1e-10  # eigenvalues below this share of the largest are rounding


def frechet_distance(
    a: Num[np.ndarray | Tensor, "n d"], b: Num[np.ndarray | Tensor, "m d"], *, few: bool = False
) -> float:
    """Squared Frechet distance of two feature sets of the same size, in float64.

    Args:
        a: Features, of any dimension d.
        b: The other set.
        few: Take n of d samples or fewer too. The value then is mostly the bias of so small an n.

    Raises:
        UserError: if the sets differ in size, have fewer than two samples, no more samples than dimensions (without
            `few`), or values that are not finite.
    """
    first, second = _pair(a, b, few)
    mean_a, covariance_a = _moments(first)
    mean_b, covariance_b = _moments(second)
    cross = _trace_root(symmetric_root(covariance_a), covariance_b)
    shift = ((mean_a - mean_b) ** 2).sum()
    # Rounding may leave a tiny negative number for equal sets; a squared distance has none.
    return float(max(shift + np.trace(covariance_a) + np.trace(covariance_b) - 2 * cross, 0.0))


def frechet_interval(
    features: Num[np.ndarray | Tensor, "n d"],
    reference: Num[np.ndarray | Tensor, "m d"],
    *,
    units: Int[np.ndarray, " n"] | None = None,
    few: bool = False,
    level: float = LEVEL,
) -> Interval:
    r"""The distance with an interval for the price of one, where hundreds of resamples of 2048 dimensions cost hours.

    The interval is that of the distance as it is on average at this n, from the influence of each sample:

        i(x) = 2 (mu - mu_r) . (x - mu) + (x - mu)^T (1 - T) (x - mu) - tr (1 - T) S
        T = S_r^1/2 (S_r^1/2 S S_r^1/2)^-1/2 S_r^1/2

    T is the linear map that takes one Gaussian to the other. The reference stays whole, as in `frechet_replicates`.

    Args:
        features: Generated samples.
        reference: The set that they are compared with.
        units: What samples belong together, such as the number of their prompt; None takes each alone.
        few: See `frechet_distance`; the interval too is then of little worth.
        level: Coverage.

    Raises:
        UserError: See `frechet_distance`.
    """
    x, r = _pair(features, reference, few)
    mean, covariance = _moments(x)
    mean_r, covariance_r = _moments(r)
    root = symmetric_root(covariance_r)
    values, vectors = np.linalg.eigh(root @ covariance @ root)
    there = values > _NOTHING * values[-1]
    half = root @ vectors[:, there] / values[there] ** 0.25
    turned = np.eye(x.shape[1]) - half @ half.T
    centred = x - mean
    own = ((centred @ turned) * centred).sum(axis=1)
    influence = 2 * centred @ (mean - mean_r) + own - own.mean()
    cross = np.sqrt(values[there]).sum()
    shift = ((mean - mean_r) ** 2).sum()
    value = float(max(shift + np.trace(covariance) + np.trace(covariance_r) - 2 * cross, 0.0))
    return influence_interval(value, influence, units=units, level=level)


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


def as_features(features: np.ndarray | Tensor) -> np.ndarray:
    """Features as a checked float64 array ``(n, d)``."""
    array = (
        features.detach().cpu().double().numpy()
        if isinstance(features, Tensor)
        else features.astype(np.float64)
    )
    n, _ = array.shape
    if n < 2:
        raise UserError(f"a distance between distributions needs at least two samples, got {n}")
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


def _pair(a: np.ndarray | Tensor, b: np.ndarray | Tensor, few: bool) -> tuple[np.ndarray, np.ndarray]:
    first, second = as_features(a), as_features(b)
    if len(first) != len(second):
        raise UserError(
            f"a Frechet distance needs sets of equal size, got {len(first)} and {len(second)}; "
            "it falls as n grows, so cut the larger set or draw more samples for the smaller one"
        )
    n, d = first.shape
    if n <= d and not few:
        raise UserError(
            f"{n} samples have no covariance of full rank in {d} dimensions, so that a Frechet distance would tell "
            f"n more than anything else; give more than {d} (better ten times as many), take a kernel distance, "
            "which needs none, or set few if you mean it"
        )
    return first, second
