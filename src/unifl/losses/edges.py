"""Edges without a network: smoothed Sobel gradients with a soft threshold, differentiable everywhere."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unifl.losses.precision import at_least_float32

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_SOFTNESS = 0.25  # of the threshold itself: the width of the soft step


def edge_magnitude(images: Float[Tensor, "b 3 h w"], *, sigma: float = 1.0) -> Float[Tensor, "b h w"]:
    """Length of the Sobel gradient of the luminance, after a Gaussian blur.

    Args:
        images: in [0, 1].
        sigma: of the blur, in px; 0 leaves it out.

    Returns:
        Luminance per pixel, 0 or more: a linear ramp of slope a gives |a|, and a vertical step from 0 to 1
        without blur gives 1/2 in the two columns beside it.

    Reference:
        The first two stages of Canny, IEEE PAMI 8(6), 1986; Sobel's kernels are divided by 8.
    """
    pixels = at_least_float32(images)
    grey = (pixels * pixels.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    if sigma > 0:
        grey = _blurred(grey, sigma)
    smooth = grey.new_tensor([1.0, 2.0, 1.0]) / 4
    step = grey.new_tensor([-1.0, 0.0, 1.0]) / 2
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    along_x = F.conv2d(padded, (smooth[:, None] * step[None, :])[None, None])
    along_y = F.conv2d(padded, (step[:, None] * smooth[None, :])[None, None])
    # the root of 0 has no gradient; this hides slopes under 1e-4
    return ((along_x.square() + along_y.square() + 1e-8).sqrt() - 1e-4)[:, 0]


def edge_map(
    images: Float[Tensor, "b 3 h w"], *, sigma: float = 1.0, threshold: float | None = 0.1
) -> Float[Tensor, "b h w"]:
    """How much each pixel is an edge.

    Args:
        images: in [0, 1].
        sigma: of the blur, in px.
        threshold: slope of luminance per pixel at which a pixel counts half; None gives the slope itself
            (`edge_magnitude`), so that contrast counts.

    Returns:
        sigmoid((slope - threshold) / (threshold / 4)) in [0, 1], or the slope. Unlike in Canny's detector edges are
        not thinned, and weak ones are not followed from strong ones: neither step has a gradient.
    """
    slope = edge_magnitude(images, sigma=sigma)
    if threshold is None:
        return slope
    return torch.sigmoid((slope - threshold) / (_SOFTNESS * threshold))


def edge_distance(
    images: Float[Tensor, "b 3 h w"],
    targets: Float[Tensor, "b 3 h w"],
    *,
    sigma: float = 1.0,
    threshold: float | None = 0.1,
) -> Float[Tensor, " b"]:
    """Mean absolute difference of two pictures' edge maps.

    Args:
        images: in [0, 1]; carry the gradient.
        targets: in [0, 1], of the same size.
        sigma: see `edge_map`.
        threshold: see `edge_map`.
    """
    made = edge_map(images, sigma=sigma, threshold=threshold)
    with torch.no_grad():
        wanted = edge_map(targets, sigma=sigma, threshold=threshold)
    return (made - wanted).abs().mean((1, 2))


def _blurred(grey: Float[Tensor, "b 1 h w"], sigma: float) -> Float[Tensor, "b 1 h w"]:
    reach = min(math.ceil(3 * sigma), *(side - 1 for side in grey.shape[-2:]))
    position = torch.arange(-reach, reach + 1, device=grey.device, dtype=grey.dtype)
    kernel = torch.exp(-position.square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(grey, (reach, reach, reach, reach), mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
