"""Losses on pairs of which one sample was preferred."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unifl.losses.precision import at_least_float32


def bradley_terry(r_win: Float[Tensor, " b"], r_lose: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Negative log-probability that the winner is preferred: -log sigmoid(r_win - r_lose).

    Args:
        r_win: scores of the preferred samples.
        r_lose: scores of the others.

    Returns:
        One loss per pair; log 2 where the scores are equal.

    Reference:
        UniFL, arXiv 2404.05595, eq. 2.
    """
    return F.softplus(at_least_float32(r_lose) - at_least_float32(r_win))
