"""Guidance in training: none, a fixed scale, or a scale drawn anew at every step or for every sample.

One convention everywhere: u + w (c - u), so w = 1 is no guidance and costs one evaluation instead of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unifl.errors import UserError
from unifl.randomness import Key


@dataclass(kw_only=True)
class NoGuidance:
    """w = 1."""

    kind: Literal["none"] = "none"


@dataclass(kw_only=True)
class FixedGuidance:
    """The same w at every step."""

    kind: Literal["fixed"] = "fixed"
    scale: float = 3.0
    """w; 1 is no guidance."""

    def __post_init__(self) -> None:
        _check(self.scale)


@dataclass(kw_only=True)
class RangeGuidance:
    """w uniform over [low, high], one draw per training step."""

    kind: Literal["range"] = "range"
    low: float = 1.0
    """Smallest w."""
    high: float = 3.0
    """Largest w."""

    def __post_init__(self) -> None:
        _check(self.low)
        if self.high < self.low:
            raise UserError(f"guidance range [{self.low}, {self.high}] is empty; high must be at least low")


Guidance = NoGuidance | FixedGuidance | RangeGuidance


def draw_guidance(guidance: Guidance, key: Key, purpose: str) -> float:
    """The scale w of this step, the same for all samples and processes."""
    if isinstance(guidance, FixedGuidance):
        return guidance.scale
    if isinstance(guidance, RangeGuidance):
        return guidance.low + (guidance.high - guidance.low) * key.shared_uniform(purpose)
    return 1.0


def draw_guidance_each(
    guidance: Guidance, key: Key, purpose: str, *, device: torch.device | None = None
) -> Float[Tensor, " b"] | float:
    """The scale w of each sample, for distillation; the plain number 1 where there is no guidance at all.

    Args:
        guidance: A range is drawn from for every sample.
        key: Address of the draw.
        purpose: Its name.
        device: Where the scales are wanted.
    """
    if halves(guidance) == 1:
        return 1.0
    if isinstance(guidance, RangeGuidance):
        return (guidance.low + (guidance.high - guidance.low) * key.uniform(purpose)).to(device)
    assert isinstance(guidance, FixedGuidance)
    return torch.full((len(key),), float(guidance.scale), device=device)


def halves(guidance: Guidance) -> int:
    """How many samples one evaluation passes through the network per picture: 2 with guidance, 1 without."""
    if isinstance(guidance, FixedGuidance):
        return 1 if guidance.scale == 1 else 2
    if isinstance(guidance, RangeGuidance):
        return 1 if guidance.low == guidance.high == 1 else 2
    return 1


def _check(scale: float) -> None:
    if not scale >= 0:
        raise UserError(f"guidance is {scale}; it must be 0 or more (1 is no guidance)")
