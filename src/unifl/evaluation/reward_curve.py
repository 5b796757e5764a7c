r"""The curve of a reward against drift, fitted (Gao, Schulman and Hilton, arXiv 2210.10760, section 3).

    R(d) = d (alpha - beta log d)        or        R(d) = d (alpha - beta d),        d = sqrt(KL to the start)

The first is theirs for reinforcement learning, the second for the best of n samples. Both are linear in alpha and
beta, pass through the start (0, 0), and describe a score that rises and then falls: a reward that is followed rises on,
with a small beta; what it stands for turns, and the peak is how far it could be trusted. Beyond the checkpoints the
curve says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Float

from unifl.metrics.intervals import LEVEL, RESAMPLES, bootstrap_counts

LOGARITHMIC, QUADRATIC = "d (alpha - beta log d)", "d (alpha - beta d)"
_BENDS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = MappingProxyType(
    {LOGARITHMIC: lambda d: d * np.log(d), QUADRATIC: np.square}
)
"""By form, what beta is subtracted of."""


@dataclass(frozen=True)
class RewardCurve:
    """A fitted curve.

    Attributes:
        form: `LOGARITHMIC` or `QUADRATIC`, whichever leaves less.
        alpha: Its first coefficient.
        beta: Its second.
        residual: Root-mean-square distance of the checkpoints from the curve, in the unit of the score.
        peak: Drift at which the curve is highest among those that were seen: 0 where it falls from the start, infinity
            where it has not turned down by the furthest checkpoint.
        low: Lower end of the interval of the peak, over prompts.
        high: Upper end.
    """

    form: str
    alpha: float
    beta: float
    residual: float
    peak: float
    low: float
    high: float

    def __call__(self, drift: Float[np.ndarray, " c"]) -> Float[np.ndarray, " c"]:
        """The curve at positive drifts."""
        return self.alpha * drift - self.beta * _BENDS[self.form](drift)


def fit_curve(
    drift: Float[np.ndarray, " c"], change: Float[np.ndarray, "c p"], *, resamples: int = RESAMPLES
) -> RewardCurve | None:
    """Fit by least squares on the means over prompts; the interval of the peak comes from resampled prompts.

    Args:
        drift: Of each checkpoint; those that have not moved say nothing about the curve and are left out.
        change: Of a score since the start, by checkpoint and prompt.
        resamples: Bootstrap resamples over prompts.

    Returns:
        The curve; None with fewer than three checkpoints that have moved, which would lie on any such curve.
    """
    moved = drift > 0
    d, values = drift[moved], change[moved]
    if len(np.unique(d)) < 3:
        return None
    fits = [_fit(form, d, values.mean(axis=1)) for form in _BENDS]
    form, (alpha, beta), residual = min(fits, key=lambda fit: fit[2])
    counts = bootstrap_counts(values.shape[1], resamples=resamples)
    means = counts @ values.T / values.shape[1]
    furthest = float(d.max())
    pairs = (means @ np.linalg.pinv(_design(form, d)).T).tolist()
    drawn = [_peak(form, first, second, furthest) for first, second in pairs]
    # no interpolation: the mean of a number and infinity is no quantile
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    low, high = (float(x) for x in np.quantile(drawn, tails, method="inverted_cdf"))
    return RewardCurve(form, alpha, beta, residual, _peak(form, alpha, beta, furthest), low, high)


def _design(form: str, d: np.ndarray) -> Float[np.ndarray, "c 2"]:
    return np.stack([d, -_BENDS[form](d)], axis=1)


def _fit(form: str, d: np.ndarray, means: np.ndarray) -> tuple[str, tuple[float, float], float]:
    design = _design(form, d)
    alpha, beta = np.linalg.lstsq(design, means, rcond=None)[0]
    residual = math.sqrt(float(np.square(design @ [alpha, beta] - means).mean()))
    return form, (float(alpha), float(beta)), residual


def _peak(form: str, alpha: float, beta: float, furthest: float) -> float:
    """Where the curve is highest over 0 <= d < furthest; infinity if it is higher still at the end of that."""
    if beta <= 0:  # it bends upwards, so that it is highest at one of the ends
        end = alpha * furthest - beta * float(_BENDS[form](np.array([furthest]))[0])
        return math.inf if end > 0 else 0.0
    turn = alpha / (2 * beta) if form == QUADRATIC else math.exp(min(alpha / beta - 1, 700.0))
    return max(turn, 0.0) if turn < furthest else math.inf
