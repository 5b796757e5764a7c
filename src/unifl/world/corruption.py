"""Damaged pictures with known labels: they teach judges what a picture is that no renderer would draw.

Every damage lowers the qualities that it should lower, by a stated rule, and warping and ghosting lower
structure; so a judge does not reward noise, blur or overexposure.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unifl.world.scenes import QUALITIES

_COLOR, _LIGHTING, _DETAIL = (QUALITIES.index(q) for q in ("color", "lighting", "detail"))

_LEAST_BLUR = 0.3  # less cannot be told from the softness of a decoded picture, and would be held against it


def warp(
    images: Float[Tensor, "b 3 h w"], amount: Float[Tensor, " b"], rng: torch.Generator
) -> Float[Tensor, "b 3 h w"]:
    """Displace pixels by a smooth random field of root-mean-square length `amount` (pixels)."""
    size = images.shape[-1]
    coarse = torch.randn(len(images), 2, size // 6, size // 6, generator=rng)
    field = F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    field = field / field.square().mean((1, 2, 3), keepdim=True).sqrt() / 2**0.5
    base = F.affine_grid(torch.eye(2, 3).expand(len(images), 2, 3), list(images.shape), align_corners=False)
    offset = (field * amount[:, None, None, None] * 2 / size).permute(0, 2, 3, 1)
    return F.grid_sample(images, base + offset, padding_mode="border", align_corners=False)


def blur(images: Float[Tensor, "b 3 h w"], sigma: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
    """Gaussian blur with one width per picture, in pixels."""
    x = torch.arange(-6, 7, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-(x[None] ** 2) / (2 * sigma[:, None].clamp(min=1e-3) ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)
    flat = F.pad(images.reshape(1, -1, *images.shape[-2:]), (6, 6, 6, 6), mode="replicate")
    across = F.conv2d(flat, kernel[:, None, None, :], groups=len(kernel))
    return F.conv2d(across, kernel[:, None, :, None], groups=len(kernel)).reshape(images.shape)


def _strength(number: int, probability: float, rng: torch.Generator) -> Float[Tensor, " b"]:
    """Uniform in [0, 1] for about this part of the pictures, 0 for the others."""
    return torch.rand(number, generator=rng) * (torch.rand(number, generator=rng) < probability)


def photometric(
    images: Float[Tensor, "b 3 h w"],
    quality: Float[Tensor, "b 4"],
    rng: torch.Generator,
    *,
    part: float = 0.5,
) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 4"]]:
    """Blur, wrong exposure and grain, which leave masks as they are.

    Returns:
        pictures in [0, 1] and their qualities.
    """
    number, labels = len(images), quality.clone()
    soft = _strength(number, 0.3 * part, rng)
    soft = torch.where(soft > 0, _LEAST_BLUR + (1 - _LEAST_BLUR) * soft, soft)
    images = torch.where((soft > 0)[:, None, None, None], blur(images, 1.8 * soft), images)
    labels[:, _DETAIL] *= 1 - soft
    sign = torch.where(torch.rand(number, generator=rng) < 0.7, 1.0, -1.0)
    gain = _strength(number, 0.3 * part, rng) * sign
    images = images * (1 + 0.75 * gain)[:, None, None, None]
    labels[:, [_COLOR, _LIGHTING]] *= (1 - gain.abs())[:, None]
    grain = _strength(number, 0.35 * part, rng)
    images = images + 0.15 * grain[:, None, None, None] * torch.randn(images.shape, generator=rng)
    labels[:, [_COLOR, _LIGHTING, _DETAIL]] *= (1 - grain)[:, None]
    return images.clamp(0, 1), labels


def damage(
    images: Float[Tensor, "b 3 h w"],
    quality: Float[Tensor, "b 4"],
    rng: torch.Generator,
    *,
    part: float = 0.5,
) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 4"], Float[Tensor, " b"]]:
    """Warping and ghosting, then `photometric`; about `part` of the pictures are damaged at all.

    Returns:
        pictures in [0, 1], their qualities, and their structure (1 is undamaged).
    """
    bend = _strength(len(images), 0.45 * part, rng)
    images = warp(images, 2.2 * bend, rng)
    ghost = _strength(len(images), 0.2 * part, rng)
    images = torch.lerp(images, images.roll(1, 0), 0.6 * ghost[:, None, None, None])
    images, labels = photometric(images, quality, rng, part=part)
    return images, labels, (1 - bend) * (1 - ghost)
