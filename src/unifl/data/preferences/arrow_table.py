"""Columns of preference data from parquet files or from a data set of Hugging Face; pictures stay where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from unifl.data.hub_dataset import load_rows
from unifl.data.preferences.parquet_reader import ParquetReader, import_parquet
from unifl.data.preferences.places import (
    HUB,
    HubColumns,
    ParquetPictures,
    PictureSource,
    Places,
    named_places,
)
from unifl.data.preferences.tables import Texts
from unifl.errors import UserError

_SLICE = 50_000  # rows of a data set of Hugging Face that are copied at once
_LIGHT_TYPES = ("string", "large_string", "bool", "int", "uint", "float", "timestamp")


@dataclass(frozen=True)
class Block:
    """One file, or a whole data set.

    Attributes:
        shown: What errors call it.
        columns: Its columns of text and numbers that forms understand, as a `pyarrow.Table`.
        light: Names of all its columns of text, numbers and times.
        names: Of all its columns.
        num_rows: Of its rows.
        path: Its file; None for a data set of Hugging Face.
        rows: The data set, where it is one.
    """

    shown: str
    columns: Any
    light: frozenset[str]
    names: frozenset[str]
    num_rows: int
    path: Path | None = None
    rows: Any = None

    def column(self, name: str) -> Any:
        """One column; what no form understands is read when it is asked for, and not held.

        Raises:
            UserError: It holds neither text nor numbers.
        """
        if name in self.columns.column_names:
            return self.columns[name]
        if name not in self.light:
            raise UserError(f"the column {name!r} of {self.shown} holds neither text nor numbers")
        if self.path is None:
            return _hub_columns(self.rows, [name])[name]
        with import_parquet(self.path).ParquetFile(self.path) as file:
            return file.read([name], use_threads=False)[name]


class ArrowTable:
    """Rows of blocks, one after the other; see `Table`.

    Args:
        blocks: At least one.
        folder: That names of pictures start from.
        shown: What errors call all of it.
        referred_from: That references to pictures start from.

    Raises:
        UserError: No rows, or files with different columns.
    """

    def __init__(self, blocks: Sequence[Block], folder: Path, shown: str, referred_from: Path) -> None:
        for block in blocks[1:]:
            if block.names != blocks[0].names:
                odd = sorted(block.names ^ blocks[0].names)
                raise UserError(
                    f"{block.shown} and {blocks[0].shown} differ in the columns {', '.join(odd)}; give files of one "
                    "data set"
                )
        self._blocks, self._folder, self._shown = blocks, folder, shown
        self._referred_from = referred_from
        self._starts = np.cumsum([0] + [block.num_rows for block in blocks], dtype=np.int64)
        self.columns = blocks[0].names
        if not len(self):
            raise UserError(f"{shown} has no rows; check the files")

    def __len__(self) -> int:
        """Number of rows."""
        return int(self._starts[-1])

    def texts(self, name: str) -> Texts:
        """See `Table`."""
        return self._encode([name])

    def numbers(self, name: str) -> Float64[np.ndarray, " n"]:
        """See `Table`.

        Raises:
            UserError: They are no numbers.
        """
        import pyarrow

        parts = []
        for block in self._blocks:
            column = block.column(name)
            try:
                parts.append(column.cast(pyarrow.float64()).to_numpy())
            except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
                raise UserError(f"the column {name!r} of {block.shown} holds no numbers: {error}") from error
        return np.concatenate(parts)

    def pictures(
        self, names: Sequence[str], uids: Sequence[str] | None
    ) -> tuple[list[Int64[np.ndarray, " n"]], Places]:
        """See `Table`; the same pictures are known by their uid, otherwise by the name of their file."""
        number = len(self)
        files = [_is_light(block, name) for block in self._blocks for name in names]
        if any(files) and not all(files):
            raise UserError(f"{self._shown} has pictures by name and as bytes; give files of one data set")
        if all(files):
            shown = self._encode(names)
            codes = shown.codes.astype(np.int64)
            places = named_places(shown.values, self._folder, referred_from=self._referred_from)
            return np.split(codes, len(names)), places
        if uids is None:
            codes = np.arange(len(names) * number)
            first = codes
        else:
            codes, first = _first_places(self._encode(uids).codes.astype(np.int64))
        return np.split(codes, len(names)), self._places(first, names, known=uids is not None)

    def place(self, row: int) -> str:
        """Number within the file, from 1, and the file."""
        block = int(np.searchsorted(self._starts, row, side="right")) - 1
        return f"row {row - int(self._starts[block]) + 1} of {self._blocks[block].shown}"

    def _places(self, first: Int64[np.ndarray, " p"], names: Sequence[str], *, known: bool) -> Places:
        """Pictures by where they first occur, counted over the columns one after the other."""
        column, row = np.divmod(first, len(self))
        block = np.searchsorted(self._starts, row, side="right") - 1
        reader = ParquetReader()
        sources: list[PictureSource] = [
            ParquetPictures(block.path, names, reader, self._folder)
            if block.path is not None
            else HubColumns(block.rows, block.shown, names)
            for block in self._blocks
        ]
        inside = row - self._starts[block]
        return Places(tuple(sources), block.astype(np.int32), column.astype(np.int16), inside, known=known)

    def _encode(self, names: Sequence[str]) -> Texts:
        """Texts of columns one after the other."""
        import pyarrow

        chunks = [
            chunk
            for name in names
            for block in self._blocks
            for chunk in block.column(name).cast(pyarrow.large_string()).chunks
        ]
        encoded = pyarrow.chunked_array(chunks, pyarrow.large_string()).combine_chunks().dictionary_encode()
        if isinstance(encoded, pyarrow.ChunkedArray):
            encoded = encoded.unify_dictionaries().combine_chunks()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
        return Texts(codes, encoded.dictionary.to_pylist())


def parquet_table(paths: Sequence[Path], wanted: frozenset[str], folder: Path) -> ArrowTable:
    """Index parquet files; columns of bytes are not read.

    Args:
        paths: At least one file.
        wanted: Columns that any form understands.
        folder: That names of pictures start from.

    Raises:
        UserError: A file cannot be read.
    """
    import_parquet(paths[0])
    shown = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} other file(s)"
    return ArrowTable([_parquet_block(path, wanted) for path in paths], folder, shown, paths[0].parent)


def hub_table(name: str, split: str, wanted: frozenset[str]) -> ArrowTable:
    """Index a data set of Hugging Face; columns of pictures are not read.

    Raises:
        UserError: It cannot be loaded.
    """
    import_parquet(name)
    rows = load_rows(name, split)
    shown = f"{HUB}{name}@{split}"
    light = [
        column
        for column, feature in rows.features.items()
        if str(getattr(feature, "dtype", "")).startswith(_LIGHT_TYPES)
    ]
    columns = _hub_columns(rows, [column for column in light if column in wanted])
    block = Block(shown, columns, frozenset(light), frozenset(rows.column_names), len(rows), rows=rows)
    return ArrowTable([block], Path.cwd(), shown, Path.cwd())


def _hub_columns(rows: Any, names: Sequence[str]) -> Any:
    import pyarrow

    chosen = rows.select_columns(list(names)).with_format("arrow")
    parts = [chosen[start : start + _SLICE] for start in range(0, len(rows), _SLICE)]
    return pyarrow.concat_tables(parts) if parts else pyarrow.table({})


def _parquet_block(path: Path, wanted: frozenset[str]) -> Block:
    parquet = import_parquet(path)
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            light = frozenset(field.name for field in schema if _holds_text(field.type))
            columns = file.read([name for name in schema.names if name in light & wanted], use_threads=False)
            return Block(str(path), columns, light, frozenset(schema.names), file.metadata.num_rows, path)
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise UserError(f"cannot read {path}: {error}; download it again, or remove it") from error


def _holds_text(kind: Any) -> bool:
    from pyarrow import types

    texts, numbers = (types.is_string, types.is_large_string), (types.is_integer, types.is_floating)
    tests = (*texts, *numbers, types.is_boolean, types.is_timestamp)
    if types.is_dictionary(kind):
        return _holds_text(kind.value_type)
    return types.is_null(kind) or any(test(kind) for test in tests)


def _is_light(block: Block, name: str) -> bool:
    return name in block.columns.column_names


def _first_places(
    codes: Int64[np.ndarray, " m"],
) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " p"]]:
    """Codes, and where each first occurs; a row without a uid has a picture of its own."""
    lone = codes < 0
    number = int(codes.max(initial=-1)) + 1
    codes = codes.copy()
    codes[lone] = number + np.arange(lone.sum())
    first = np.empty(number + int(lone.sum()), np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]  # the last one written is the first that occurs
    return codes, first
