"""A small file of comparisons that refers to pictures where they are.

It has the columns `prompt`, `chosen`, `rejected`, `tie`, `strength` and `row`, and `axis`, `user`, `ranking_id`,
`chosen_mask` and `rejected_mask` where the data have them, and is read like any data of that form. A picture in a
parquet file is named `data/train-00000-of-00001.parquet#jpg_0:17`, with the row counted from 0; all names start from
the file's own folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unifl.data.preferences.index import PreferenceIndex
from unifl.data.preferences.parquet_reader import import_parquet
from unifl.data.preferences.places import Places
from unifl.disk import require_writable
from unifl.errors import UserError

_AT_ONCE = 50_000  # rows that are in memory as text


def check_output(path: Path) -> None:
    """Refuse a file that could not be written in the end.

    Raises:
        UserError: Another ending than .jsonl or .parquet, a folder, or no right to write.
    """
    if path.suffix not in (".jsonl", ".parquet"):
        raise UserError(f"cannot write pairs to {path}; use a .jsonl or .parquet file")
    if path.suffix == ".parquet":
        import_parquet(path)
    require_writable(path)


def write_pairs(index: PreferenceIndex, path: Path) -> None:
    """Write comparisons, whole or not at all.

    Args:
        index: Which; at least one.
        path: A `.jsonl` or `.parquet` file.

    Raises:
        UserError: Nothing to write; see `check_output`.
    """
    if not len(index):
        raise UserError(f"nothing of {index.shown} is left to write; loosen the filters, or keep ties")
    check_output(path)
    temporary = path.with_name(f".{path.name}.part")
    try:
        if path.suffix == ".jsonl":
            with temporary.open("w", encoding="utf-8", errors="surrogatepass") as file:
                for columns in _columns(index, path.parent):
                    rows = zip(*columns.values(), strict=True)
                    file.writelines(_line(dict(zip(columns, row, strict=True))) for row in rows)
        else:
            _write_parquet(index, path.parent, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _line(row: dict[str, Any]) -> str:
    return (
        json.dumps({key: value for key, value in row.items() if value is not None}, ensure_ascii=False) + "\n"
    )


def _write_parquet(index: PreferenceIndex, folder: Path, path: Path) -> None:
    parquet = import_parquet(path)
    import pyarrow

    kinds = {"tie": pyarrow.bool_(), "strength": pyarrow.float32(), "row": pyarrow.int64()}
    kinds["ranking_id"] = pyarrow.int64()
    writer = None
    try:
        for columns in _columns(index, folder):
            schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in columns])
            writer = writer or parquet.ParquetWriter(path, schema)
            writer.write_table(pyarrow.table(columns, schema=schema))
    finally:
        if writer is not None:
            writer.close()


def _columns(index: PreferenceIndex, folder: Path) -> Iterator[dict[str, list[Any]]]:
    """Columns of some rows at a time."""
    for start in range(0, len(index), _AT_ONCE):
        part = index.take(np.arange(start, min(start + _AT_ONCE, len(index))))
        columns: dict[str, list[Any]] = {
            "prompt": [part.prompts.at(row) for row in range(len(part))],
            "chosen": _references(part.pictures, part.win, folder),
            "rejected": _references(part.pictures, part.lose, folder),
            "tie": part.tie.tolist(),
            "strength": part.strength.tolist(),
            "row": part.row.tolist(),
        }
        for name, texts in (("axis", part.axes), ("user", part.users)):
            if texts.values:
                columns[name] = [texts.at(row) for row in range(len(part))]
        if part.dated:
            columns["ranking_id"] = part.order.tolist()
        if part.masks is not None:
            columns["chosen_mask"] = _references(part.masks.places, part.masks.win, folder)
            columns["rejected_mask"] = _references(part.masks.places, part.masks.lose, folder)
        yield columns


def _references(places: Places, pictures: np.ndarray, folder: Path) -> list[str | None]:
    return [None if number < 0 else places.reference(number, folder) for number in pictures.tolist()]
