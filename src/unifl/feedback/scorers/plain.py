"""Readings of a picture that need no weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unifl.feedback.base import Space


class Colourfulness:
    """How colourful a picture is (Hasler and Suesstrunk, Human Vision and Electronic Imaging VIII, 2003, M3).

        sqrt(s_rg^2 + s_yb^2) + 0.3 sqrt(m_rg^2 + m_yb^2),   rg = R - G,   yb = (R + G) / 2 - B

    of bytes, so that 0 is grey, 45 fairly and 109 extremely colourful in the words of their observers.
    """

    name: str = "colourfulness"
    space: Space = "pixel"
    differentiable: bool = True
    needs: frozenset[str] = frozenset()
    range: tuple[float, float] | None = None

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """One number per picture; prompts are ignored."""
        red, green, blue = (255 * images).flatten(2).unbind(1)
        opponents = torch.stack([red - green, (red + green) / 2 - blue])
        spread = opponents.var(-1, correction=0).sum(0)
        shift = opponents.mean(-1).square().sum(0)
        # the root has no slope at 0, where a grey picture is
        return (spread + 1e-12).sqrt() + 0.3 * (shift + 1e-12).sqrt()


class Sharpness:
    """The variance of the Laplacian of the brightness, times 1000: 0 where nothing changes from pixel to pixel.

    An old measure of focus (Pech-Pacheco et al., ICPR 2000). Noise and halos count as sharpness too, which is why a
    model that climbs it should be watched.
    """

    name: str = "sharpness"
    space: Space = "pixel"
    differentiable: bool = True
    needs: frozenset[str] = frozenset()
    range: tuple[float, float] | None = None

    def __call__(self, images: Float[Tensor, "b 3 h w"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        """One number per picture; prompts are ignored."""
        weights = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        kernel = images.new_tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
        edges = F.conv2d((images * weights).sum(1, keepdim=True), kernel)
        return 1000 * edges.flatten(1).var(-1, correction=0)
