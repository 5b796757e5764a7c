"""Flow maps: from a state at time t to the state of the same trajectory at an earlier time s, in one evaluation."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unifl.process.process import Process, per_sample
from unifl.process.solver import ddim_step
from unifl.process.timesteps import index_of_time

Boundary = Literal["lcm", "ddim"]
"""How a network becomes a map that leaves its input alone where there is nowhere to go, see the functions below."""

SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10.0


def lcm_scalings(
    t: Float[Tensor, " b"],
    num_train_timesteps: int = 1000,
    *,
    sigma_data: float = SIGMA_DATA,
    timestep_scaling: float = TIMESTEP_SCALING,
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """c_skip and c_out of latent consistency models; f = c_skip x_t + c_out x0 predicts the state at t = 0.

    With i the integer timestep of t (not t itself, for which the numbers would be off by orders of magnitude):
    c_skip = sd^2 / ((s i)^2 + sd^2), c_out = s i / sqrt((s i)^2 + sd^2). Only i = 0 is a true boundary; at the
    timesteps of training c_skip is below 1e-5.

    Args:
        t: Times in (0, 1].
        num_train_timesteps: T.
        sigma_data: sd.
        timestep_scaling: s.

    Reference:
        Luo et al., arXiv 2310.04378; s = 10 from the accompanying code.
    """
    scaled = timestep_scaling * index_of_time(t.float(), num_train_timesteps)
    return sigma_data**2 / (scaled**2 + sigma_data**2), scaled / (scaled**2 + sigma_data**2).sqrt()


def lcm_map(
    x_t: Float[Tensor, "b *d"],
    x0: Float[Tensor, "b *d"],
    t: Float[Tensor, " b"],
    num_train_timesteps: int = 1000,
) -> Float[Tensor, "b *d"]:
    """The state at t = 0 by the boundary of latent consistency models, see `lcm_scalings`.

    Args:
        x_t: State at t (b, ...).
        x0: The clean sample that a network predicts there (b, ...).
        t: One time per sample.
        num_train_timesteps: T.
    """
    skip, out = lcm_scalings(t, num_train_timesteps)
    return per_sample(skip, x_t) * x_t + per_sample(out, x_t) * x0


def ddim_map(
    x_t: Float[Tensor, "b *d"],
    x0: Float[Tensor, "b *d"],
    eps: Float[Tensor, "b *d"],
    t: Float[Tensor, " b"],
    s: Float[Tensor, " b"],
    process: Process,
) -> Float[Tensor, "b *d"]:
    """The state at s by one DDIM jump; exactly x_t where s = t.

    It is the exponential integrator of TCD (Zheng et al., arXiv 2402.19159) and the boundary of PCM (Wang et al.,
    arXiv 2405.18407).

    Args:
        x_t: State at t (b, ...).
        x0: Predicted clean sample (b, ...).
        eps: Predicted noise (b, ...).
        t: Present time per sample.
        s: Time to go to, at most t.
        process: Gives alpha and sigma.
    """
    return torch.where(per_sample(s - t, x_t) >= 0, x_t, ddim_step(x0, eps, s, process))


def ddim_origin(
    x_t: Float[Tensor, "b *d"],
    x_s: Float[Tensor, "b *d"],
    t: Float[Tensor, " b"],
    s: Float[Tensor, " b"],
    process: Process,
) -> Float[Tensor, "b *d"]:
    """The clean sample whose DDIM jump from x_t at t lands on x_s at s: `ddim_map` solved for x0.

    x0 = (x_s - sigma(s) / sigma(t) x_t) / (alpha(s) - sigma(s) / sigma(t) alpha(t)). At s = 0 it is x_s itself. The
    divisor falls towards 0 with t - s, and the rounding error of float32 grows as much: 1e-4 of x0 for one of a
    thousand timesteps.

    Args:
        x_t: State at t (b, ...).
        x_s: State at s.
        t: Present time per sample, in (0, 1].
        s: Earlier time, below t.
        process: Gives alpha and sigma.

    Reference:
        Salimans and Ho, arXiv 2202.00512, algorithm 2.
    """
    alpha_t, sigma_t = process.weights(t)
    alpha_s, sigma_s = process.weights(s)
    kept = sigma_s / sigma_t
    return (x_s - per_sample(kept, x_t) * x_t) / per_sample(alpha_s - kept * alpha_t, x_t)
