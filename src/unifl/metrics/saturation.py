"""How saturated the colours of a picture are."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def mean_saturation(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Mean saturation over the pixels, in [0, 1]: (max - min) / max of the three channels, 0 for black.

    The saturation of the HSV model (Smith 1978), read off sRGB values as they are.

    Args:
        images: values in [0, 1].
    """
    highest, lowest = images.amax(1), images.amin(1)
    return ((highest - lowest) / highest.clamp(min=1e-6)).mean((1, 2))
