"""One value of a parquet column by its row, with few open files and without ever holding a whole column.

Parquet files have no random access within a row group: to reach a row, what comes before it in its group is decoded
and dropped. Rows that are asked for in the order of the file are therefore read once. Reading in random order decodes
half a row group for every picture; encode pictures once where that matters.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unifl.errors import UserError

_OPEN = 8
_BATCH = 16  # rows that are decoded together: that many pictures are in memory per open column
_BUFFER = 2**20  # bytes that are read at once, in place of a whole column of a row group


class ParquetReader:
    """Values by (file, column, row); keeps the last eight places that were read, so that the next row is near."""

    def __init__(self) -> None:
        self._cursors: OrderedDict[tuple[Path, str, int], _Cursor] = OrderedDict()
        self._starts: dict[Path, np.ndarray] = {}

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
            starts = self._starts.get(path)
            if starts is None:
                starts = self._starts[path] = _group_starts(parquet.read_metadata(path))
            if not 0 <= row < starts[-1]:
                raise UserError(f"{path} has {starts[-1]} rows, and row {row} is asked for; index it again")
            group = int(np.searchsorted(starts, row, side="right")) - 1
            inside = row - int(starts[group])
            key = (path, column, group)
            cursor = self._cursors.pop(key, None)
            if cursor is None or cursor.start > inside:
                cursor = _Cursor(parquet, *key)
            self._cursors[key] = cursor
            if len(self._cursors) > _OPEN:
                self._cursors.popitem(last=False)
            return cursor.value(inside)
        except (OSError, ValueError, KeyError, StopIteration) as error:  # ArrowInvalid is a ValueError
            if isinstance(error, UserError):
                raise
            raise UserError(f"cannot read row {row} of {column!r} of {path}: {error}") from error


class _Cursor:
    """Reads one column of one row group from front to back."""

    def __init__(self, parquet: Any, path: Path, column: str, group: int) -> None:
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
        raise UserError(f"{what} needs pyarrow to be read; run `pip install 'unifl[parquet]'`") from error
    return parquet


def _group_starts(metadata: Any) -> np.ndarray:
    """First row of each row group, and the number of rows at the end."""
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
