"""How far a student's jump lands from its target; one value per sample."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from unifl.losses.precision import at_least_float32


def pseudo_huber(
    estimate: Float[Tensor, "b *d"], target: Float[Tensor, "b *d"], c: float = 1e-3
) -> Float[Tensor, " b"]:
    """Mean over dimensions of sqrt(d^2 + c^2) - c for each difference d: square near 0, linear far away.

    Args:
        estimate: (b, ...).
        target: (b, ...).
        c: Where the two meet, above 0, in units of the samples.

    Reference:
        Song and Dhariwal, arXiv 2310.14189, taken element by element as in the code of latent
        consistency models.
    """
    difference = at_least_float32(estimate) - at_least_float32(target)
    return (torch.sqrt(difference**2 + c**2) - c).flatten(1).mean(1)


def squared(estimate: Float[Tensor, "b *d"], target: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
    """Mean over dimensions of the squared difference.

    Args:
        estimate: (b, ...).
        target: (b, ...).
    """
    return (at_least_float32(estimate) - at_least_float32(target)).square().flatten(1).mean(1)
