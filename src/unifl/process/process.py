"""How data and noise mix: x_t = alpha(t) x0 + sigma(t) eps, with t in [0, 1] and t = 1 noise.

The whole project speaks this language. Integer timesteps and sigmas of diffusers are translated where a
pipeline enters or leaves (`unifl.process.timesteps`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from unifl.errors import UserError


def per_sample(values: Float[Tensor, " b"], like: Float[Tensor, "b *d"]) -> Float[Tensor, "b *ones"]:
    """Reshapes one value per sample so that it broadcasts against `like`.

    Args:
        values: shape (b,).
        like: any tensor whose first dimension is b.

    Returns:
        The values with shape (b, 1, ..., 1), as many dimensions as `like`; dtype unchanged.
    """
    return values.reshape(-1, *(1 for _ in like.shape[1:]))


class Process(ABC):
    """A Gaussian path between data (t = 0) and noise (t = 1)."""

    @abstractmethod
    def weights(self, t: Float[Tensor, " b"]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Weights (alpha, sigma) of data and noise at time t in [0, 1]; dtype and device of t."""

    def alpha(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Weight of the data at time t in [0, 1]; dtype and device of t."""
        return self.weights(t)[0]

    def sigma(self, t: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Weight of the noise at time t in [0, 1]; dtype and device of t."""
        return self.weights(t)[1]

    def add_noise(
        self, x0: Float[Tensor, "b *d"], eps: Float[Tensor, "b *d"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b *d"]:
        """Draws from the path: alpha(t) x0 + sigma(t) eps.

        Args:
            x0: clean samples (b, ...).
            eps: standard normal noise of the same shape.
            t: one time per sample, in [0, 1].
        """
        alpha, sigma = self.weights(t)
        return per_sample(alpha, x0) * x0 + per_sample(sigma, x0) * eps


class Flow(Process):
    """The straight path of rectified flow: alpha = 1 - t, sigma = t (Liu et al., arXiv 2209.03003)."""

    def weights(self, t: Float[Tensor, " b"]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """1 - t and t."""
        return 1 - t, t


class DiscreteVP(Process):
    """A variance-preserving process known at T indices (DDPM, Stable Diffusion), made continuous.

    Index i of T sits at t = (i + 1) / T, where alpha = sqrt(abar_i) and sigma = sqrt(1 - abar_i). Between two
    indices log(alpha^2 / sigma^2) is linear in t. Two ends have no finite log-SNR and get their own ramps:
    below t = 1 / T sigma falls linearly to exactly 0 at t = 0 (index 0 still holds noise), and, where the
    table ends without signal, alpha falls linearly to exactly 0 over the last interval. alpha^2 + sigma^2 = 1
    everywhere.

    Args:
        alphas_cumprod: abar_0 > abar_1 > ... > abar_{T-1}, T >= 2, each in [0, 1); only the last may be 0.

    Raises:
        UserError: when the table is too short, leaves that range or does not fall.
    """

    def __init__(self, alphas_cumprod: Float[Tensor, " T"] | Sequence[float]) -> None:
        abar = torch.as_tensor(alphas_cumprod).detach().to("cpu", torch.float64)
        _check_table(abar)
        self.alphas_cumprod = abar
        self.ends_in_noise = bool(abar[-1] == 0)
        self._log_snr = torch.logit(abar)
        if (
            self.ends_in_noise
        ):  # -inf would turn the gradient into NaN; the ramp replaces this interval anyway
            self._log_snr[-1] = self._log_snr[-2]
        self._on_device: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @property
    def num_train_timesteps(self) -> int:
        """T, the number of indices."""
        return len(self.alphas_cumprod)

    def weights(self, t: Float[Tensor, " b"]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """(1, 0) at t = 0; computed in the precision of the tables."""
        abar, table = self._tables(t.device)
        last = self.num_train_timesteps - 1
        position = t.to(abar.dtype) * (last + 1) - 1  # -1 is t = 0, `last` is t = 1
        lower = position.detach().floor().clamp(0, last - 1).long()
        log_snr = torch.lerp(table[lower], table[lower + 1], position - lower)
        alpha, sigma = torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()

        # The ramps are clamped to their interval, so that what `where` drops has a finite gradient.
        ramp = (1 - abar[0]).sqrt() * (position.clamp(max=0) + 1)
        below = position < 0
        alpha, sigma = torch.where(below, (1 - ramp**2).sqrt(), alpha), torch.where(below, ramp, sigma)
        if self.ends_in_noise:
            ramp = abar[last - 1].sqrt() * (last - position.clamp(min=last - 1))
            above = position > last - 1
            alpha, sigma = torch.where(above, ramp, alpha), torch.where(above, (1 - ramp**2).sqrt(), sigma)
        return alpha.to(t.dtype), sigma.to(t.dtype)

    def _tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The values of abar and of log-SNR on a device, copied once; in float64 where the device has it."""
        if device not in self._on_device:
            dtype = torch.float32 if device.type == "mps" else torch.float64
            self._on_device[device] = self.alphas_cumprod.to(device, dtype), self._log_snr.to(device, dtype)
        return self._on_device[device]


def zero_terminal_snr(alphas_cumprod: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
    """Shifts and scales sqrt(abar) so that the last index holds no signal and the first is unchanged.

    Args:
        alphas_cumprod: abar of a schedule, shape (T,), T >= 2.

    Returns:
        The new abar, shape (T,), dtype kept; the last value is exactly 0.

    Reference:
        Lin et al., arXiv 2305.08891, algorithm 1.
    """
    root = alphas_cumprod.double().sqrt()
    if len(root) < 2 or not root[0] > root[-1]:
        raise UserError(
            "zero terminal SNR needs at least two falling values of alphas_cumprod; "
            "pass the table of the scheduler that the model was trained with"
        )
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root.square().to(alphas_cumprod.dtype)


def _check_table(abar: Tensor) -> None:
    if abar.ndim != 1 or len(abar) < 2:
        raise UserError(f"alphas_cumprod has shape {tuple(abar.shape)}; pass one value per training timestep")
    inside = bool((abar < 1).all() and (abar >= 0).all())
    if not inside or not bool((abar.diff() < 0).all()):
        raise UserError(
            "alphas_cumprod must fall strictly from below 1 to 0 or above; "
            "pass scheduler.alphas_cumprod, whose index 0 is the cleanest"
        )
