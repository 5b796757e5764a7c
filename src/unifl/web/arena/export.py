"""Votes as preference data, in the columns of Pick-a-Pic: with files of pictures (.jsonl), or with pictures (.parquet).

The columns are those of https://huggingface.co/datasets/yuvalkirstain/pickapic_v2, with its types, and `axis` and
`milliseconds` besides. `image_0_url` and `image_1_url` are not there, and `user_id` is a name where Pick-a-Pic has a
number.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unifl.data.preferences.parquet_reader import import_parquet
from unifl.data.preferences.write import check_output
from unifl.disk import file_sha256, write_atomically
from unifl.errors import UserError
from unifl.web.arena.database import Arena
from unifl.web.arena.results import Vote, known_axis, read_votes

_GROUP = 32 * 1024**2  # bytes of pictures in a row group, and so in memory
_KINDS = {  # of columns of parquet, in Pick-a-Pic's order
    "are_different": "bool",
    "best_image_uid": "string",
    "caption": "string",
    "created_at": "timestamp[ns]",
    "has_label": "bool",
    "image_0_uid": "string",
    "image_1_uid": "string",
    "jpg_0": "binary",
    "jpg_1": "binary",
    "label_0": "double",
    "label_1": "double",
    "model_0": "string",
    "model_1": "string",
    "ranking_id": "int64",
    "user_id": "string",
    "num_example_per_prompt": "int64",
    "__index_level_0__": "int64",
    "axis": "string",
    "milliseconds": "int64",
}


def export_votes(arena: Arena, path: str | Path, *, axis: str | None = None) -> int:
    """Write every vote as a row, whole or not at all.

    Args:
        arena: Whose.
        path: A `.jsonl` file, which names pictures as seen from its folder, or a `.parquet` file, which holds them.
        axis: Which answers; those of the first axis by default.

    Returns:
        Number of rows.

    Raises:
        UserError: Another ending, an axis that is not asked for, pictures that are gone, or no pyarrow for `.parquet`.
    """
    path = Path(path)
    check_output(path)
    rows = vote_rows(arena, axis)
    pieces = as_parquet(rows) if path.suffix == ".parquet" else as_jsonl(rows, path.parent)
    try:
        write_atomically(path, pieces)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; make room, or write elsewhere. Nothing was changed"
        ) from error
    return len(rows)


def vote_rows(arena: Arena, axis: str | None = None) -> list[dict[str, Any]]:
    """A row per vote on a pair whose answer is not known; `jpg_0` and `jpg_1` are paths.

    Raises:
        UserError: An axis that is not asked for, or pictures that are gone.
    """
    axis = known_axis(arena, axis)
    votes = [vote for vote in read_votes(arena) if vote.gold is None]
    rows_of = Counter(vote.prompt for vote in votes)
    uids = {
        file: _uid(arena.folder / file) for file in dict.fromkeys(f for vote in votes for f in vote.files)
    }
    return [
        _row(vote, number, axis, arena.folder, uids, rows_of[vote.prompt])
        for number, vote in enumerate(votes, start=1)
    ]


def as_jsonl(rows: Sequence[dict[str, Any]], folder: Path) -> Iterator[bytes]:
    """Lines of a file.

    Args:
        rows: See `vote_rows`.
        folder: Of the file; names of pictures start from it.
    """
    inside = folder.resolve()
    for row in rows:
        named = {name: _named(row[name], inside) for name in ("jpg_0", "jpg_1")}
        written = {**row, **named, "created_at": row["created_at"].isoformat()}
        yield (json.dumps(written, ensure_ascii=False) + "\n").encode()


def as_parquet(rows: Sequence[dict[str, Any]]) -> Iterator[bytes]:
    """Pieces of a file, of which a row group is in memory at a time.

    Raises:
        UserError: pyarrow is not installed; before anything is asked of the iterator.
    """
    import_parquet("an export with pictures")
    return _parquet_pieces(rows)


def _row(
    vote: Vote, number: int, axis: str, folder: Path, uids: dict[str, str], rows_of_prompt: int
) -> dict[str, Any]:
    label = vote.answers[axis]
    first, second = (uids[file] for file in vote.files)
    return {
        "are_different": first != second,
        "best_image_uid": {1.0: first, 0.0: second}.get(label, "tie"),
        "caption": vote.prompt,
        "created_at": datetime.fromtimestamp(vote.at, UTC),
        "has_label": True,
        "image_0_uid": first,
        "image_1_uid": second,
        "jpg_0": folder / vote.files[0],
        "jpg_1": folder / vote.files[1],
        "label_0": label,
        "label_1": 1 - label,
        "model_0": vote.models[0],
        "model_1": vote.models[1],
        "ranking_id": number,
        "user_id": vote.annotator,
        "num_example_per_prompt": rows_of_prompt,
        "axis": axis,
        "milliseconds": vote.milliseconds,
    }


def _uid(path: Path) -> str:
    """What a picture is called in every arena: some of the hash of its bytes."""
    try:
        return file_sha256(path)[:32]
    except OSError as error:
        raise UserError(
            f"cannot read the picture {path}: {error.strerror or error}; put it back from where it came"
        ) from error


def _named(path: Path, folder: Path) -> str:
    path = path.resolve()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _parquet_pieces(rows: Sequence[dict[str, Any]]) -> Iterator[bytes]:
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.schema([(name, pyarrow.type_for_alias(kind)) for name, kind in _KINDS.items()])
    texts = [name for name, kind in _KINDS.items() if kind == "string"]
    packing = {name: "none" if kind == "binary" else "snappy" for name, kind in _KINDS.items()}
    file = _Pieces()
    with parquet.ParquetWriter(file, schema, use_dictionary=texts, compression=packing) as writer:
        for group in _groups(rows):
            writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))
            yield file.taken()
    yield file.taken()


def _groups(rows: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Some rows at a time, with their pictures."""
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        pictures = {name: row[name].read_bytes() for name in ("jpg_0", "jpg_1")}
        at = row["created_at"].replace(tzinfo=None)
        group.append({**row, **pictures, "created_at": at, "__index_level_0__": row["ranking_id"] - 1})
        size += sum(map(len, pictures.values()))
        if size >= _GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


class _Pieces(io.RawIOBase):
    """A file that is handed on while it is written."""

    def __init__(self) -> None:
        self._held: list[bytes] = []
        self._at = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._held.append(bytes(data))
        self._at += len(data)
        return len(data)

    def tell(self) -> int:
        return self._at

    def taken(self) -> bytes:
        """What was written since it was last asked for."""
        held, self._held = b"".join(self._held), []
        return held
