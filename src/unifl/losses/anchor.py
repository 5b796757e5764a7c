"""Terms that hold a student close to the model it started from."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from unifl.losses.precision import at_least_float32


def distance_to_start(
    raw: Float[Tensor, "b *d"], raw_reference: Float[Tensor, "b *d"]
) -> Float[Tensor, " b"]:
    """Mean squared difference of two network outputs at the same input, per sample over all other dimensions.

    Args:
        raw: output of the student.
        raw_reference: output of the reference; no gradient flows into it.
    """
    difference = at_least_float32(raw) - at_least_float32(raw_reference).detach()
    return difference.square().reshape(len(difference), -1).mean(1)
