"""Where the pictures of preference data are, and how one of them is read.

A picture is a source, a column and a row: 14 bytes, whatever it holds. Nothing of it is read before it is asked for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int16, Int32, Int64
from PIL import Image

from unifl.data.hub_dataset import load_rows, picture_source, undecoded
from unifl.data.pictures import check_picture, picture_size, read_picture
from unifl.data.preferences.parquet_reader import ParquetReader
from unifl.errors import UserError

HUB = "hub:"
"""Before the name of a data set of Hugging Face."""

_REFERENCE = re.compile(r"(?P<data>.+\.parquet|hub:.+)#(?P<column>[^#:]+):(?P<row>\d+)")


@runtime_checkable
class PictureSource(Protocol):
    """Pictures that are found in one way."""

    def read(self, column: int, row: int) -> Path | bytes | Image.Image:
        """The file, its bytes, or a decoded picture."""
        ...

    def name(self, column: int, row: int) -> str:
        """What errors call it."""
        ...

    def reference(self, column: int, row: int, folder: Path) -> str:
        """How a file in `folder` refers to it."""
        ...

    def identity(self, column: int, row: int) -> str:
        """What tells it from other pictures, wherever the files lie."""
        ...


class PictureFiles:
    """Files by number, named from one folder."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names = folder, names

    def read(self, column: int, row: int) -> Path:
        """The path."""
        return self.folder / self.names[row]

    def name(self, column: int, row: int) -> str:
        """The path."""
        return str(self.read(column, row))

    def reference(self, column: int, row: int, folder: Path) -> str:
        """The path as seen from `folder`."""
        return _relative(self.read(column, row), folder)

    def identity(self, column: int, row: int) -> str:
        """Its name."""
        return self.names[row]


class ParquetPictures:
    """Pictures in columns of one parquet file: bytes, or what the Image feature of `datasets` stores."""

    def __init__(self, path: Path, columns: Sequence[str], reader: ParquetReader, folder: Path) -> None:
        self.path, self.columns, self._reader, self._folder = path, list(columns), reader, folder

    def read(self, column: int, row: int) -> Path | bytes | Image.Image:
        """The bytes, or the file that stands in their place."""
        value = self._reader.value(self.path, self.columns[column], row)
        source = picture_source(value, self.name(column, row))
        return self._folder / source if isinstance(source, Path) else source

    def name(self, column: int, row: int) -> str:
        """Column, row and file."""
        return f"{self.columns[column]} of row {row + 1} of {self.path}"

    def reference(self, column: int, row: int, folder: Path) -> str:
        """`file.parquet#column:row`, with the row counted from 0."""
        return f"{_relative(self.path, folder)}#{self.columns[column]}:{row}"

    def identity(self, column: int, row: int) -> str:
        """Name of the file, column and row."""
        return f"{self.path.name}#{self.columns[column]}:{row}"


class HubColumns:
    """Pictures in columns of a data set of Hugging Face."""

    def __init__(self, rows: Any, shown: str, columns: Sequence[str]) -> None:
        self.shown, self.columns = shown, list(columns)
        # one column alone, so that the other picture of a row is not read
        self._rows = [undecoded(rows.select_columns([column]), column) for column in columns]

    def read(self, column: int, row: int) -> Path | bytes | Image.Image:
        """The bytes, a file, or a decoded picture."""
        return picture_source(self._rows[column][row][self.columns[column]], self.name(column, row))

    def name(self, column: int, row: int) -> str:
        """Column, row and data set."""
        return f"{self.columns[column]} of row {row + 1} of {self.shown}"

    def reference(self, column: int, row: int, folder: Path) -> str:
        """`hub:name@split#column:row`."""
        return f"{self.shown}#{self.columns[column]}:{row}"

    def identity(self, column: int, row: int) -> str:
        """Data set, column and row."""
        return f"{self.shown}#{self.columns[column]}:{row}"


@dataclass(frozen=True)
class Places:
    """A table of pictures; a picture is its number in it.

    Attributes:
        sources: Where pictures come from.
        source: Number of the source of each.
        column: Number of the column in it.
        row: Row in it, from 0.
        known: Whether a picture that two rows show has one number. It has, unless pictures have neither a name nor
            a uid.
    """

    sources: tuple[PictureSource, ...]
    source: Int32[np.ndarray, " p"]
    column: Int16[np.ndarray, " p"]
    row: Int64[np.ndarray, " p"]
    known: bool

    def __len__(self) -> int:
        """Number of pictures p."""
        return len(self.row)

    def picture(self, number: int) -> Image.Image:
        """Read and decode one picture, as RGB.

        Raises:
            UserError: It cannot be read; with its name.
        """
        source, name = self.content(number), self.name(number)
        if isinstance(source, Image.Image):
            try:
                return source.convert("RGB")
            except (OSError, SyntaxError, ValueError) as error:  # PIL decodes here
                raise UserError(f"cannot read the image {name}: {error}; replace or remove it") from error
        return read_picture(source, name=name)

    def size(self, number: int) -> tuple[int, int]:
        """(height, width) of one picture, from its header.

        Raises:
            UserError: It cannot be read.
        """
        source = self.content(number)
        if isinstance(source, Image.Image):
            return source.height, source.width
        return picture_size(source, name=self.name(number))

    def check(self, number: int) -> tuple[int, int]:
        """Check that one picture is whole; returns (height, width).

        Raises:
            UserError: It is missing, no picture, or damaged.
        """
        source = self.content(number)
        if isinstance(source, Image.Image):
            return source.height, source.width
        return check_picture(source, name=self.name(number))

    def name(self, number: int) -> str:
        """What errors call a picture."""
        return self._of(number).name(int(self.column[number]), int(self.row[number]))

    def reference(self, number: int, folder: Path) -> str:
        """How a file in `folder` refers to a picture; `named_places` understands it."""
        return self._of(number).reference(int(self.column[number]), int(self.row[number]), folder)

    def in_order(self, numbers: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """The permutation that brings pictures into the order in which they lie on the disk."""
        return np.lexsort((self.column[numbers], self.row[numbers], self.source[numbers]))

    def identity(self, number: int) -> str:
        """What a picture is called wherever its files lie; it is not looked into."""
        return self._of(number).identity(int(self.column[number]), int(self.row[number]))

    def _of(self, number: int) -> PictureSource:
        return self.sources[int(self.source[number])]

    def content(self, number: int) -> Path | bytes | Image.Image:
        """The file of a picture, its bytes, or a decoded one: whatever is there."""
        return self._of(number).read(int(self.column[number]), int(self.row[number]))


def named_places(names: Sequence[str], folder: Path, *, referred_from: Path | None = None) -> Places:
    """A table of pictures by name.

    Args:
        names: Of files, or what `Places.reference` wrote; none twice.
        folder: That file names start from.
        referred_from: That references start from; `folder` by default.
    """
    number = len(names)
    source, column = np.zeros(number, np.int32), np.zeros(number, np.int16)
    row = np.arange(number, dtype=np.int64)
    sources: list[PictureSource] = [PictureFiles(folder, names)]
    if any("#" in name for name in names):
        tables = _Referred(referred_from or folder)
        for index, name in enumerate(names):
            found = _REFERENCE.fullmatch(name)
            if found is not None:
                source[index], column[index] = tables.place(found["data"], found["column"])
                row[index] = int(found["row"])
        sources.extend(tables.sources)
    return Places(tuple(sources), source, column, row, known=True)


class _Referred:
    """The tables that references name, each opened once."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._reader = folder, ParquetReader()
        self._numbers: dict[str, int] = {}
        self._columns: dict[str, list[str]] = {}
        self.sources: list[PictureSource] = []

    def place(self, data: str, column: str) -> tuple[int, int]:
        """(source, column) by number; files are 0."""
        columns = self._columns.setdefault(data, [])
        if column not in columns:
            columns.append(column)
            self._open(data, columns)
        return self._numbers[data] + 1, columns.index(column)

    def _open(self, data: str, columns: list[str]) -> None:
        number = self._numbers.setdefault(data, len(self._numbers))
        found: PictureSource
        if data.startswith(HUB):
            name, _, split = data[len(HUB) :].rpartition("@")
            found = HubColumns(load_rows(name, split), data, columns)
        else:
            path = self._folder / data
            found = ParquetPictures(path, columns, self._reader, path.parent)
        self.sources[number : number + 1] = [found]


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()
