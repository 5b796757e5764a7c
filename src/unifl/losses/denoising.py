"""The loss that diffusion and flow models are pre-trained with; an anchor in feedback learning."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from unifl.losses.precision import at_least_float32
from unifl.process.prediction import PredictionKind, from_x0_eps


def denoising_mse(
    raw: Float[Tensor, "b *d"],
    x0: Float[Tensor, "b *d"],
    eps: Float[Tensor, "b *d"],
    alpha: Float[Tensor, " b"],
    sigma: Float[Tensor, " b"],
    kind: PredictionKind,
) -> Float[Tensor, " b"]:
    """Mean squared error of a network output against its target, per sample over all other dimensions.

    Args:
        raw: output of a network of the given kind at alpha x0 + sigma eps.
        x0: the clean sample.
        eps: the noise that was added.
        alpha: weight of the data, one per sample.
        sigma: weight of the noise, one per sample.
        kind: what the network predicts.

    Reference:
        Ho et al., arXiv 2006.11239, eq. 14, for "epsilon".
    """
    error = at_least_float32(raw) - from_x0_eps(x0, eps, alpha, sigma, kind)
    return error.square().reshape(len(error), -1).mean(1)


def masked_mse(
    error: Float[Tensor, "b c h w"], mask: Float[Tensor, "b 1 h w"] | Float[Tensor, "b h w"]
) -> Float[Tensor, " b"]:
    """Mean of squared errors inside a region, per sample: sum(mask error^2) / (c sum(mask)).

    The mean is over the weight of the mask and over the channels, so the size of a region does not change the scale of
    the loss, and a mask of ones gives the plain mean.

    Args:
        error: prediction minus target.
        mask: weights in [0, 1], at the resolution of the error.

    Returns:
        One loss per sample; 0, with no gradient, where the mask is empty.
    """
    error, mask = at_least_float32(error), at_least_float32(mask)
    if mask.ndim == 3:
        mask = mask.unsqueeze(1)
    weight = error.shape[1] * mask.sum((1, 2, 3))
    total = (mask * error.square()).sum((1, 2, 3))
    return total / torch.where(weight > 0, weight, 1)


def truncated_snr(alpha: Float[Tensor, " b"], sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Weight max(alpha^2 / sigma^2, 1) of a squared error of x0.

    An error of x0 times the signal-to-noise ratio is the error of eps: the weighted error is the larger of the two.

    Args:
        alpha: weight of the data, one per sample.
        sigma: weight of the noise, above 0.

    Reference:
        Salimans and Ho, arXiv 2202.00512, section 4.
    """
    return (alpha / sigma).square().clamp(min=1)
