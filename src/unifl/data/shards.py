"""Pictures with captions in webdataset shards (https://github.com/webdataset/webdataset).

A shard is a plain `.tar`. Files of one sample stand together and share the name up to the first dot:
`00012.jpg` (or `.jpeg`, `.png`, `.webp`) with `00012.txt`, or with `00012.json` that has a caption field. Where
there are both, the `.txt` counts. Other files are passed over.

Headers are read once, when the data are opened; after that every row is read by its number, in any order.
"""

from __future__ import annotations

import warnings
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from PIL import Image

from unifl.data.batch import Sample
from unifl.data.pictures import (
    check_picture,
    fit_picture,
    picture_size,
    read_picture,
    require_equal_sizes,
    to_tensor,
)
from unifl.data.shard_index import Entry, Part, ShardIndex, caption_in, expand, index_shard, read_part
from unifl.errors import UserError

_COLUMNS = 6  # shard, picture's offset and size, caption's offset and size, whether the caption is JSON


class ShardedPictures:
    """Rows of webdataset shards, by number, in the order of the files.

    Args:
        shards: A file, a glob, a brace pattern such as `shards/{00000..00012}.tar`, a folder (all `*.tar` in it), or
            several of these.
        resolution: Side in px of the centre square that every picture is scaled to; None leaves sizes alone.
        caption_key: Field of `.json` files that holds the caption.
        allow_incomplete: Use the whole samples of a shard that was cut short, with a warning, in place of an error.
        skip_without_caption: Leave out samples that have no caption, with a warning, in place of an error.

    Attributes:
        skipped: How many samples were left out because they have no caption.

    Raises:
        UserError: No shard matches, one was cut short or is no tar file, a sample has no caption, nothing is left.
    """

    def __init__(
        self,
        shards: str | Path | Sequence[str | Path],
        *,
        resolution: int | None = None,
        caption_key: str = "caption",
        allow_incomplete: bool = False,
        skip_without_caption: bool = False,
    ) -> None:
        self.shards = expand(shards)
        self.resolution = resolution
        self.caption_key = caption_key
        self.skipped = 0
        self._keys: list[str] = []
        self._allow_incomplete = allow_incomplete
        without_caption: list[str] = []
        without_picture: list[str] = []
        numbers = array("q")  # 48 bytes a row: there may be millions
        for shard, path in enumerate(self.shards):
            for entry in self._entries(path):
                caption = self._caption_part(entry, path)
                if entry.picture is None:
                    without_picture.append(f"{entry.key!r} of {path}")
                elif caption is None:
                    without_caption.append(f"{entry.key!r} of {path}")
                else:
                    self._keys.append(entry.key)
                    numbers.extend((shard, entry.picture.offset, entry.picture.size))
                    numbers.extend((caption.offset, caption.size, caption.extension == "json"))
        self._numbers: Int64[np.ndarray, "n 6"] = np.array(numbers, dtype=np.int64).reshape(-1, _COLUMNS)
        self._report(without_caption, without_picture, skip_without_caption)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._keys)

    def __getitem__(self, index: int) -> Sample:
        """Read one picture and its caption.

        Raises:
            UserError: The picture cannot be read, or the caption is not text; with shard and key.
        """
        return Sample(to_tensor(fit_picture(self.picture(index), self.resolution)), self.caption(index))

    def picture(self, index: int) -> Image.Image:
        """One picture in its own size.

        Raises:
            UserError: It cannot be read.
        """
        return read_picture(self._bytes(index, 1), name=self.name(index))

    def picture_size(self, index: int) -> tuple[int, int]:
        """Its own (height, width).

        Raises:
            UserError: It cannot be read.
        """
        return picture_size(self._bytes(index, 1), name=self.name(index))

    def caption(self, index: int) -> str:
        """The caption of one picture.

        Raises:
            UserError: It is not text.
        """
        extension = "json" if self._numbers[index, 5] else "txt"
        caption = caption_in(self._bytes(index, 3), extension, self.caption_key, self.name(index))
        if caption is None:
            raise UserError(
                f"the caption of {self.name(index)} is gone; the shard was changed: open it again"
            )
        return caption

    def name(self, index: int) -> str:
        """What errors call a row: its key and its shard."""
        return f"{self._keys[index]!r} of {self.shards[int(self._numbers[index, 0])]}"

    def at(self, resolution: int | None) -> ShardedPictures:
        """The same shards at another resolution; the index is shared."""
        other = object.__new__(ShardedPictures)
        other.__dict__.update(self.__dict__, resolution=resolution)
        return other

    def validate(self) -> None:
        """Check that all pictures are whole and all captions are text.

        Raises:
            UserError: The first problem, with shard and key.
        """
        for index in range(len(self)):
            check_picture(self._bytes(index, 1), name=self.name(index))
            self.caption(index)

    def require_one_size(self) -> None:
        """Check that pictures can be stacked.

        Raises:
            UserError: Two pictures of different sizes and no resolution that both are scaled to.
        """
        if self.resolution is not None:
            return
        require_equal_sizes(len(self), self.picture_size, self.name)

    def _entries(self, path: Path) -> list[Entry]:
        index: ShardIndex = index_shard(path)
        if index.cut_at is None:
            return index.entries
        whole = sum(entry.whole for entry in index.entries)
        said = (
            f"the shard {path} is cut short or damaged at byte {index.cut_at}: it has {whole} whole samples"
        )
        if not self._allow_incomplete:
            raise UserError(f"{said}; download it again, or set allow_incomplete=True to use these alone")
        warnings.warn(f"{said}, and these alone are used", stacklevel=4)
        return index.entries

    def _caption_part(self, entry: Entry, path: Path) -> Part | None:
        """Where the caption is; a `.json` is looked into, because it may have no such field."""
        if entry.text is not None or entry.json is None or entry.picture is None:
            return entry.text
        with path.open("rb") as file:
            content = read_part(file, entry.json)
        caption = caption_in(content, "json", self.caption_key, f"{entry.key!r} of {path}")
        return None if caption is None else entry.json

    def _report(self, without_caption: list[str], without_picture: list[str], skip: bool) -> None:
        """Say what was left out, or refuse to leave it out."""
        self.skipped = len(without_caption)
        if without_caption and not skip:
            raise UserError(
                f"{len(without_caption)} of {len(without_caption) + len(self)} samples have no caption, first "
                f"{without_caption[0]}; add a .txt or a .json with the field {self.caption_key!r}, or set "
                "skip_without_caption=True"
            )
        if not len(self):
            raise UserError(
                f"{self.shards[0]}{' and the other shards' if len(self.shards) > 1 else ''} hold no picture (.jpg, "
                ".jpeg, .png, .webp) with a caption (.txt, .json) of the same name; check the files in it"
            )
        for left_out, what in ((without_caption, "caption"), (without_picture, "picture")):
            if left_out:
                warnings.warn(
                    f"{len(left_out)} samples have no {what} and were left out, first {left_out[0]}",
                    stacklevel=3,
                )

    def _bytes(self, index: int, column: int) -> bytes:
        row = self._numbers[index]
        path = self.shards[int(row[0])]
        offset, size = int(row[column]), int(row[column + 1])
        try:
            # opened for each read: handles do not survive a fork into worker processes
            with path.open("rb") as file:
                content = read_part(file, Part("", offset, size))
        except OSError as error:
            raise UserError(f"cannot read the shard {path}: {error.strerror or error}") from error
        if len(content) != size:
            raise UserError(f"the shard {path} became shorter since it was opened; open it again")
        return content
