"""A look at the pictures of preference data before anything long starts, and at the masks that belong to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor

from unifl.data.pictures import fit_picture
from unifl.data.preferences.index import PreferenceIndex
from unifl.data.preferences.places import Places
from unifl.data.preferences.scored_forms import JudgedIndex
from unifl.errors import UserError

Index = TypeVar("Index", PreferenceIndex, JudgedIndex)


@dataclass(frozen=True)
class Looked:
    """What was seen of pictures.

    Attributes:
        sizes: (height, width) by picture; 0 where it was not looked at or cannot be read.
        errors: Why a picture cannot be read, by its number.
    """

    sizes: Int32[np.ndarray, "p 2"]
    errors: dict[int, str]

    def unreadable(self, pictures: Int64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Which of some pictures cannot be read."""
        return self.sizes[pictures, 0] == 0

    def why(self, index: PreferenceIndex, row: int) -> str:
        """What is wrong with a pair of which a picture cannot be read."""
        pictures = (int(index.win[row]), int(index.lose[row]))
        return next(self.errors[picture] for picture in pictures if picture in self.errors)

    def difference(self, index: PreferenceIndex, row: int) -> str:
        """How the pictures of a pair differ in size."""
        win, lose = (shown_size(self.sizes[int(pictures[row])]) for pictures in (index.win, index.lose))
        return f"its pictures have {win} and {lose}; set a resolution"


def check_pictures(places: Places, pictures: Int64[np.ndarray, " m"]) -> Looked:
    """Read pictures once each, in the order in which they lie on the disk, without decoding them more than needed.

    Args:
        places: Where pictures are.
        pictures: Which of them; the same may occur again.
    """
    numbers = np.unique(pictures)
    sizes, errors = np.zeros((len(places), 2), np.int32), {}
    for picture in numbers[places.in_order(numbers)].tolist():
        try:
            sizes[picture] = places.check(picture)
        except UserError as error:
            errors[picture] = str(error)
    return Looked(sizes, errors)


def require_equal(places: Places, pictures: Int64[np.ndarray, " m"]) -> None:
    """Refuse pictures that cannot be stacked.

    Raises:
        UserError: The first whose size is not that of the first picture.
    """
    numbers = np.unique(pictures)
    ordered = numbers[places.in_order(numbers)].tolist()
    size = places.size(ordered[0])
    for picture in ordered[1:]:
        found = places.size(picture)
        if found != size:
            raise UserError(
                f"{places.name(ordered[0])} has {shown_size(size)} and {places.name(picture)} has "
                f"{shown_size(found)}; set `resolution` to bring pictures to one size"
            )


def without(
    index: Index, wrong: Bool[np.ndarray, " n"], told: Sequence[str], what: str, skip: bool
) -> tuple[Index, list[str]]:
    """Leave out rows, or refuse to.

    Args:
        index: All rows.
        wrong: Which cannot be used.
        told: Why, one per such row.
        what: What they are.
        skip: Whether they may be left out.

    Raises:
        UserError: They may not; with their number and the first.
    """
    if told and not skip:
        raise UserError(
            f"{len(told)} of {len(index)} {what} of {index.shown} cannot be used; the first is {told[0]} (or leave "
            "them out with skip_unreadable)"
        )
    return (index.take(~wrong) if told else index), list(told)


def masks_of(
    index: PreferenceIndex, row: int, size: tuple[int, int], resolution: int | None
) -> tuple[Float[Tensor, "h w"] | None, Float[Tensor, "h w"] | None]:
    """The masks of a pair in the size of its pictures.

    Raises:
        UserError: A mask that cannot be read, or of another size.
    """
    if index.masks is None:
        return None, None
    masks = index.masks

    def read(number: int) -> Float[Tensor, "h w"] | None:
        if number < 0:
            return None
        picture = fit_picture(masks.places.picture(number).convert("L"), resolution)
        if (picture.height, picture.width) != size:
            raise UserError(
                f"the mask {masks.places.name(number)} has {shown_size((picture.height, picture.width))} and its "
                f"picture {shown_size(size)}; draw it at the picture's size"
            )
        return torch.from_numpy(np.array(picture, dtype=np.float32)) / 255

    return read(int(masks.win[row])), read(int(masks.lose[row]))


def shown_size(size: Sequence[int] | Int32[np.ndarray, " 2"]) -> str:
    """Height x width, in words."""
    return f"{size[0]} x {size[1]} px"
