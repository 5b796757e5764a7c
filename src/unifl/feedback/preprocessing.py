"""What a checkpoint's image processor does to a picture, on tensors and with a gradient.

The processor's JSON is read; the processor itself is not used: it leaves the graph, rounds to bytes, and differs with
what is installed beside transformers. Two things are done otherwise on purpose. A centre crop becomes a scaling to the
size of the crop, because annotations cover the whole picture; and where a processor would pad to a multiple, the size
is rounded to that multiple.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unifl.errors import UserError

MIN_SIDE = 32
"""Pixels below which a backbone of stride 32 has nothing left at its coarsest level."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_MODES = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}  # PIL's numbers; anything else becomes bicubic


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Scaling and normalisation of pictures in [0, 1].

    Attributes:
        model: Name for messages; no part of what is done.
        mean: Of the channels, in [0, 1].
        std: Of the channels.
        size: (height, width), a shorter side, or None for the picture's own size.
        longest: Largest longer side, where `size` is a shorter side.
        keep_aspect_ratio: With (height, width): scale both sides alike, by the factor nearer to 1 (DPT).
        multiple: Both sides become a multiple of this.
        resizes: Whether sizes may change at all.
        flips_channels: Whether it is shown blue, green, red.
        mode: Of interpolation; bilinear and bicubic with antialiasing, as PIL does.
    """

    model: str = field(repr=False)
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    size: tuple[int, int] | int | None = None
    longest: int | None = None
    keep_aspect_ratio: bool = False
    multiple: int = 1
    resizes: bool = True
    flips_channels: bool = False
    mode: str = "bilinear"

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 H W"]:
        """What the network is shown.

        Raises:
            UserError: A size that the network cannot take.
        """
        size = self.target(images.shape[-2], images.shape[-1])
        if size != tuple(images.shape[-2:]):
            smooth = self.mode in ("bilinear", "bicubic")
            images = F.interpolate(images, size=size, mode=self.mode, antialias=smooth)
            if self.mode == "bicubic":
                images = images.clamp(0, 1)  # it overshoots at edges, which bytes cannot
        mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        shown = (images - mean) / std
        return shown.flip(1) if self.flips_channels else shown

    def target(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) at which a picture of this size is shown.

        Raises:
            UserError: It would be too small, or cannot be made a multiple of what the network needs.
        """
        found = self._wanted(height, width)
        if not self.resizes and found != (height, width):
            raise UserError(
                f"{self.model} takes pictures as they are, with sides that are a multiple of {self.multiple} px, and "
                f"these have {height} x {width}; set `size` to a multiple of {self.multiple}"
            )
        if min(found) < MIN_SIDE:
            raise UserError(
                f"{self.model} would see pictures of {height} x {width} px at {found[0]} x {found[1]}, and needs at "
                f"least {MIN_SIDE} px a side; set `size` to {MIN_SIDE} or more"
            )
        return found

    def at(self, size: int | None, *, longest: int | None = None) -> Preprocessing:
        """With another shorter side, and perhaps a largest longer one; None changes nothing."""
        if size is None:
            return self
        return replace(self, size=size, longest=longest, keep_aspect_ratio=False, resizes=True)

    def _wanted(self, height: int, width: int) -> tuple[int, int]:
        if self.size is None:
            scale_y = scale_x = 1.0
        elif isinstance(self.size, int):
            scale_y = scale_x = self.size / min(height, width)
            if self.longest is not None:
                scale_y = scale_x = min(scale_y, self.longest / max(height, width))
        else:
            scale_y, scale_x = self.size[0] / height, self.size[1] / width
            if self.keep_aspect_ratio:
                scale_y = scale_x = scale_x if abs(1 - scale_x) < abs(1 - scale_y) else scale_y
        return self._rounded(scale_y * height), self._rounded(scale_x * width)

    def _rounded(self, side: float) -> int:
        if self.size is None or self.multiple == 1:  # downwards, as GLPN and the rule of the shorter side do
            return math.floor(side + 1e-6) // self.multiple * self.multiple
        return max(1, round(side / self.multiple)) * self.multiple


def read_preprocessing(settings: Mapping[str, Any], *, model: str, multiple: int = 1) -> Preprocessing:
    """The processor of a checkpoint.

    Args:
        settings: Its `preprocessor_config.json`.
        model: Name for messages.
        multiple: What the network itself needs of sides, such as its patch size.

    Raises:
        UserError: Pixels of another range than [0, 1] before normalisation, no mean and standard deviation, or a size
            that is not understood.
    """
    factor = settings.get("rescale_factor", 1 / 255)
    if not settings.get("do_rescale", True) or not math.isclose(factor, 1 / 255, rel_tol=1e-3):
        shown = "unscaled" if not settings.get("do_rescale", True) else f"times {factor}"
        raise UserError(
            f"the image processor of {model} hands over bytes {shown}, not in [0, 1]; set do_rescale to true and "
            "rescale_factor to 1/255 in its preprocessor_config.json, with mean and std to match"
        )
    mean, std = _normalisation(settings, model)
    for key in ("ensure_multiple_of", "size_divisor"):
        multiple = math.lcm(multiple, int(settings.get(key) or 1))
    resizes = bool(settings.get("do_resize", True))
    size, longest = _size(settings, model) if resizes else (None, None)
    return Preprocessing(
        model=model,
        mean=mean,
        std=std,
        size=size,
        longest=longest,
        keep_aspect_ratio=bool(settings.get("keep_aspect_ratio")),
        multiple=multiple,
        resizes=resizes,
        flips_channels=bool(settings.get("do_flip_channel_order")),
        mode=_MODES.get(settings.get("resample", 2), "bicubic"),
    )


def _normalisation(settings: Mapping[str, Any], model: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    given = settings.get("image_mean"), settings.get("image_std")
    normalises = settings.get("do_normalize")
    if normalises is None:  # left to the processor's class: those of MobileViT alone leave it out
        kind = str(settings.get("image_processor_type") or settings.get("feature_extractor_type"))
        normalises = given != (None, None) and not kind.startswith("MobileViT")
    if not normalises:
        return (0.0,) * 3, (1.0,) * 3
    if any(not isinstance(values, Sequence) or len(values) != 3 for values in given):
        raise UserError(
            f"the image processor of {model} normalises by image_mean={given[0]} and image_std={given[1]}; its "
            "preprocessor_config.json must give three numbers for each, for pixels in [0, 1]"
        )
    mean, std = (tuple(float(value) for value in values) for values in given)  # type: ignore[union-attr]
    if max(mean) > 1 or max(std) > 1:
        raise UserError(
            f"the image processor of {model} normalises by image_mean={mean} and image_std={std}, which are for bytes; "
            "divide both by 255 in its preprocessor_config.json"
        )
    return mean, std


def _size(settings: Mapping[str, Any], model: str) -> tuple[tuple[int, int] | int | None, int | None]:
    """(size, longest); a crop's size is what remains of the picture, so it counts in place of the size before it."""
    size: Any = settings.get("size")
    if settings.get("do_center_crop") and settings.get("crop_size"):
        size = settings["crop_size"]
    if isinstance(size, int):  # as written by old versions
        longest = settings.get("max_size")
        return (size, int(longest)) if longest else ((size, size), None)
    if not size:
        return None, None
    if size.get("shortest_edge"):
        return int(size["shortest_edge"]), size.get("longest_edge")
    if not (size.get("height") and size.get("width")):
        raise UserError(
            f"the image processor of {model} scales to {size}, which is not understood; its preprocessor_config.json "
            "must give a height and a width, or a shortest_edge"
        )
    return (int(size["height"]), int(size["width"])), None
