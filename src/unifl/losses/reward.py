"""Losses that raise a differentiable reward."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from unifl.losses.precision import at_least_float32


def hinge(reward: Float[Tensor, " b"], level: float | Float[Tensor, ""]) -> Float[Tensor, " b"]:
    """How far the reward stays below a level: ReLU(level - reward).

    Samples at or above the level give no gradient, which limits over-optimisation.

    Args:
        reward: one score per sample, higher is better.
        level: on the reward's own scale; UniFL takes the mean reward of preferred validation samples.

    Reference:
        UniFL, arXiv 2404.05595, eq. 5, one axis.
    """
    return torch.relu(level - at_least_float32(reward))


def refl_margin(reward: Float[Tensor, " b"], margin: float = 2.0) -> Float[Tensor, " b"]:
    """The hinge of ReFL's published code: ReLU(margin - reward), before its factor of 1e-3.

    Args:
        reward: one score per sample; the default margin assumes mean 0 and standard deviation 1.
        margin: level above which nothing is gained.

    Reference:
        Xu et al., ImageReward, arXiv 2304.05977, and the training script that accompanies it.
    """
    return hinge(reward, margin)
