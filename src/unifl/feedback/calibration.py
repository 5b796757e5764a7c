"""Scores as the probability that people prefer a picture, by a map that is fitted to what they preferred.

Rewards of different scales then say the same thing: how likely a picture with this score wins against another one of
the pairs that the map was fitted on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import isotonic_regression, minimize
from torch import Tensor

from unifl.errors import UserError
from unifl.feedback.base import Feedback, Space

Kind = Literal["logistic", "isotonic"]
_FEWEST = 10  # pictures on either side


@dataclass(frozen=True)
class ScoreMap:
    """A rising map from scores to probabilities.

    Attributes:
        kind: logistic: sigmoid((r - shift) / scale). isotonic: straight lines between knots, level outside.
        shift: Of the logistic map: the score of an even chance.
        scale: Of the logistic map.
        knots: Of the isotonic map: scores, rising.
        levels: Of the isotonic map: probabilities at the knots, never falling.
    """

    kind: Kind
    shift: float = 0.0
    scale: float = 1.0
    knots: tuple[float, ...] = ()
    levels: tuple[float, ...] = ()

    def __call__(self, scores: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Probabilities, with a gradient where the map rises."""
        if self.kind == "logistic":
            return torch.sigmoid((scores - self.shift) / self.scale)
        knots, levels = (torch.tensor(values).to(scores) for values in (self.knots, self.levels))
        if len(knots) == 1:
            return levels.expand_as(scores) + 0 * scores
        right = torch.searchsorted(knots, scores.detach()).clamp(1, len(knots) - 1)
        share = (scores - knots[right - 1]) / (knots[right] - knots[right - 1])
        return torch.lerp(levels[right - 1], levels[right], share.clamp(0, 1))


@dataclass(frozen=True)
class Calibrated:
    """A feedback through a `ScoreMap`; see `calibrated`."""

    name: str
    space: Space
    differentiable: bool
    needs: frozenset[str]
    feedback: Feedback
    map: ScoreMap
    range: tuple[float, float] = (0.0, 1.0)

    def __call__(self, images: Float[Tensor, "b c h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """Probabilities."""
        return self.map(self.feedback(images, prompts))


def calibrated(feedback: Feedback, map: ScoreMap) -> Calibrated:
    """A feedback that says how likely a picture is preferred, in [0, 1]."""
    return Calibrated(
        name=feedback.name,
        space=feedback.space,
        differentiable=feedback.differentiable,
        needs=feedback.needs,
        feedback=feedback,
        map=map,
    )


@torch.no_grad()
def fit_score_map(
    feedback: Feedback,
    pairs: Iterable[tuple[Tensor, Tensor, Sequence[str]]],
    *,
    kind: Kind = "logistic",
) -> ScoreMap:
    """The map of a feedback's scores to the probability of being preferred.

    Args:
        feedback: What is calibrated.
        pairs: Batches of preferred pictures, the others, and their prompts; none that it was trained on.
        kind: See `ScoreMap`. logistic needs some dozen pairs, isotonic some hundred.

    Raises:
        UserError: Too few pairs, a score that is not finite, or scores that run against the preferences.
    """
    won: list[float] = []
    lost: list[float] = []
    for better, worse, prompts in pairs:
        won += feedback(better, prompts).tolist()
        lost += feedback(worse, prompts).tolist()
    return map_of_scores(np.array(won), np.array(lost), kind=kind)


def map_of_scores(
    won: Float[np.ndarray, " n"], lost: Float[np.ndarray, " m"], *, kind: Kind = "logistic"
) -> ScoreMap:
    """The map from scores of pictures that won and that lost.

    The logistic map is the likeliest one for Platt's targets, (n + 1) / (n + 2) and 1 / (m + 2) in place of 1 and 0,
    which keep it finite where scores separate both (Platt, Advances in Large Margin Classifiers, 1999). The isotonic
    map is the nearest rising one in squares (pool adjacent violators), at the mean score of each level.

    Args:
        won: Scores of preferred pictures.
        lost: Scores of the others.
        kind: See `ScoreMap`.

    Raises:
        UserError: See `fit_score_map`.
    """
    if min(len(won), len(lost)) < _FEWEST:
        raise UserError(
            f"a calibration from {len(won)} pictures that won and {len(lost)} that lost says little; give {_FEWEST} or "
            "more of each"
        )
    scores = np.concatenate([won, lost]).astype(np.float64)
    if not np.isfinite(scores).all():
        raise UserError("a score is not finite; look at the scorer, or leave such pairs out")
    if not np.mean(won) > np.mean(lost):
        raise UserError(
            "pictures that won have no higher scores on average than those that lost, so there is no rising map; see "
            "whether pairs or scorer are turned around"
        )
    labels = np.concatenate([np.ones(len(won)), np.zeros(len(lost))])
    return _logistic(scores, labels) if kind == "logistic" else _isotonic(scores, labels)


def _logistic(scores: np.ndarray, labels: np.ndarray) -> ScoreMap:
    wins = labels.sum()
    targets = np.where(labels == 1, (wins + 1) / (wins + 2), 1 / (len(labels) - wins + 2))
    middle, spread = scores.mean(), scores.std()
    z = (scores - middle) / spread

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        logits = at[0] * z + at[1]
        wrong = 1 / (1 + np.exp(-logits)) - targets
        value = np.logaddexp(0, logits) - targets * logits
        return float(value.mean()), np.array([(wrong * z).mean(), wrong.mean()])

    slope, offset = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS").x
    return ScoreMap("logistic", shift=float(middle - offset / slope * spread), scale=float(spread / slope))


def _isotonic(scores: np.ndarray, labels: np.ndarray) -> ScoreMap:
    different, place = np.unique(scores, return_inverse=True)
    count = np.bincount(place)
    found = isotonic_regression(np.bincount(place, labels) / count, weights=count)
    ends = found.blocks
    knots, levels = [], []
    for start, end in pairwise(ends):
        weights = count[start:end]
        knots.append(float((different[start:end] * weights).sum() / weights.sum()))
        levels.append(float(found.x[start]))
    return ScoreMap("isotonic", knots=tuple(knots), levels=tuple(levels))
