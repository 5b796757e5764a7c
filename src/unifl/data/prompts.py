"""Prompts from the file formats that people already have."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

from unifl.errors import UserError


def load_prompts(path: str | Path) -> list[str]:
    """Read one prompt per row.

    Args:
        path: A `.txt` file (one prompt per line), a `.jsonl` file (objects with a `prompt`) or a `.tsv` file
            (a column `Prompt`, as in PartiPrompts). Blank lines are skipped, repeated prompts are kept.

    Returns:
        The prompts in the order of the file, without surrounding blanks.

    Raises:
        UserError: No such file, another ending, text that is not UTF-8, a row without its prompt, or no
            prompt at all.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"cannot read prompts from {path}; use a {', '.join(_READERS)} file")
    prompts = [prompt.strip() for prompt in reader(read_text(path), path)]
    prompts = [prompt for prompt in prompts if prompt]
    if not prompts:
        raise UserError(f"{path} holds no prompt; write at least one")
    return prompts


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
        except json.JSONDecodeError as error:
            raise UserError(f"line {number} of {path} is not JSON: {error.msg}") from error
        if not isinstance(row, dict):
            raise UserError(
                f'line {number} of {path} is not an object; write {{"key": "value"}} on each line'
            )
        rows.append((number, row))
    return rows


def _from_lines(text: str, path: Path) -> list[str]:
    # `splitlines` would also cut at characters that belong to a prompt, such as U+2028; "\r\n" is "\n" already
    return text.split("\n")


def _from_jsonl(text: str, path: Path) -> list[str]:
    prompts = []
    for number, row in enumerate(json_rows(text, path), start=1):
        if not isinstance(row.get("prompt"), str):
            raise UserError(f"row {number} of {path} has no text under `prompt`; its keys are {sorted(row)}")
        prompts.append(row["prompt"])
    return prompts


def _from_tsv(text: str, path: Path) -> list[str]:
    rows = csv.DictReader(text.split("\n"), delimiter="\t", quoting=csv.QUOTE_NONE)
    if "Prompt" not in (rows.fieldnames or []):
        raise UserError(f"{path} has no column `Prompt`; its columns are {rows.fieldnames or []}")
    return [row["Prompt"] or "" for row in rows]


_READERS: dict[str, Callable[[str, Path], list[str]]] = {
    ".txt": _from_lines,
    ".jsonl": _from_jsonl,
    ".tsv": _from_tsv,
}
