"""Preference data whose pictures were encoded once.

A picture is encoded once per prompt, however many pairs show it, in the order in which pictures lie on the disk. The
cache is a folder of `unifl.data.encode`, and beside its files `pictures.npy`, of which pictures it is, and
`pictures.json`, which of them could not be read. An interrupted run goes on where it stopped, and a finished cache
serves every selection of its rows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from unifl.data.encode import encode_source
from unifl.data.encoded import EncodedPictures
from unifl.data.judged import EncodedJudged
from unifl.data.manifest import CacheType
from unifl.data.pairs import EncodedPair
from unifl.data.preferences.checks import masks_of, without
from unifl.data.preferences.index import PreferenceIndex
from unifl.data.preferences.preference_set import JudgedSet, PreferenceSet
from unifl.data.preferences.scored_forms import JudgedIndex
from unifl.data.preferences.shown_pictures import ShownPictures
from unifl.errors import UserError
from unifl.models.generator import Generator


class EncodedPairs:
    """Pairs by row, as `EncodedPair`; made by `encode_preferences`.

    Attributes:
        index: Which comparisons.
        cache: Of their pictures.
        left_out: Pairs whose pictures could not be read, where they were skipped.
    """

    def __init__(
        self,
        index: PreferenceIndex,
        cache: EncodedPictures,
        win: Int64[np.ndarray, " n"],
        lose: Int64[np.ndarray, " n"],
        left_out: list[str],
        resolution: int | None,
    ) -> None:
        self.index, self.cache, self.left_out = index, cache, left_out
        self._win, self._lose, self._resolution = win, lose, resolution

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.index)

    def __getitem__(self, row: int) -> EncodedPair:
        """Read one pair.

        Raises:
            UserError: A file of the cache, or a mask, cannot be read.
        """
        if not 0 <= row < len(self):
            raise IndexError(row)
        index = self.index
        height, width = self.cache.manifest.sizes[0]
        win_mask, lose_mask = masks_of(index, row, (height, width), self._resolution)
        return EncodedPair(
            prompt=index.prompts.at(row) or "",
            win=self.cache[int(self._win[row])],
            lose=self.cache[int(self._lose[row])],
            axis=index.axes.at(row),
            tie=bool(index.tie[row]),
            strength=float(index.strength[row]),
            win_mask=win_mask,
            lose_mask=lose_mask,
            user=index.users.at(row),
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

    def check(self, generator: Generator) -> None:
        """See `EncodedPictures.check`."""
        self.cache.check(generator)


class EncodedJudgedSet:
    """Judged pictures by row, as `EncodedJudged`; made by `encode_preferences`.

    Attributes:
        index: Which pictures, with their scores.
        cache: Of the pictures.
        left_out: Rows whose picture could not be read, where they were skipped.
    """

    def __init__(
        self,
        index: JudgedIndex,
        cache: EncodedPictures,
        picture: Int64[np.ndarray, " n"],
        left_out: list[str],
    ) -> None:
        self.index, self.cache, self.left_out = index, cache, left_out
        self._picture = picture

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.index)

    def __getitem__(self, row: int) -> EncodedJudged:
        """Read one row.

        Raises:
            UserError: A file of the cache cannot be read.
        """
        if not 0 <= row < len(self):
            raise IndexError(row)
        return EncodedJudged(self.cache[int(self._picture[row])], float(self.index.score[row]))

    @property
    def scores(self) -> list[float]:
        """The score of every row; the cache is not read."""
        return [float(score) for score in self.index.score]

    def name(self, row: int) -> str:
        """What errors call a row."""
        return self.index.name(row)

    def check(self, generator: Generator) -> None:
        """See `EncodedPictures.check`."""
        self.cache.check(generator)


def encode_preferences(
    generator: Generator,
    rows: PreferenceSet | JudgedSet,
    folder: str | Path,
    *,
    batch_size: int = 8,
    rows_per_shard: int = 1000,
    dtype: CacheType = "float32",
    with_text: bool = False,
    skip_unreadable: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> EncodedPairs | EncodedJudgedSet:
    """Encode the pictures of preference data, or go on with it, or find that it is done.

    Args:
        generator: Whose autoencoder and text encoders encode.
        rows: Pairs or judged pictures, at the model's resolution.
        folder: Where files go; one folder per data, encoder and resolution. If it holds all of these pictures and
            more, it is read as it is.
        batch_size: See `encode_source`.
        rows_per_shard: See `encode_source`.
        dtype: See `encode_source`.
        with_text: See `encode_source`.
        skip_unreadable: Leave out rows whose pictures cannot be read or have another size than the model's; black is
            encoded in their place, and they are named in `left_out`.
        progress: Called with (pictures done, pictures).

    Raises:
        UserError: See `encode_source`; the folder is of other pictures; or no row is left.
    """
    index, folder = rows.index, Path(folder)
    pictures = [index.picture] if isinstance(index, JudgedIndex) else [index.win, index.lose]
    source = ShownPictures(rows, np.concatenate(pictures), folder, generator.image_size, skip_unreadable)
    if source.remember():
        cache = _whole(folder, generator, dtype, with_text=with_text)
    else:
        cache = encode_source(
            generator,
            source,
            folder,
            batch_size=batch_size,
            rows_per_shard=rows_per_shard,
            dtype=dtype,
            with_text=with_text,
            progress=progress,
        )
    places = np.split(source.places, len(pictures))
    errors = source.errors
    bad = np.isin(source.places, list(errors))
    wrong = np.logical_or.reduce(np.split(bad, len(pictures)))
    told = []
    for row in np.flatnonzero(wrong).tolist():
        why = next(errors[int(place[row])] for place in places if int(place[row]) in errors)
        told.append(f"{index.name(row)}: {why}")
    what = "rows" if isinstance(index, JudgedIndex) else "pairs"
    if wrong.all():
        raise UserError(f"no picture of {index.shown} can be used; the first is {told[0]}")
    if isinstance(index, JudgedIndex):
        judged, left_out = without(index, wrong, told, what, skip_unreadable)
        return EncodedJudgedSet(judged, cache, places[0][~wrong], left_out)
    pairs, left_out = without(index, wrong, told, what, skip_unreadable)
    return EncodedPairs(pairs, cache, places[0][~wrong], places[1][~wrong], left_out, rows.resolution)


def _whole(folder: Path, generator: Generator, dtype: CacheType, *, with_text: bool) -> EncodedPictures:
    """The finished cache of more pictures.

    Raises:
        UserError: It is not finished, is of another model or resolution, or was written in another way.
    """
    cache = EncodedPictures(folder)
    cache.check(generator)
    for name, wanted in (("dtype", dtype), ("with_text", with_text)):
        found = getattr(cache.manifest, name)
        if found != wanted:
            raise UserError(
                f"{folder} was encoded with {name} {found}, and this asks for {wanted}; ask for the same, or encode "
                "into another folder"
            )
    return cache
