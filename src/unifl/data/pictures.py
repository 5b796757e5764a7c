"""Picture files as tensors, with errors that name the file."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from unifl.errors import UserError

# all of these come out of PIL
_UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def read_picture(source: Path | bytes, *, name: str | None = None) -> Image.Image:
    """Open and decode a picture as RGB.

    Args:
        source: A file, or the bytes of one.
        name: What an error calls it; the path by default.

    Raises:
        UserError: It cannot be decoded.
    """
    try:
        with _opened(source) as picture:
            return picture.convert("RGB")
    except _UNREADABLE as error:
        raise _unreadable(source, name, error) from error


def read_map(path: Path) -> Image.Image:
    """Open a picture whose values are classes (8-bit grey or palette, or 16-bit grey), as it is stored.

    Raises:
        UserError: It cannot be decoded or has colour channels.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            found = picture.copy()
    except _UNREADABLE as error:
        raise UserError(f"cannot read the map {path}: {error}; replace or remove it") from error
    if found.mode not in ("L", "P", "I", "I;16", "1"):
        raise UserError(f"the map {path} has colour channels ({found.mode}); store one class index per pixel")
    return found


def picture_size(source: Path | bytes, *, name: str | None = None) -> tuple[int, int]:
    """(height, width) from the header alone.

    Args:
        source: A file, or the bytes of one.
        name: What an error calls it; the path by default.

    Raises:
        UserError: It is missing or not a picture.
    """
    try:
        with _opened(source) as picture:
            return picture.height, picture.width
    except _UNREADABLE as error:
        raise _unreadable(source, name, error) from error


def check_picture(source: Path | bytes, *, name: str | None = None) -> tuple[int, int]:
    """Check that a file is a whole picture; returns (height, width).

    A PNG is checked by its checksums, which spares the decoding; other formats have none and are decoded, JPEG
    at an eighth of its size.

    Args:
        source: A file, or the bytes of one.
        name: What an error calls it; the path by default.

    Raises:
        UserError: It is missing, not a picture, or damaged.
    """
    try:
        with _opened(source) as picture:
            width, height = picture.size
            if picture.format == "PNG":
                picture.verify()
            else:
                picture.draft("RGB", (max(1, width // 8), max(1, height // 8)))
                picture.load()
    except _UNREADABLE as error:
        raise _unreadable(source, name, error) from error
    return height, width


def to_tensor(picture: Image.Image) -> Float[Tensor, "3 h w"]:
    """An RGB picture as float32 in [0, 1]."""
    return torch.from_numpy(np.array(picture, dtype=np.float32)).permute(2, 0, 1).contiguous() / 255


def map_to_tensor(picture: Image.Image) -> Int64[Tensor, "h w"]:
    """A picture of class indices as integers."""
    return torch.from_numpy(np.array(picture).astype(np.int64))


def fit_picture(picture: Image.Image, resolution: int | None, *, nearest: bool = False) -> Image.Image:
    """Scale the shorter side to `resolution` px and cut the centre square; None leaves the picture alone.

    Args:
        picture: Any size.
        resolution: Side of the result in px.
        nearest: Take the nearest pixel, for masks and class maps; otherwise Lanczos.
    """
    if resolution is None or picture.size == (resolution, resolution):
        return picture
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    how = Image.Resampling.NEAREST if nearest else Image.Resampling.LANCZOS
    return picture.resize((resolution, resolution), how, box=(left, top, left + side, top + side))


def visible_instances(
    masks: Bool[Tensor, "n h w"], labels: Int64[Tensor, " n"]
) -> tuple[Bool[Tensor, "m h w"], Int64[Tensor, " m"]]:
    """Instances of which something is left: others lie outside what was cut out, or vanished in scaling."""
    seen = masks.flatten(1).any(1)
    return masks[seen], labels[seen]


def _opened(source: Path | bytes) -> Image.Image:
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)


def _unreadable(source: Path | bytes, name: str | None, error: Exception) -> UserError:
    shown = name or ("in memory" if isinstance(source, bytes) else str(source))
    # PIL's own words name the object in memory, by its address
    why = (
        "it is no picture"
        if isinstance(error, UnidentifiedImageError) and isinstance(source, bytes)
        else error
    )
    return UserError(f"cannot read the image {shown}: {why}; replace or remove it")


def require_equal_sizes(
    number: int, size_of: Callable[[int], tuple[int, int]], name_of: Callable[[int], str]
) -> None:
    """Refuse pictures that cannot be stacked.

    Args:
        number: Of pictures.
        size_of: Size of each in pixels.
        name_of: What a message calls it.

    Raises:
        UserError: The first whose size is not that of the first picture.
    """
    for index in range(1, number):
        if size_of(index) != size_of(0):
            raise UserError(
                f"{name_of(0)} has {size_of(0)} px and {name_of(index)} has {size_of(index)} px; "
                "set `resolution` to bring pictures to one size"
            )
