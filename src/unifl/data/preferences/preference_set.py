"""Preference data as rows that methods read; pictures are opened when a row is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import numpy as np
from jaxtyping import Float
from torch import Tensor

from unifl.data.judged import Judged
from unifl.data.pairs import Pair
from unifl.data.pictures import fit_picture, to_tensor
from unifl.data.preferences.checks import check_pictures, masks_of, require_equal, shown_size, without
from unifl.data.preferences.filters import Filters, Ties, select
from unifl.data.preferences.forms import read_preferences
from unifl.data.preferences.index import PreferenceIndex
from unifl.data.preferences.scored_forms import JudgedIndex
from unifl.errors import UserError


class PreferenceSet:
    """Comparisons by row, as `Pair`.

    Args:
        index: Which comparisons; see `read_preferences` and `select`.
        resolution: Side in px of the centre square that every picture is scaled to; None leaves sizes alone.

    Attributes:
        left_out: Comparisons whose pictures could not be used, where they were skipped.

    Raises:
        UserError: Nothing is left.
    """

    def __init__(self, index: PreferenceIndex, *, resolution: int | None = None) -> None:
        if not len(index):
            raise UserError(_nothing_left(index))
        self.index = index
        self.resolution = resolution
        self.left_out: list[str] = []

    @classmethod
    def from_path(
        cls,
        path: str | Sequence[str],
        *,
        filters: Filters | None = None,
        ties: Ties = "drop",
        allow_duplicates: bool = True,
        resolution: int | None = None,
    ) -> PreferenceSet:
        """Index data and select from them; see `read_preferences` and `select`.

        Raises:
            UserError: The data are no pairs, or nothing is left.
        """
        index = read_preferences(path)
        if not isinstance(index, PreferenceIndex):
            raise UserError(f"{index.shown} holds likes, which are no pairs; read them with JudgedSet")
        chosen, _ = select(index, filters or Filters(), ties=ties, allow_duplicates=allow_duplicates)
        return cls(chosen, resolution=resolution)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.index)

    def __getitem__(self, row: int) -> Pair:
        """One pair with its pictures.

        Raises:
            UserError: A picture cannot be read, or the two are of different sizes; with the row.
        """
        index = self.index
        if not 0 <= row < len(self):
            raise IndexError(row)
        win, lose = (self.image(int(pictures[row])) for pictures in (index.win, index.lose))
        if win.shape != lose.shape:
            sizes = " and ".join(shown_size(picture.shape[1:]) for picture in (win, lose))
            raise UserError(f"the pictures of {self.name(row)} have {sizes}; set a resolution")
        prompt, axis, user = (texts.at(row) for texts in (index.prompts, index.axes, index.users))
        win_mask, lose_mask = masks_of(index, row, (win.shape[1], win.shape[2]), self.resolution)
        return Pair(
            prompt=prompt or "",
            win=win,
            lose=lose,
            axis=axis,
            tie=bool(index.tie[row]),
            strength=float(index.strength[row]),
            win_mask=win_mask,
            lose_mask=lose_mask,
            user=user,
        )

    @property
    def users(self) -> list[str | None]:
        """Who chose, each once, and None where some pair does not say; no picture is read."""
        return self.index.who()

    @property
    def has_masks(self) -> bool:
        """Whether any pair says where it was won; no picture is read."""
        return self.index.masks is not None

    def name(self, row: int) -> str:
        """What errors call a pair."""
        return self.index.name(row)

    def at(self, resolution: int | None) -> PreferenceSet:
        """The same pairs at another resolution."""
        other = copy(self)
        other.resolution = resolution
        return other

    def checked(self, *, skip_unreadable: bool = False, sizes: bool = True) -> PreferenceSet:
        """Look at every picture once, in the order in which they lie on the disk.

        Args:
            skip_unreadable: Leave out pairs whose pictures cannot be read or, without a resolution, differ in size;
                they are then named in `left_out`.
            sizes: Whether the two pictures of a pair must be of one size, where there is no resolution.

        Raises:
            UserError: How many such pairs there are and what the first is, or none is left.
        """
        index = self.index
        found = check_pictures(index.pictures, np.concatenate([index.win, index.lose]))
        wrong = found.unreadable(index.win) | found.unreadable(index.lose)
        told = [f"{index.name(row)}: {found.why(index, row)}" for row in np.flatnonzero(wrong).tolist()]
        if sizes and self.resolution is None:
            odd = ~wrong & (found.sizes[index.win] != found.sizes[index.lose]).any(1)
            told += [
                f"{index.name(row)}: {found.difference(index, row)}" for row in np.flatnonzero(odd).tolist()
            ]
            wrong |= odd
        kept, left_out = without(index, wrong, told, "pairs", skip_unreadable)
        other = PreferenceSet(kept, resolution=self.resolution)
        other.left_out = left_out
        return other

    def require_one_size(self) -> None:
        """Check that pictures can be stacked.

        Raises:
            UserError: Two pictures of different sizes and no resolution that both are scaled to.
        """
        if self.resolution is None:
            require_equal(self.index.pictures, np.concatenate([self.index.win, self.index.lose]))

    def image(self, picture: int) -> Float[Tensor, "3 h w"]:
        """One picture of the index, by its number."""
        return to_tensor(fit_picture(self.index.pictures.picture(picture), self.resolution))


class JudgedSet:
    """Judged pictures by row, as `Judged`.

    Args:
        index: Which pictures; see `read_preferences`.
        resolution: Side in px of the centre square that every picture is scaled to; None leaves sizes alone.

    Attributes:
        left_out: Rows whose picture could not be read, where they were skipped.

    Raises:
        UserError: Nothing is left.
    """

    def __init__(self, index: JudgedIndex, *, resolution: int | None = None) -> None:
        if not len(index):
            raise UserError(_nothing_left(index))
        self.index = index
        self.resolution = resolution
        self.left_out: list[str] = []

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.index)

    def __getitem__(self, row: int) -> Judged:
        """One picture with its score.

        Raises:
            UserError: It cannot be read.
        """
        if not 0 <= row < len(self):
            raise IndexError(row)
        index = self.index
        picture = fit_picture(index.pictures.picture(int(index.picture[row])), self.resolution)
        return Judged(index.prompts.at(row) or "", to_tensor(picture), float(index.score[row]))

    @property
    def scores(self) -> list[float]:
        """The score of every row; no picture is read."""
        return [float(score) for score in self.index.score]

    def name(self, row: int) -> str:
        """What errors call a row."""
        return self.index.name(row)

    def at(self, resolution: int | None) -> JudgedSet:
        """The same rows at another resolution."""
        other = copy(self)
        other.resolution = resolution
        return other

    def checked(self, *, skip_unreadable: bool = False, sizes: bool = True) -> JudgedSet:
        """Look at every picture once.

        Args:
            skip_unreadable: Leave out rows whose picture cannot be read; they are then named in `left_out`.
            sizes: For pairs; nothing is compared here.

        Raises:
            UserError: How many such rows there are and what the first is, or none is left.
        """
        index = self.index
        found = check_pictures(index.pictures, index.picture)
        wrong = found.unreadable(index.picture)
        why = [
            f"{index.name(row)}: {found.errors[int(index.picture[row])]}"
            for row in np.flatnonzero(wrong).tolist()
        ]
        kept, left_out = without(index, wrong, why, "rows", skip_unreadable)
        other = JudgedSet(kept, resolution=self.resolution)
        other.left_out = left_out
        return other

    def require_one_size(self) -> None:
        """See `PreferenceSet.require_one_size`."""
        if self.resolution is None:
            require_equal(self.index.pictures, self.index.picture)


def _nothing_left(index: PreferenceIndex | JudgedIndex) -> str:
    left_out = index.left_out
    return (
        f"{index.shown} has no usable row: of {left_out.read}, {left_out.missing} have no label, {left_out.identical} "
        "compare a picture with itself, and the rest are ties or were filtered out; loosen the filters, or keep ties"
    )
