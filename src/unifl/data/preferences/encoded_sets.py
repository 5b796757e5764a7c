"""Preference data whose pictures were encoded once.

A picture is encoded once per prompt, however many pairs show it, in the order in which pictures lie on the disk. The
cache is a folder of `unifl.data.encode`, and beside its files `pictures.npy`, of which pictures it is, and
`pictures.json`, which of them could not be read. An interrupted run goes on where it stopped, and a finished cache
serves every selection of its rows.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt64

from unifl.data.batch import Sample
from unifl.data.encode import encode_source
from unifl.data.encoded import EncodedPictures
from unifl.data.judged import EncodedJudged
from unifl.data.manifest import MANIFEST, CacheType
from unifl.data.pairs import EncodedPair
from unifl.data.pictures import fit_picture, to_tensor
from unifl.data.preferences.checks import masks_of, shown_size, without
from unifl.data.preferences.index import PreferenceIndex
from unifl.data.preferences.preference_set import JudgedSet, PreferenceSet
from unifl.data.preferences.scored_forms import JudgedIndex
from unifl.data.preferences.tables import Texts
from unifl.disk import require_writable, write_atomically
from unifl.errors import UserError
from unifl.models.generator import Generator

PICTURES, KEYS = "pictures.json", "pictures.npy"


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
    source = _ShownPictures(rows, np.concatenate(pictures), folder, generator.image_size, skip_unreadable)
    if source.remember():
        cache = _whole(folder, dtype, with_text=with_text)
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


def _whole(folder: Path, dtype: CacheType, *, with_text: bool) -> EncodedPictures:
    """The finished cache of more pictures.

    Raises:
        UserError: It is not finished, or was written in another way.
    """
    cache = EncodedPictures(folder)
    for name, wanted in (("dtype", dtype), ("with_text", with_text)):
        found = getattr(cache.manifest, name)
        if found != wanted:
            raise UserError(
                f"{folder} was encoded with {name} {found}, and this asks for {wanted}; ask for the same, or encode "
                "into another folder"
            )
    return cache


class _ShownPictures:
    """Every picture once per prompt, as rows that `encode_source` reads.

    Attributes:
        places: Row in the cache of each picture that was asked for.
        errors: Why a row cannot be used, by its number.
    """

    def __init__(
        self,
        rows: PreferenceSet | JudgedSet,
        pictures: Int64[np.ndarray, " m"],
        folder: Path,
        size: tuple[int, int],
        skip: bool,
    ) -> None:
        index, self.resolution = rows.index, rows.resolution
        self._places, self._values = index.pictures, index.prompts.values
        self._folder, self._size, self._skip = folder, tuple(size), skip
        prompts = np.tile(index.prompts.codes.astype(np.int64), len(pictures) // len(index))
        keys, inverse = np.unique(prompts * len(index.pictures) + pictures, return_inverse=True)
        prompt, picture = np.divmod(keys, len(index.pictures))
        order = self._places.in_order(picture)
        row_of_key = np.empty(len(order), np.int64)
        row_of_key[order] = np.arange(len(order))
        self.places: Int64[np.ndarray, " m"] = row_of_key[inverse]
        self._prompts = Texts(prompt[order].astype(np.int32), self._values)
        self._pictures: Int64[np.ndarray, " k"] = picture[order]
        self.errors: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, row: int) -> Sample:
        try:
            picture = self._places.picture(int(self._pictures[row]))
            image = to_tensor(fit_picture(picture, self.resolution))
            if self._skip and tuple(image.shape[1:]) != self._size:
                name = self._places.name(int(self._pictures[row]))
                raise UserError(f"{name} has {shown_size(image.shape[1:])} and not {shown_size(self._size)}")
        except UserError as error:
            if not self._skip:
                raise UserError(f"{error} (or leave it out with skip_unreadable)") from error
            if row not in self.errors:
                self.errors[row] = str(error)
                self._write()  # before the file that holds black in its place
            image = torch.zeros(3, *self._size)
        return Sample(image, self.caption(row))

    def caption(self, row: int) -> str:
        return self._prompts.at(row) or ""

    def remember(self) -> bool:
        """Write down which pictures these are, or find that the folder is about the same, or about them and more.

        Returns:
            Whether it is about more; `places` then are those in the folder's cache.

        Raises:
            UserError: It is about others.
        """
        require_writable(self._folder / PICTURES)
        if not (self._folder / KEYS).exists():
            if (self._folder / MANIFEST).exists():
                raise UserError(
                    f"{self._folder} holds encoded pictures that are no preferences; name another folder"
                )
            self._write()
            packed = io.BytesIO()
            np.save(packed, self._keys)
            write_atomically(self._folder / KEYS, packed.getvalue())
            return False
        kept = _read_keys(self._folder / KEYS)
        self.errors = _read_errors(self._folder / PICTURES)
        if np.array_equal(kept, self._keys):
            return False
        order = np.argsort(kept)
        found = order[np.searchsorted(kept, self._keys, sorter=order).clip(max=len(kept) - 1)]
        missing = int((kept[found] != self._keys).sum())
        if missing:
            raise UserError(
                f"{self._folder} holds other pictures: {missing} of these {len(self)} are not in it (other data, or "
                "encoded for a selection of them); encode all into one folder, which then serves every selection"
            )
        self.places = found[self.places]
        return True

    def _write(self) -> None:
        write_atomically(self._folder / PICTURES, json.dumps({"unreadable": self.errors}, indent=1).encode())

    @cached_property
    def _keys(self) -> UInt64[np.ndarray, " k"]:
        """A hash of each picture's name and prompt."""
        keys = np.empty(len(self), np.uint64)
        for row, picture in enumerate(self._pictures.tolist()):
            text = f"{self._places.identity(picture)}\0{self.caption(row)}"
            digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8)
            keys[row] = int.from_bytes(digest.digest(), "little")
        return keys


def _read_keys(path: Path) -> UInt64[np.ndarray, " k"]:
    try:
        keys = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged; remove the folder and encode again") from error
    if keys.dtype != np.uint64 or keys.ndim != 1 or not len(keys):
        raise UserError(f"{path} is damaged; remove the folder and encode again")
    return keys


def _read_errors(path: Path) -> dict[int, str]:
    """Why rows of a cache could not be read."""
    try:
        return {
            int(row): why for row, why in json.loads(path.read_text(encoding="utf-8"))["unreadable"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged; remove the folder and encode again") from error
