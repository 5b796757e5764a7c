"""Text that people wrote, in UTF-8, and JSON lines; what is wrong is said with the number of its line."""

from __future__ import annotations

import json
from pathlib import Path

from unifl.errors import UserError


def read_text(path: Path) -> str:
    """The text of a UTF-8 file (a byte order mark is dropped), or a `UserError` that says what is wrong."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}; check the path") from error
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error.start) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if (
        "\0" in text
    ):  # English in UTF-16 without a byte order mark is valid UTF-8, with a NUL beside each letter
        raise _not_utf8(path, text.index("\0"))
    return text


def _not_utf8(path: Path, where: int) -> UserError:
    """What the encoding probably is, and the command that converts the file."""
    start = path.read_bytes()[: 2**20]
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in start:
        likely = "UTF-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "UTF-16LE"
    else:
        likely = "WINDOWS-1252"
    return UserError(
        f"{path} is not UTF-8 text (byte {where}), but probably {likely}; convert it, for example by "
        f"`iconv -f {likely} -t UTF-8 {path.name} > utf8{path.suffix}`"
    )


def json_rows(text: str, path: Path) -> list[dict]:
    """The objects of a JSON-lines text.

    Raises:
        UserError: A line that is not a JSON object, named by its number.
    """
    return [row for _, row in numbered_rows(text, path)]


def numbered_rows(text: str, path: Path) -> list[tuple[int, dict]]:
    """The same, each with the number of its line.

    Raises:
        UserError: See `json_rows`.
    """
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and deep nesting
            raise UserError(f"line {number} of {path} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(
                f'line {number} of {path} is not an object; write {{"key": "value"}} on each line'
            )
        rows.append((number, row))
    return rows
