"""GenEval's `evaluation_metadata.jsonl`: prompts with what a detector should find (arXiv 2310.11513)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unifl.data.suites.entry import Entry, Wanted, checked
from unifl.data.text_files import numbered_rows, read_text
from unifl.errors import UserError

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
POSITIONS = ("left of", "right of", "above", "below")


def geneval(path: Path) -> list[Entry]:
    """Rows of `tag`, `include`, perhaps `exclude`, and `prompt`; the tag is the group.

    Raises:
        UserError: A row that lacks one of them, or asks for something that has no rule; with its number.
    """
    rows = numbered_rows(read_text(path), path)
    return [_entry(row, f"line {number} of {path}") for number, row in rows]


def drawn_folders(path: Path) -> list[Path]:
    """The folders `00000`, `00001`, ... that GenEval's script draws into, in their order; none if it is another folder.

    Each holds the line of its prompt as `metadata.jsonl`, and pictures as `samples/00000.png`, ....
    """
    found = path.iterdir() if path.is_dir() else ()
    numbered = [one for one in found if one.name.isdigit() and (one / "metadata.jsonl").is_file()]
    return sorted(numbered, key=lambda one: int(one.name))


def drawn_prompts(path: Path) -> list[Entry]:
    """The prompts of such a folder.

    Raises:
        UserError: It is none, or holds other than one prompt per number; see `geneval`.
    """
    entries = []
    for folder in drawn_folders(path):
        of_folder = geneval(folder / "metadata.jsonl")
        if len(of_folder) != 1:
            raise UserError(
                f"{folder / 'metadata.jsonl'} has {len(of_folder)} rows, and one prompt is drawn there"
            )
        entries += of_folder
    if not entries:
        raise UserError(
            f"{path} has no folders 00000, 00001, ... with a metadata.jsonl; name the file of the suite"
        )
    return entries


def _entry(row: Mapping[str, Any], place: str) -> Entry:
    prompt = checked(row.get("prompt"), place)
    tag, include, exclude = row.get("tag"), row.get("include"), row.get("exclude", [])
    if not isinstance(tag, str) or not isinstance(include, list) or not include:
        raise UserError(f"{place} needs tag and include, a list; it has {', '.join(sorted(row))}")
    if not isinstance(exclude, list):
        raise UserError(f"exclude of {place} is no list; write one, or leave it out")
    return Entry(
        prompt,
        tag,
        tuple(_wanted(clause, at, f"include {at} of {place}") for at, clause in enumerate(include)),
        tuple(_wanted(clause, 0, f"exclude {at} of {place}") for at, clause in enumerate(exclude)),
    )


def _wanted(clause: Any, at: int, place: str) -> Wanted:
    if not isinstance(clause, dict) or not isinstance(clause.get("class"), str):
        raise UserError(f"{place} names no class; write an object with class and count")
    count, color, position = clause.get("count"), clause.get("color"), clause.get("position")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise UserError(f"{place} has count {count!r}; a whole number of at least 1 is needed")
    if color is not None and not isinstance(color, str):
        raise UserError(f"{place} has color {color!r}; write a name")
    surplus = clause.keys() - {"class", "count", "color", "position"}
    if surplus:
        raise UserError(f"{place} has {', '.join(sorted(surplus))}, for which there is no rule; remove it")
    return Wanted(clause["class"], count, color, _position(position, at, place))


def _position(given: Any, at: int, place: str) -> tuple[str, int] | None:
    if given is None:
        return None
    sound = isinstance(given, list) and len(given) == 2 and given[0] in POSITIONS
    if not sound or isinstance(given[1], bool) or not isinstance(given[1], int) or not 0 <= given[1] < at:
        raise UserError(
            f"{place} has position {given!r}; write one of {', '.join(POSITIONS)} and the number of an earlier clause"
        )
    return given[0], given[1]
