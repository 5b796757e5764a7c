"""Suites with columns: PartiPrompts, DrawBench and Pick-a-Pic."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unifl.data.preferences.parquet_reader import import_parquet
from unifl.data.prompts import json_rows, numbered_rows, read_text
from unifl.data.suites.entry import Entry, checked
from unifl.errors import UserError


def header(path: Path) -> list[str]:
    """Names of the columns of a table.

    Raises:
        UserError: It cannot be read.
    """
    if path.suffix.lower() == ".parquet":
        return list(_parquet(path).schema_arrow.names)
    if path.suffix.lower() == ".jsonl":
        rows = json_rows(read_text(path).lstrip("\n").split("\n", 1)[0], path)
        return list(rows[0]) if rows else []
    return next((row for _, row in _lines(path)), [])


def with_category(path: Path, prompt: str, category: str) -> list[Entry]:
    """PartiPrompts (`Prompt`, `Category`) and DrawBench (`Prompts`, `Category`)."""
    return [
        Entry(checked(row[prompt], place), row[category].strip() or None)
        for place, row in rows_of(path, (prompt, category))
    ]


def plain_column(path: Path, column: str) -> list[Entry]:
    """Prompts of one column of a table."""
    return [Entry(checked(row[column], place)) for place, row in rows_of(path, (column,))]


def pick_a_pic(path: Path) -> list[Entry]:
    """Column `caption`, in which a prompt comes once for each of its pictures; here once."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        column = _parquet(path).read(columns=["caption"])["caption"].to_pylist()
        found = [checked(text, f"row {number} of {path}") for number, text in enumerate(column, start=1)]
    elif kind == ".jsonl":
        rows = numbered_rows(read_text(path), path)
        found = [checked(row.get("caption"), f"line {number} of {path}") for number, row in rows]
    else:
        found = [checked(row["caption"], place) for place, row in rows_of(path, ("caption",))]
    return [Entry(prompt) for prompt in dict.fromkeys(found)]


def _parquet(path: Path) -> Any:
    try:
        return import_parquet(path).ParquetFile(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as parquet ({error}); fetch it again") from None


def rows_of(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows by column, each with where it stands."""
    lines = _lines(path)
    names = next((row for _, row in lines), [])
    missing = [name for name in columns if name not in names]
    if missing:
        raise UserError(
            f"line 1 of {path} names no column {missing[0]!r}; it has {', '.join(names) or 'nothing'}"
        )
    needed = max(names.index(name) for name in columns)
    for number, row in lines:
        if not row:
            continue
        place = f"line {number} of {path}"
        if len(row) <= needed or len(row) > len(names):
            raise UserError(
                f"{place} has {len(row)} columns, and line 1 names {len(names)}; repair the row (a tab or a comma too "
                "many or too few)"
            )
        yield place, dict(zip(names, row, strict=False))


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
