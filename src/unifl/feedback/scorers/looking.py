"""How a scorer is shown a picture, in torch, with a gradient.

Most originals scale bytes, with Pillow. Here pictures are scaled as numbers; without rounding the result differs from
theirs by at most a few 255ths (docs/scorers.md), and with `rounds` by what is left of that, but without a gradient.
HPS v2, whose originals pad, makes numbers of the bytes first and then scales those, as it is done here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unifl.errors import UserError

Fit = Literal["crop", "pad", "squash"]
Half = Literal["down", "even"]

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_MODES: Mapping[int, str] = {2: "bilinear", 3: "bicubic"}  # PIL's numbers


@dataclass(frozen=True, kw_only=True)
class Looking:
    """Scaling of pictures in [0, 1] to a square, and normalisation.

    Attributes:
        size: Pixels along each side.
        fit: crop: the shorter side becomes `size`, and the middle is cut out. pad: the longer side does, and the rest
            is black. squash: both sides do, whatever the picture's shape.
        half: Where half of what crop cuts off is no whole number: down, as the image processors of transformers, or
            the even neighbour, as torchvision.
        mean: Of the channels.
        std: Of the channels.
        mode: Of interpolation.
        antialias: Whether pictures are smoothed as they are made smaller.
        rounds: To 255ths after scaling, as the originals that scale bytes; no gradient passes.
    """

    size: int
    fit: Fit = "crop"
    half: Half = "down"
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    mode: str = "bicubic"
    antialias: bool = True
    rounds: bool = False

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
        """What the network is shown."""
        shown = self._scaled(images)
        if self.rounds:
            shown = (shown * 255).round() / 255
        shown = self._cut(shown) if self.fit == "crop" else self._padded(shown)
        mean, std = (shown.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (shown - mean) / std

    def _scaled(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if self.fit == "squash":
            target = (self.size, self.size)
        elif self.fit == "crop":
            shorter = min(height, width)
            target = (self.size * height // shorter, self.size * width // shorter)
        else:
            scale = self.size / max(height, width)
            target = (max(1, round(height * scale)), max(1, round(width * scale)))
        if target == (height, width):
            return images
        scaled = F.interpolate(images, size=target, mode=self.mode, antialias=self.antialias)
        # it overshoots at edges, which bytes cannot
        return scaled if self.fit == "pad" else scaled.clamp(0, 1)

    def _cut(self, images: Tensor) -> Tensor:
        half = round if self.half == "even" else math.floor
        top, left = (half((side - self.size) / 2) for side in images.shape[-2:])
        return images[..., top : top + self.size, left : left + self.size]

    def _padded(self, images: Tensor) -> Tensor:
        spare_y, spare_x = (self.size - side for side in images.shape[-2:])
        return F.pad(images, (spare_x // 2, spare_x - spare_x // 2, spare_y // 2, spare_y - spare_y // 2))


def looking_of(settings: Mapping[str, Any], *, model: str, fit: Fit | None = None) -> Looking:
    """What a `preprocessor_config.json` of CLIP or SigLIP asks for.

    Args:
        settings: Of that file.
        model: Name for messages.
        fit: In place of the processor's own.

    Raises:
        UserError: Sizes that are no square, a crop of less than the shorter side, or pixels of another range than
            [0, 1] before normalisation.
    """
    factor = settings.get("rescale_factor", 1 / 255)
    if not math.isclose(factor, 1 / 255, rel_tol=1e-3):
        raise UserError(
            f"the image processor of {model} multiplies bytes by {factor}; only 1/255 is understood"
        )
    crops = bool(settings.get("do_center_crop"))
    size = settings.get("crop_size" if crops else "size")
    sides = {size} if isinstance(size, int) else set((size or {}).values())
    if len(sides) != 1:
        raise UserError(
            f"the image processor of {model} scales to {size}, which is no square; a scorer needs one"
        )
    side = int(sides.pop())
    if fit is None:
        fit = "crop" if crops else "squash"
        _require_fit(settings, fit, side, model)
    return Looking(
        size=side,
        fit=fit,
        mean=tuple(settings.get("image_mean", CLIP_MEAN)),
        std=tuple(settings.get("image_std", CLIP_STD)),
        mode=_MODES.get(settings.get("resample", 3), "bicubic"),
    )


def _require_fit(settings: Mapping[str, Any], fit: Fit, side: int, model: str) -> None:
    size = settings.get("size")
    shorter = size.get("shortest_edge") if isinstance(size, Mapping) else size
    if fit == "crop" and shorter not in (side, None):
        raise UserError(
            f"the image processor of {model} scales the shorter side to {shorter} and cuts out {side}; only a crop of "
            "all of the shorter side is understood, so set both alike in its preprocessor_config.json"
        )
    if fit == "squash" and isinstance(size, Mapping) and "shortest_edge" in size:
        raise UserError(
            f"the image processor of {model} scales the shorter side to {shorter} and cuts out nothing; set "
            "do_center_crop and crop_size, or height and width, in its preprocessor_config.json"
        )


def settings_of(looking: Looking) -> dict[str, Any]:
    """The `preprocessor_config.json` from which `looking_of` reads the same.

    Raises:
        UserError: It pads, cuts as torchvision or does not smooth, which no processor of CLIP is told to.
    """
    square = {"height": looking.size, "width": looking.size}
    crops = looking.fit == "crop"
    found = {
        "do_resize": True,
        "size": {"shortest_edge": looking.size} if crops else square,
        "resample": next(number for number, mode in _MODES.items() if mode == looking.mode),
        "do_center_crop": crops,
        **({"crop_size": square} if crops else {}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(looking.mean),
        "image_std": list(looking.std),
    }
    if looking_of(found, model="it") != looking:
        raise UserError(f"no image processor shows pictures as {looking} does; use crop or squash")
    return found
