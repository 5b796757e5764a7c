"""Times to visit, and the mapping between t in [0, 1] and the integer timesteps of diffusers."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unifl.errors import UserError

Spacing = Literal["leading", "trailing"]


def time_grid(
    num_steps: int,
    spacing: Spacing,
    num_train_timesteps: int = 1000,
    steps_offset: int = 1,
) -> Float[Tensor, " points"]:
    """The times of a sampler with `num_steps` network evaluations, from noise to data.

    With trailing spacing the first time is 1 (the last index); with leading spacing it lies below 1 and
    `steps_offset` is added to every index (Lin et al., arXiv 2305.08891, table 2). The indices are those of
    diffusers' DDIMScheduler and EulerDiscreteScheduler. For some n (61 of 1000 is the first) rounding gives
    their trailing grid one entry too many, the index -1; it is not visited here.

    Args:
        num_steps: number of evaluations n, 1 to T.
        spacing: "leading" or "trailing".
        num_train_timesteps: T of the model.
        steps_offset: added to leading indices (1 for Stable Diffusion); trailing ignores it.

    Returns:
        float32, shape (n + 1,), strictly falling; the first n are (i + 1) / T, the last is 0.

    Raises:
        UserError: num_steps outside 1..T, an unknown spacing, or an offset that leads past the last index.
    """
    if not 1 <= num_steps <= num_train_timesteps:
        raise UserError(
            f"num_steps is {num_steps}; choose 1 to {num_train_timesteps} (the model's timesteps)"
        )
    if spacing == "trailing":
        # rint rounds halves to even, as diffusers does
        indices = np.rint(num_train_timesteps * np.arange(num_steps, 0, -1) / num_steps) - 1
    elif spacing == "leading":
        indices = np.arange(num_steps)[::-1] * (num_train_timesteps // num_steps) + steps_offset
    else:
        raise UserError(f"unknown spacing {spacing!r}; choose 'leading' or 'trailing'")
    if indices[0] >= num_train_timesteps or indices[-1] < 0:
        raise UserError(
            f"{num_steps} {spacing} steps with steps_offset={steps_offset} leave the indices 0 to "
            f"{num_train_timesteps - 1}; use spacing 'trailing', fewer steps or another offset"
        )
    times = (indices + 1) / num_train_timesteps
    return torch.tensor([*times, 0.0], dtype=torch.float32)


def time_of_index(index: Tensor, num_train_timesteps: int = 1000) -> Float[Tensor, "..."]:
    """The time (i + 1) / T of a discrete index i of any dtype, as float32 of the same shape."""
    return (index.to(torch.float32) + 1) / num_train_timesteps


def index_of_time(t: Float[Tensor, "..."], num_train_timesteps: int = 1000) -> Float[Tensor, "..."]:
    """The timestep that a diffusers network expects at t: i = t T - 1.

    Times of the grid give whole numbers exactly; times between grid points give fractions, which the
    sinusoidal embedding of a UNet takes. Below t = 1 / T the result is 0: the network knows nothing cleaner.

    Args:
        t: times in [0, 1].
        num_train_timesteps: T of the model.

    Returns:
        Same shape, dtype and device as t, in [0, T - 1].
    """
    position = t * num_train_timesteps - 1
    whole = position.round()
    return torch.where((position - whole).abs() < 1e-3, whole, position).clamp(min=0)
