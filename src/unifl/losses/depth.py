"""Distances of depth maps that are known up to scale and shift only."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from unifl.losses.precision import at_least_float32


def normalised_depth(depth: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """(d - t) / s with t the median of the picture (the lower of two middle values) and s the mean of |d - t|.

    Args:
        depth: depth or inverse depth, any unit.

    Returns:
        The same map for d and for a d + c with a > 0; 0 everywhere for a constant map.

    Reference:
        The robust shift and scale of Ranftl et al. (MiDaS), arXiv 1907.01341, section 5.
    """
    flat = at_least_float32(depth).flatten(1)
    centred = flat - flat.median(1, keepdim=True).values
    spread = centred.abs().mean(1, keepdim=True).clamp(min=1e-6)
    return (centred / spread).view(depth.shape)


def scale_shift_invariant(
    prediction: Float[Tensor, "b h w"],
    target: Float[Tensor, "b h w"],
    *,
    gradient_weight: float = 0.5,
    scales: int = 4,
) -> Float[Tensor, " b"]:
    """Mean absolute difference of normalised maps / 2, plus the weighted difference of their gradients.

    Both maps are normalised by their own median and mean absolute deviation (`normalised_depth`), so that neither
    scale nor shift of either counts. The second term compares steps between neighbouring pixels at several scales,
    which keeps edges of depth where they are.

    Args:
        prediction: depth or inverse depth; carries the gradient.
        target: of the same kind; the caller detaches it.
        gradient_weight: factor alpha of the second term; 0 leaves it out.
        scales: K, each at half the size of the one before (every second pixel); those under 2 px are left out.

    Returns:
        One value per picture; 0 for maps that agree up to scale and shift.

    Reference:
        Ranftl et al., arXiv 1907.01341, section 5: the loss with rho = |.| (without trimming) and the multi-scale
        gradient term, alpha = 0.5 and K = 4. Here each scale is averaged over its own pixels, so all weigh alike.
    """
    difference = normalised_depth(prediction) - normalised_depth(target)
    loss = difference.abs().mean((1, 2)) / 2
    if gradient_weight == 0:
        return loss
    return loss + gradient_weight * _gradients(difference, scales)


def _gradients(difference: Float[Tensor, "b h w"], scales: int) -> Float[Tensor, " b"]:
    total = difference.new_zeros(len(difference))
    for level in range(scales):
        part = difference[:, :: 2**level, :: 2**level]
        if min(part.shape[-2:]) < 2:
            break
        for step in (part.diff(dim=2), part.diff(dim=1)):
            total = total + step.abs().mean((1, 2))
    return total
