"""Seed diversity: how much pictures of the *same* prompt differ when only the noise differs.

    diversity(prompt) = mean over pairs of seeds i < j of |f(x_i) - f(x_j)|_2

with the features f of a judge; the metric is its mean over prompts. Spread over prompts does not count, so a
model that answers every prompt with one picture gets zero however varied the prompts are. The unit is that of
the features, so values mean something only beside those of a reference with the same judge and the same
prompts.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Num
from torch import Tensor

from unifl.errors import UserError
from unifl.metrics.intervals import LEVEL, RESAMPLES, Interval, ratio_interval


def seed_diversity(features: Num[np.ndarray | Tensor, "p s d"]) -> Float[np.ndarray, "p"]:
    """Mean pairwise Euclidean distance between the ``s`` samples of each of ``p`` prompts.

    Raises:
        UserError: with fewer than two samples per prompt.
    """
    x = (
        features.detach().cpu().double().numpy()
        if isinstance(features, Tensor)
        else features.astype(np.float64)
    )
    samples = x.shape[1]
    if samples < 2:
        raise UserError(
            f"seed diversity needs at least two samples per prompt, got {samples}; give more seeds"
        )
    first, second = np.triu_indices(samples, k=1)
    return np.linalg.norm(x[:, first] - x[:, second], axis=-1).mean(axis=1)


def relative_diversity(
    per_prompt: Float[np.ndarray, "p"],
    reference: Float[np.ndarray, "p"],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Diversity as a share of a reference's on the same prompts (another model, or rendered scenes), with interval."""
    return ratio_interval(per_prompt, reference, level=level, resamples=resamples, seed=seed)
