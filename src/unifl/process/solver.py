"""One step of a sampler, from t to an earlier time s."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

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
