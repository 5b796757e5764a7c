"""One value of a parquet column by its row, with bounded memory."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unifl.data.preferences.parquet_reader import ParquetReader
from unifl.errors import UserError


def test_one_value_of_a_column_in_any_order(tmp_path):
    path = tmp_path / "numbers.parquet"
    values = [str(number).encode() * 10 for number in range(103)]
    pq.write_table(pa.table({"jpg": values, "other": values[::-1]}), path, row_group_size=40)
    reader = ParquetReader()
    order = [*np.random.default_rng(0).permutation(103).tolist(), 0, 102, 39, 40, 41, 17, 16]
    for row in order:
        assert reader.value(path, "jpg", row) == values[row]
        assert reader.value(path, "other", row) == values[102 - row]
    for row in (103, -1):
        with pytest.raises(UserError, match="has 103 rows"):
            reader.value(path, "jpg", row)
    with pytest.raises(UserError, match="has no column 'jgp'"):
        reader.value(path, "jgp", 0)


def test_rows_in_order_are_decoded_once(tmp_path, monkeypatch):
    path = tmp_path / "numbers.parquet"
    pq.write_table(pa.table({"jpg": [b"x"] * 1000}), path, row_group_size=500)
    opened = []
    original = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile, "iter_batches", lambda *a, **k: opened.append(k["row_groups"]) or original(*a, **k)
    )
    reader = ParquetReader()
    for row in range(1000):
        reader.value(path, "jpg", row)
    assert opened == [[0], [1]]


def test_large_columns_are_closed_before_the_next_is_open(tmp_path, monkeypatch):
    """Two places stay open, since pairs lie in two columns, and more only while they are small."""
    path = tmp_path / "pairs.parquet"
    values = [bytes([number]) * 1000 for number in range(100)]
    pq.write_table(pa.table({"jpg_0": values, "jpg_1": values}), path, row_group_size=10)
    order = np.random.default_rng(0).integers(100, size=60).tolist()
    for held, most in ((2**28, 8), (1000, 2)):
        monkeypatch.setattr("unifl.data.preferences.parquet_reader._HELD", held)
        reader, seen = ParquetReader(), []
        for row in order:
            for column in ("jpg_0", "jpg_1"):
                assert reader.value(path, column, row) == values[row]
                seen.append(len(reader._cursors))
        assert max(seen) == most
