"""Steps of a sampler from t to an earlier time s: one, or several that follow a field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unifl.errors import UserError
from unifl.process.process import Process, per_sample


def ddim_step(
    x0: Float[Tensor, "b *d"],
    eps: Float[Tensor, "b *d"],
    s: Float[Tensor, " b"],
    process: Process,
    *,
    eta: float = 0.0,
    t: Float[Tensor, " b"] | None = None,
    noise: Float[Tensor, "b *d"] | None = None,
) -> Float[Tensor, "b *d"]:
    """DDIM: the state at time s that holds the predicted x0 and eps.

    x_s = alpha(s) x0 + sqrt(sigma(s)^2 - tau^2) eps + tau noise, with tau = eta times the standard deviation
    of q(x_s | x_t, x0); eta = 0 is deterministic, eta = 1 is ancestral sampling. At s = 0 the result is x0,
    as with set_alpha_to_one=True in diffusers; s = 1 / T stops at index 0, as with set_alpha_to_one=False.

    Args:
        x0: predicted clean sample (b, ...).
        eps: predicted noise (b, ...).
        s: next time per sample, in [0, 1].
        process: gives alpha and sigma.
        eta: 0 to 1.
        t: present time per sample, t > s; needed when eta > 0.
        noise: standard normal (b, ...); needed when eta > 0.

    Reference:
        Song et al., arXiv 2010.02502, equations 12 and 16, written for any alpha and sigma.
    """
    alpha, sigma = process.weights(s)
    if eta == 0:
        return per_sample(alpha, x0) * x0 + per_sample(sigma, x0) * eps
    assert t is not None and noise is not None, "a stochastic step needs t and noise"
    alpha_t, sigma_t = process.weights(t)
    # eq. 16; for alpha^2 + sigma^2 = 1 the bracket is 1 - abar_t / abar_s
    forward_variance = (sigma_t**2 - (alpha_t / alpha * sigma) ** 2).clamp(min=0)
    tau = eta * sigma / sigma_t * forward_variance.sqrt()
    kept = (sigma**2 - tau**2).clamp(min=0).sqrt()
    return per_sample(alpha, x0) * x0 + per_sample(kept, x0) * eps + per_sample(tau, x0) * noise


def euler_step(
    x_t: Float[Tensor, "b *d"],
    velocity: Float[Tensor, "b *d"],
    t: Float[Tensor, " b"],
    s: Float[Tensor, " b"],
) -> Float[Tensor, "b *d"]:
    """One Euler step of dx/dt = velocity from t to s: x_t + (s - t) velocity.

    Args:
        x_t: present state (b, ...).
        velocity: dx/dt at (x_t, t); eps - x0 on the straight path.
        t: present time per sample.
        s: next time per sample; below t towards data.
    """
    return x_t + per_sample(s - t, x_t) * velocity


Field = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""What a solver follows: (x_t, t) to the predicted x0 and eps."""


@dataclass(kw_only=True)
class SolverConfig:
    """How a teacher's trajectory is followed from one point of a grid to the next."""

    substeps: int = 1
    """Steps within the interval."""
    order: Literal[1, 2] = 1
    """1 is DDIM; 2 evaluates once more at the end of a step and takes the mean (Heun)."""
    eta: float = 0.0
    """Noise that each step adds, from 0 (the probability flow) to 1 (ancestral sampling)."""

    def __post_init__(self) -> None:
        if self.substeps < 1:
            raise UserError(f"solver.substeps is {self.substeps}; it must be at least 1")
        if not 0 <= self.eta <= 1:
            raise UserError(f"solver.eta is {self.eta}; choose 0 (no noise) to 1")
        if self.order == 2 and self.eta > 0:
            raise UserError("solver.order is 2 and solver.eta above 0; stochastic steps are of order 1")

    @property
    def evaluations(self) -> int:
        """Evaluations of the field per interval."""
        return self.substeps * self.order


def solve(
    field: Field,
    x_t: Float[Tensor, "b *d"],
    t: Float[Tensor, " b"],
    s: Float[Tensor, " b"],
    process: Process,
    config: SolverConfig,
    *,
    noise: Callable[[int], Tensor] | None = None,
) -> Float[Tensor, "b *d"]:
    """Follow a field from t to s, in equal steps of time.

    Args:
        field: Evaluated `config.evaluations` times.
        x_t: State at t (b, ...).
        t: Present time per sample.
        s: Time to go to per sample, below t.
        process: Gives alpha and sigma.
        config: Steps, order and noise.
        noise: Standard normal noise (b, ...) of each substep, by its number; needed when eta > 0.
    """
    for number in range(config.substeps):
        now = torch.lerp(t, s, number / config.substeps)
        then = s if number == config.substeps - 1 else torch.lerp(t, s, (number + 1) / config.substeps)
        x0, eps = field(x_t, now)
        if config.order == 2:
            x_t = _heun_step(field, x_t, x0, eps, now, then, process)
        elif config.eta > 0:
            assert noise is not None, "a stochastic step needs noise"
            x_t = ddim_step(x0, eps, then, process, eta=config.eta, t=now, noise=noise(number))
        else:
            x_t = ddim_step(x0, eps, then, process)
    return x_t


def _heun_step(
    field: Field, x_t: Tensor, x0: Tensor, eps: Tensor, t: Tensor, s: Tensor, process: Process
) -> Tensor:
    """Second order: x / sigma changes with alpha / sigma at the rate x0, whose mean at both ends is taken."""
    ahead, _ = field(ddim_step(x0, eps, s, process), s)
    alpha_t, sigma_t = process.weights(t)
    alpha_s, sigma_s = process.weights(s)
    kept = sigma_s / sigma_t
    return per_sample(kept, x_t) * x_t + per_sample(alpha_s - kept * alpha_t, x_t) * (x0 + ahead) / 2
