"""A denoiser that is told its guidance scale in place of being guided (Meng et al., arXiv 2210.03142).

diffusers keeps such a projection as `time_cond_proj_dim`: the embedding of the scale is projected and added to that of
the timestep, and a pipeline whose UNet has one evaluates no unconditional half.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

WIDTH = 256
"""Of the embedding that is added; the width of the published latent consistency models."""


def guidance_width(unet: Any) -> int:
    """Width of the embedding of guidance that a UNet takes; 0 for one that takes none."""
    return int(unet.config.get("time_cond_proj_dim") or 0)


def add_guidance_embedding(unet: Any, width: int = WIDTH) -> None:
    """Give a UNet the projection, in place; it starts at zero, so that the model is unchanged.

    Published code draws its first values at random, and the student then begins beside its teacher.

    Args:
        unet: A `UNet2DConditionModel` without one.
        width: Of the embedding, even.
    """
    into = unet.time_embedding.linear_1
    projection = nn.Linear(
        width, into.in_features, bias=False, device=into.weight.device, dtype=into.weight.dtype
    )
    nn.init.zeros_(projection.weight)
    unet.time_embedding.cond_proj = projection
    unet.register_to_config(time_cond_proj_dim=width)


def guidance_embedding(scale: Float[Tensor, " b"], width: int) -> Float[Tensor, "b width"]:
    """Sines, then cosines, of 1000 (w - 1) at frequencies from 1 down to 1 / 10000.

    Args:
        scale: w of u + w (c - u), one per sample; diffusers' guidance_scale.
        width: Even.

    Reference:
        Equal to `get_guidance_scale_embedding(w - 1)` of the diffusers pipelines (float32).
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=scale.device)
    frequencies = torch.exp(steps * (-math.log(10000.0) / (half - 1)))
    angles = 1000 * (scale.float() - 1)[:, None] * frequencies[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)
