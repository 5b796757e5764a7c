"""Every picture of preference data once per prompt, and a record in a cache's folder of which pictures they are.

Beside the files of `unifl.data.encode` lie `pictures.npy`, a hash of each row's picture and prompt, and
`pictures.json`, why rows could not be read.
"""

from __future__ import annotations

import hashlib
import io
import json
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt64

from unifl.data.batch import Sample
from unifl.data.manifest import MANIFEST
from unifl.data.pictures import fit_picture, to_tensor
from unifl.data.preferences.checks import shown_size
from unifl.data.preferences.index import PreferenceIndex
from unifl.data.preferences.preference_set import JudgedSet, PreferenceSet
from unifl.data.preferences.scored_forms import JudgedIndex
from unifl.data.preferences.tables import Texts
from unifl.disk import require_writable, write_atomically
from unifl.errors import UserError

PICTURES, KEYS = "pictures.json", "pictures.npy"


def once_per_prompt(
    index: PreferenceIndex | JudgedIndex, pictures: Int64[np.ndarray, " m"]
) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " k"], Int64[np.ndarray, " m"]]:
    """Pictures with what they were drawn for, each once, in the order in which they lie on the disk.

    Args:
        index: Of n rows.
        pictures: By number; those of all rows, or first of all winners and then of all losers.

    Returns:
        Code of the prompt and number of the picture of each, and where each of `pictures` is among them.
    """
    prompts = np.tile(index.prompts.codes.astype(np.int64), len(pictures) // len(index))
    keys, inverse = np.unique(prompts * len(index.pictures) + pictures, return_inverse=True)
    prompt, picture = np.divmod(keys, len(index.pictures))
    order = index.pictures.in_order(picture)
    row_of_key = np.empty(len(order), np.int64)
    row_of_key[order] = np.arange(len(order))
    return prompt[order], picture[order], row_of_key[inverse]


class ShownPictures:
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
        prompts, self._pictures, self.places = once_per_prompt(index, pictures)
        self._prompts = Texts(prompts.astype(np.int32), self._values)
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
        """The prompt of one row."""
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
        if len(np.unique(kept)) < len(kept):
            raise UserError(
                f"{self._folder} holds pictures of equal names (files of one name in several folders), which cannot be "
                "told apart for a selection; encode the selection into another folder"
            )
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
