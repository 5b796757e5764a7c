"""Columns of preference data, from JSON or from parquet, with the same few questions to both.

Only columns of text and numbers are held. Columns of pictures are known by name and left on the disk.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from unifl.data.preferences.places import Places, named_places
from unifl.data.text_files import read_text
from unifl.errors import UserError


@dataclass(frozen=True)
class Texts:
    """A column of text: what occurs in it, and which of that each row has.

    Attributes:
        codes: Number of the value in each row; -1 where there is none.
        values: Each once, in the order in which they first occur.
    """

    codes: Int32[np.ndarray, " n"]
    values: list[str]

    def at(self, row: int) -> str | None:
        """The text of a row."""
        code = int(self.codes[row])
        return None if code < 0 else self.values[code]

    def take(self, rows: Int64[np.ndarray, " m"] | Bool[np.ndarray, " n"]) -> Texts:
        """Some rows, by number or by a mask."""
        return Texts(self.codes[rows], self.values)


@runtime_checkable
class Table(Protocol):
    """Rows of a data set, by column."""

    columns: frozenset[str]
    """Names of all columns, those of pictures included."""

    def __len__(self) -> int: ...

    def texts(self, name: str) -> Texts:
        """A column of text."""
        ...

    def numbers(self, name: str) -> Float64[np.ndarray, " n"]:
        """A column of numbers or truth values (1 and 0); NaN where there is none."""
        ...

    def pictures(
        self, names: Sequence[str], uids: Sequence[str] | None
    ) -> tuple[list[Int64[np.ndarray, " n"]], Places]:
        """Pictures of several columns in one table.

        Args:
            names: Columns of pictures.
            uids: Columns that say which pictures are the same, one for each; None where there are none.

        Returns:
            For each column the picture of every row (-1 where there is none), and the table.
        """
        ...

    def place(self, row: int) -> str:
        """What errors call a row."""
        ...


class JsonTable:
    """Rows of a `.jsonl` file, or of a `.json` file that holds one list.

    Args:
        path: The file.
        folder: That names of pictures start from; the file's own by default.

    Raises:
        UserError: It cannot be read, or a row is no JSON object.
    """

    def __init__(self, path: Path, *, folder: Path | None = None) -> None:
        self.path = path
        self.folder = folder or path.parent
        held: dict[str, list[Any]] = {}
        number = 0
        texts: dict[str, str] = {}  # prompts repeat; each is held once
        for row in _json_rows(path):
            for name, value in row.items():
                column = held.get(name)
                if column is None:
                    column = held[name] = []
                if len(column) < number:
                    column.extend([None] * (number - len(column)))
                column.append(texts.setdefault(value, value) if isinstance(value, str) else value)
            number += 1
        for column in held.values():
            column.extend([None] * (number - len(column)))
        self._held, self._number = held, number
        self.columns = frozenset(held)

    def __len__(self) -> int:
        """Number of rows."""
        return self._number

    def values(self, name: str) -> list[Any]:
        """A column as it stands in the file; None where a row lacks it."""
        return self._held[name]

    def texts(self, name: str) -> Texts:
        """See `Table`.

        Raises:
            UserError: A value that is no text.
        """
        return self._encode(name, self._held[name])

    def numbers(self, name: str) -> Float64[np.ndarray, " n"]:
        """See `Table`.

        Raises:
            UserError: A value that is no number.
        """
        for row, value in enumerate(self._held[name]):
            if value is not None and not isinstance(value, bool | int | float):
                raise UserError(f"{name} of {self.place(row)} is {value!r}; a number is needed there")
        return np.array([math.nan if value is None else float(value) for value in self._held[name]])

    def pictures(
        self, names: Sequence[str], uids: Sequence[str] | None
    ) -> tuple[list[Int64[np.ndarray, " n"]], Places]:
        """See `Table`; a picture is known by its file, with or without a uid."""
        shown = self._encode(" and ".join(names), [value for name in names for value in self._held[name]])
        codes = shown.codes.astype(np.int64)
        parts = [codes[start : start + len(self)] for start in range(0, len(codes), max(len(self), 1))]
        return parts, named_places(shown.values, self.folder, referred_from=self.path.parent)

    def place(self, row: int) -> str:
        """Number, from 1, and file."""
        return f"row {row + 1} of {self.path}"

    def _encode(self, name: str, values: Sequence[Any]) -> Texts:
        numbers: dict[str, int] = {}
        codes = np.empty(len(values), np.int32)
        for row, value in enumerate(values):
            if value is None:
                codes[row] = -1
            elif isinstance(value, str | int) and not isinstance(value, bool):
                codes[row] = numbers.setdefault(str(value), len(numbers))
            else:
                place = self.place(row % max(len(self), 1))
                raise UserError(f"{name} of {place} is {value!r}; text is needed there")
        return Texts(codes, list(numbers))


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a file, one after the other.

    Raises:
        UserError: No such file, no UTF-8, a row that is no object, or no rows.
    """
    if path.suffix.lower() == ".json":
        rows: Iterator[tuple[str, Any]] = _listed(path)
    else:
        rows = _lines(path)
    empty = True
    for place, row in rows:
        if not isinstance(row, dict):
            raise UserError(f'{place} of {path} is not an object; write {{"key": "value"}} for each row')
        empty = False
        yield row
    if empty:
        raise UserError(f"{path} has no rows; check the file")


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        yield f"line {number}", json.loads(line)
                    except json.JSONDecodeError as error:
                        raise UserError(f"line {number} of {path} is not JSON: {error.msg}") from error
    except (OSError, UnicodeDecodeError):
        read_text(path)  # says what is wrong
        raise


def _listed(path: Path) -> Iterator[tuple[str, Any]]:
    """Elements of one list, decoded one at a time: all of them at once take ten times the room of their text."""
    text = read_text(path)
    decode = json.JSONDecoder().raw_decode
    at = _after_blanks(text, 0)
    if text[at : at + 1] != "[":
        raise UserError(f"{path} holds no list; write [{{...}}, {{...}}], or use a .jsonl file")
    at, number = _after_blanks(text, at + 1), 0
    while text[at : at + 1] != "]":
        number += 1
        try:
            row, at = decode(text, at)
        except json.JSONDecodeError as error:
            raise UserError(f"element {number} of {path} is not JSON: {error.msg}") from error
        yield f"element {number}", row
        at = _after_blanks(text, at)
        if text[at : at + 1] == ",":
            at = _after_blanks(text, at + 1)
        elif text[at : at + 1] != "]":
            raise UserError(f"{path} ends or breaks after element {number}; it may be cut short")


def _after_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at
