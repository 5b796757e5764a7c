"""One step back in time, from t to an earlier s, and how far an error of the prediction moves it.

Given x_t, a prediction moves the next state through its x0 alone:

    x_s = kept x_t + gained x0 (+ deviation z)

The two weights are the same for every prediction at x_t. They differ little from 1 and 0 between neighbouring
timesteps, and are worked out in float64.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from unifl.process.prediction import PredictionKind
from unifl.process.process import Flow, Process, per_sample


def reverse_step(
    x_t: Float[Tensor, "b *d"],
    x0: Float[Tensor, "b *d"],
    t: Float[Tensor, " b"],
    s: Float[Tensor, " b"],
    process: Process,
    z: Float[Tensor, "b *d"] | None = None,
) -> Float[Tensor, "b *d"]:
    """The state at s that follows from x_t and the clean sample predicted there.

    For variance-preserving processes the mean of DDPM's posterior q(x_s | x_t, x0); between neighbouring timesteps

        x_s = (x_t - (1 - alpha_t) / sqrt(1 - abar_t) eps) / sqrt(alpha_t) + deviation z

    with alpha_t = abar_t / abar_s. For rectified flow one Euler step x_s = x_t - (t - s) v, which adds no noise.

    Args:
        x_t: State at t (b, ...).
        x0: Predicted clean sample (b, ...).
        t: Present time per sample, in (0, 1].
        s: Earlier time per sample, in [0, t].
        process: Gives alpha and sigma.
        z: Standard normal noise (b, ...), which is added times the posterior's deviation; None gives the mean.

    Reference:
        Ho et al., arXiv 2006.11239, eq. 7; Gambashidze et al., arXiv 2406.17636, eq. 12.
    """
    kept, gained, deviation = _weights(t, s, process)
    x_s = per_sample(kept.to(x_t.dtype), x_t) * x_t + per_sample(gained.to(x_t.dtype), x_t) * x0
    return x_s if z is None else x_s + per_sample(deviation.to(x_t.dtype), x_t) * z


def reverse_scale(
    t: Float[Tensor, " b"], s: Float[Tensor, " b"], process: Process, kind: PredictionKind
) -> Float[Tensor, " b"]:
    """|d x_s / d output| of `reverse_step` at a fixed x_t, for a network that predicts `kind`; dtype of t.

    For epsilon and neighbouring timesteps k_t = (1 - alpha_t) / (sqrt(alpha_t) sqrt(1 - abar_t)): 0.004 to 0.021 on
    the schedule of Stable Diffusion. For the velocity of a flow t - s.

    Args:
        t: Present time per sample, in (0, 1].
        s: Earlier time per sample, in [0, t].
        process: Gives alpha and sigma.
        kind: What the network predicts.
    """
    return (_weights(t, s, process)[1] * _x0_per_output(t, process, kind)).to(t.dtype)


def renoise_scale(
    t: Float[Tensor, " b"], s: Float[Tensor, " b"], process: Process, kind: PredictionKind
) -> Float[Tensor, " b"]:
    """|d x_s / d output| of x_s = alpha(s) x0 + sigma(s) eps with the x0 and eps predicted at a fixed x_t; dtype of t.

    Args:
        t: Time of the prediction per sample, in (0, 1].
        s: Any other time; 0 is the result where s = t, because the prediction then gives back x_t.
        process: Gives alpha and sigma.
        kind: What the network predicts.
    """
    alpha_t, sigma_t = process.weights(_exact(t))
    alpha_s, sigma_s = process.weights(_exact(s))
    # alpha x0 + sigma eps = x_t holds for every prediction: eps moves by -alpha / sigma times as much as x0
    moved = (alpha_s - sigma_s * alpha_t / sigma_t).abs()
    return (moved * _x0_per_output(t, process, kind)).to(t.dtype)


def _weights(t: Tensor, s: Tensor, process: Process) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of x_t and x0, and the deviation."""
    t, s = _exact(t), _exact(s)
    if isinstance(process, Flow):
        return s / t, 1 - s / t, torch.zeros_like(t)
    alpha_t, sigma_t = process.weights(t)
    alpha_s, sigma_s = process.weights(s)
    ratio = alpha_t / alpha_s
    added = (sigma_t**2 - (ratio * sigma_s) ** 2).clamp(min=0)  # variance of q(x_t | x_s)
    return ratio * (sigma_s / sigma_t) ** 2, alpha_s * added / sigma_t**2, added.sqrt() * sigma_s / sigma_t


def _x0_per_output(t: Tensor, process: Process, kind: PredictionKind) -> Tensor:
    """|d x0 / d output| of `to_x0`."""
    alpha, sigma = process.weights(_exact(t))
    if kind == "epsilon":
        return sigma / alpha
    if kind == "v_prediction":
        return sigma / (alpha**2 + sigma**2)
    return sigma / (alpha + sigma) if kind == "flow" else torch.ones_like(sigma)


def _exact(t: Tensor) -> Tensor:
    return t if t.device.type == "mps" else t.double()
