"""Sampling with a consistency model: jump to the clean sample, add noise again, and jump once more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unifl.errors import UserError
from unifl.process.flow_map import ddim_map, lcm_map
from unifl.process.process import Process, per_sample


@dataclass(frozen=True, kw_only=True)
class ConsistencySampler:
    """How a few-step model is sampled; the counterpart of diffusers' LCMScheduler and TCDScheduler."""

    kind: Literal["lcm", "tcd"] = "lcm"
    """lcm: to t = 0, then noise up to the next time (Luo et al., arXiv 2310.04378). tcd: to a time
    below the next one, then noise up to that (Zheng et al., arXiv 2402.19159)."""
    origin_steps: int = 50
    """Points of the grid that the model was trained on; sampling takes the first of every so many of them."""
    gamma: float = 0.3
    """For tcd: share of noise, from 0 (none, the step is DDIM) to 1 (as lcm)."""

    def __post_init__(self) -> None:
        if self.origin_steps < 1:
            raise UserError(f"consistency.origin_steps is {self.origin_steps}; it must be at least 1")
        if not 0 <= self.gamma <= 1:
            raise UserError(f"consistency.gamma is {self.gamma}; choose 0 (no noise) to 1")

    def times(self, num_steps: int, num_train_timesteps: int = 1000) -> Float[Tensor, " n"]:
        """The times of the evaluations, those of the diffusers schedulers.

        Args:
            num_steps: Evaluations n.
            num_train_timesteps: T.

        Returns:
            float32 (n,), strictly falling from 1.

        Raises:
            UserError: More steps than the grid has points.
        """
        if not 1 <= num_steps <= self.origin_steps:
            raise UserError(
                f"num_steps is {num_steps}; choose 1 to {self.origin_steps}, the points of the grid that this model "
                "was distilled on (consistency.origin_steps)"
            )
        every = num_train_timesteps // self.origin_steps
        chosen = [math.floor(number * self.origin_steps / num_steps) for number in range(num_steps)]
        indices = [every * (self.origin_steps - point) - 1 for point in chosen]
        return torch.tensor([(index + 1) / num_train_timesteps for index in indices], dtype=torch.float32)

    def step(
        self,
        x_t: Float[Tensor, "b *d"],
        x0: Float[Tensor, "b *d"],
        eps: Float[Tensor, "b *d"],
        t: Float[Tensor, " b"],
        s: Float[Tensor, " b"] | None,
        noise: Float[Tensor, "b *d"] | None,
        process: Process,
        num_train_timesteps: int = 1000,
    ) -> Float[Tensor, "b *d"]:
        """The state at the next time.

        Args:
            x_t: State at t (b, ...).
            x0: Predicted clean sample.
            eps: Predicted noise.
            t: Present time per sample.
            s: Next time; None after the last evaluation.
            noise: Standard normal; None where none is added (the last step; tcd with gamma 0).
            process: Gives alpha and sigma.
            num_train_timesteps: T.
        """
        if self.kind == "lcm":
            clean = lcm_map(x_t, x0, t, num_train_timesteps)
            if s is None:
                return clean
            assert noise is not None, "a step that is not the last needs noise"
            return process.add_noise(clean, noise, s)
        lowest = torch.full_like(
            t, 1 / num_train_timesteps
        )  # index 0: diffusers ends there, and not at t = 0
        target = lowest if s is None else s
        below = torch.floor((1 - self.gamma) * (target * num_train_timesteps - 1).round()) + 1
        between = below / num_train_timesteps
        landed = ddim_map(x_t, x0, eps, t, between, process)
        if s is None or self.gamma == 0:
            return landed
        assert noise is not None, "a step with gamma above 0 needs noise"
        alpha, sigma = process.weights(between)
        alpha_s, sigma_s = process.weights(s)
        kept = alpha_s / alpha
        added = (sigma_s**2 - (kept * sigma) ** 2).clamp(min=0).sqrt()
        return per_sample(kept, x_t) * landed + per_sample(added, x_t) * noise

    def adds_noise(self, is_last: bool) -> bool:
        """Whether a step adds noise."""
        return not is_last and (self.kind == "lcm" or self.gamma > 0)
