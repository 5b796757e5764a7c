"""Tables of prompts, in whichever of four file formats: PartiPrompts, DrawBench, Pick-a-Pic, and plain ones."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from unifl.data.preferences.parquet_reader import import_parquet
from unifl.data.suites.entry import Entry, checked
from unifl.data.text_files import json_rows, numbered_rows, read_text
from unifl.errors import UserError


def columns(path: Path) -> dict[str, str]:
    """Names of the columns of a table as they are written, by what they are in lower case.

    Raises:
        UserError: It cannot be read.
    """
    kind = path.suffix.lower()
    if kind == ".parquet":
        names = list(_parquet(path).schema_arrow.names)
    elif kind == ".jsonl":
        first = next((line for line in read_text(path).split("\n") if line.strip()), "")
        names = [name for row in json_rows(first, path) for name in row]
    else:
        names = next((row for _, row in _lines(path)), [])
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(name.strip().lower(), name)
    return found


def rows_of(path: Path, wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a table, each with where it stands.

    Args:
        path: A .csv, .tsv, .jsonl or .parquet file.
        wanted: Columns in lower case, whatever the case is there; a cell that is not there is None.

    Raises:
        UserError: A column that the first row does not name, or a row that cannot be read.
    """
    names = columns(path)
    missing = [column for column in wanted if column not in names]
    if missing:
        raise UserError(
            f"{path} names no column {missing[0]!r}; it has {', '.join(names.values()) or 'nothing'}"
        )
    kind = path.suffix.lower()
    reader = {".parquet": _parquet_rows, ".jsonl": _json_rows}.get(kind, _cells)
    for place, row in reader(path, [names[column] for column in wanted]):
        yield place, {column: row.get(names[column]) for column in wanted}


def with_category(path: Path, prompt: str) -> list[Entry]:
    """PartiPrompts (`Prompt`, `Category`) and DrawBench (`Prompts`, `Category`)."""
    return [
        Entry(checked(row[prompt], place), str(row["category"] or "").strip() or None)
        for place, row in rows_of(path, (prompt, "category"))
    ]


def plain_column(path: Path) -> list[Entry]:
    """Column `prompt` of a table."""
    return [Entry(checked(row["prompt"], place)) for place, row in rows_of(path, ("prompt",))]


def pick_a_pic(path: Path) -> list[Entry]:
    """Column `caption`, in which a prompt comes once for each of its pictures; here once."""
    found = [checked(row["caption"], place) for place, row in rows_of(path, ("caption",))]
    return [Entry(prompt) for prompt in dict.fromkeys(found)]


def _parquet(path: Path) -> Any:
    try:
        return import_parquet(path).ParquetFile(path)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _parquet_rows(path: Path, names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        rows = _parquet(path).read(columns=names).to_pylist()
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    return ((f"row {number} of {path}", row) for number, row in enumerate(rows, start=1))


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} cannot be read as parquet ({error}); fetch it again")


def _json_rows(path: Path, names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((f"line {number} of {path}", row) for number, row in numbered_rows(read_text(path), path))


def _cells(path: Path, names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = _lines(path)
    header = next((row for _, row in lines), [])
    needed = max(map(header.index, names))
    for number, row in lines:
        if not row:
            continue
        place = f"line {number} of {path}"
        if len(row) <= needed or len(row) > len(header):
            raise UserError(
                f"{place} has {len(row)} columns, and line 1 names {len(header)}; repair the row (a tab or a comma too "
                "many or too few)"
            )
        yield place, dict(zip(header, row, strict=False))


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Cells, with the number of the line on which a row begins."""
    text = read_text(path)
    if path.suffix.lower() == ".tsv":  # quotes are text there
        rows = csv.reader(text.split("\n"), delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    number = 1
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(
                f"line {number} of {path} is no row of a table ({error}); check its quotes and its length"
            ) from None
        yield number, row
        number = rows.line_num + 1
