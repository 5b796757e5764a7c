"""One value of a parquet column by its row, with few open files and without ever holding a whole column.

Parquet files have no random access within a row group: to reach a row, what comes before it in its group is decoded
and dropped. Rows that are asked for in the order of the file are therefore read once. Reading in random order decodes
half a row group for every picture; encode pictures once where that matters.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unifl.errors import UserError

_OPEN = 8
_HELD = 2**28  # bytes of columns of row groups that are open; two are open however large they are
_BATCH = 16  # rows that are decoded together: that many pictures are in memory per open column
_BUFFER = 2**20  # bytes that are read at once, in place of a whole column of a row group


class ParquetReader:
    """Values by (file, column, row); keeps places that were read last, at most eight, so that the next row is near.

    A page of large values may be as large as its row group, and an open place holds one. Places are therefore closed
    once their columns exceed 256 MiB together; the last two stay, because pairs lie in two columns.
    """

    def __init__(self) -> None:
        self._cursors: OrderedDict[tuple[Path, str, int], _Cursor] = OrderedDict()
        self._files: dict[Path, _Groups] = {}

    def value(self, path: Path, column: str, row: int) -> Any:
        """What a column holds in a row: bytes, or a struct as a dictionary.

        Args:
            path: The file.
            column: Name of the column.
            row: Number of the row in the file, from 0.

        Raises:
            UserError: The file cannot be read, or has no such row or column.
        """
        parquet = import_parquet(path)
        try:
            groups = self._files.get(path)
            if groups is None:
                groups = self._files[path] = _Groups.of(parquet.read_metadata(path))
            group, inside = groups.place(path, row)
            key = (path, column, group)
            cursor = self._cursors.pop(key, None)
            if cursor is None or cursor.start > inside:
                cursor = None  # closed before another one opens
                self._make_room(groups.size(column, group))
                cursor = _Cursor(parquet, *key, groups.size(column, group))
            self._cursors[key] = cursor
            return cursor.value(inside)
        except (OSError, ValueError, KeyError, StopIteration) as error:  # ArrowInvalid is a ValueError
            if isinstance(error, UserError):
                raise
            raise UserError(f"cannot read row {row} of {column!r} of {path}: {error}") from error

    def _make_room(self, num_bytes: int) -> None:
        """Close places that were not read for longest, all but the last one if need be."""
        while self._cursors:
            held = num_bytes + sum(cursor.num_bytes for cursor in self._cursors.values())
            if len(self._cursors) < 2 or (len(self._cursors) < _OPEN and held <= _HELD):
                return
            self._cursors.popitem(last=False)


@dataclass(frozen=True)
class _Groups:
    """The row groups of a file.

    Attributes:
        starts: First row of each, and the number of rows at the end.
        sizes: Bytes of each column in each.
    """

    starts: np.ndarray
    sizes: list[dict[str, int]]

    @classmethod
    def of(cls, metadata: Any) -> _Groups:
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        starts = np.concatenate([[0], np.cumsum([group.num_rows for group in groups], dtype=np.int64)])
        sizes: list[dict[str, int]] = []
        for group in groups:
            sizes.append({})
            for number in range(group.num_columns):
                column = group.column(number)
                name = column.path_in_schema.partition(".")[0]  # a struct has several columns
                sizes[-1][name] = sizes[-1].get(name, 0) + column.total_uncompressed_size
        return cls(starts, sizes)

    def place(self, path: Path, row: int) -> tuple[int, int]:
        """Row group of a row, and its number in it."""
        if not 0 <= row < self.starts[-1]:
            raise UserError(f"{path} has {self.starts[-1]} rows, and row {row} is asked for; index it again")
        group = int(np.searchsorted(self.starts, row, side="right")) - 1
        return group, row - int(self.starts[group])

    def size(self, column: str, group: int) -> int:
        return self.sizes[group].get(column, 0)


class _Cursor:
    """Reads one column of one row group from front to back."""

    def __init__(self, parquet: Any, path: Path, column: str, group: int, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        file = parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
        if column not in file.schema_arrow.names:
            raise UserError(f"{path} has no column {column!r}; its columns are {file.schema_arrow.names}")
        self._batches: Iterator[Any] = file.iter_batches(
            batch_size=_BATCH, row_groups=[group], columns=[column], use_threads=False
        )
        self._batch = next(self._batches)
        self.start = 0

    def value(self, row: int) -> Any:
        while row >= self.start + self._batch.num_rows:
            self.start += self._batch.num_rows
            self._batch = next(self._batches)
        return self._batch.column(0)[row - self.start].as_py()


def import_parquet(what: object) -> Any:
    """`pyarrow.parquet`.

    Raises:
        UserError: It is not installed.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{what} needs pyarrow; run `pip install 'unifl[parquet]'`") from error
    return parquet
