"""Losses are computed in float32, whatever the networks ran in."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def at_least_float32(tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Half precision becomes float32; float32 and float64 stay as they are."""
    return tensor.float() if tensor.element_size() < 4 else tensor
