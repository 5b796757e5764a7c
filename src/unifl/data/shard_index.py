"""Which files a pattern means, and where the samples of a tar file are."""

from __future__ import annotations

import glob
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from unifl.errors import UserError

PICTURES = ("jpg", "jpeg", "png", "webp")

_BLOCK = 512
_NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICES = re.compile(r"\{([^{}]*,[^{}]*)\}")


@dataclass(frozen=True)
class Part:
    """Where the bytes of one file lie in a tar file."""

    extension: str
    offset: int
    size: int


@dataclass(frozen=True)
class Entry:
    """The files that share a key, by extension."""

    key: str
    picture: Part | None
    text: Part | None
    json: Part | None

    @property
    def whole(self) -> bool:
        """Whether it has a picture and a file that may hold a caption."""
        return self.picture is not None and (self.text is not None or self.json is not None)


@dataclass
class ShardIndex:
    """What a tar file holds.

    Attributes:
        entries: In the order of the file.
        cut_at: Byte at which a file that was cut short ends or stops making sense; None for a whole one.
    """

    entries: list[Entry] = field(default_factory=list)
    cut_at: int | None = None


def expand(patterns: str | Path | Sequence[str | Path]) -> list[Path]:
    """Files by name, glob, brace pattern or folder, in order.

    Args:
        patterns: One or several of: `a.tar`; `*.tar`; `{00000..00012}.tar` and `{train,extra}.tar`, which ask for
            every file that they name; a folder, for all `*.tar` in it.

    Raises:
        UserError: Nothing matches, or a file that was asked for is not there.
    """
    given = [patterns] if isinstance(patterns, str | Path) else list(patterns)
    files: list[Path] = []
    for pattern in map(str, given):
        if "://" in pattern or pattern.startswith("pipe:"):
            raise UserError(f"{pattern} is not on this disk; download the shards and name the files")
        named = [Path(name).expanduser() for name in _braces(pattern)]
        found = [file for name in named for file in _matching(name)]
        if not found:
            raise UserError(f"no shard matches {pattern}; name .tar files, a glob or a folder of them")
        missing = [file for file in found if not file.is_file()]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(found)} shards of {pattern} are not there, first {missing[0]}; "
                "change the numbers, or fetch the rest"
            )
        files += found
    if not files:
        raise UserError("no shards were named; give .tar files, a glob or a folder of them")
    return list(dict.fromkeys(files))


def index_shard(path: Path) -> ShardIndex:
    """Walk the headers of a tar file once; pictures are not read.

    Files belong to one sample when they stand one after the other and have the same name up to the first dot, as
    the webdataset format says. Of a file that was cut short, what is whole before the cut is listed.

    Raises:
        UserError: It cannot be opened, is no uncompressed tar file, or holds a file twice.
    """
    length = _length(path)
    index = ShardIndex()
    key = ""
    parts: dict[str, Part] = {}
    for name, part in _members(path, length, index):
        folder, dot, extension = _split(name)
        if not dot:
            continue
        if folder != key and parts:
            index.entries.append(_entry(key, parts))
            parts = {}
        key = folder
        if extension in parts:
            raise UserError(f"the shard {path} holds {name} twice; give every sample a name of its own")
        parts[extension] = part
    if parts:
        last = _entry(key, parts)
        # its missing files may lie behind the cut
        if index.cut_at is None or last.whole:
            index.entries.append(last)
    return index


def read_part(file: BinaryIO, part: Part) -> bytes:
    """The bytes of one file of an open shard."""
    file.seek(part.offset)
    return file.read(part.size)


def caption_in(content: bytes, extension: str, caption_key: str, place: str) -> str | None:
    """The caption in the bytes of a `.txt` or `.json`; None where a `.json` has none.

    Args:
        content: The bytes.
        extension: "txt" or "json".
        caption_key: Field of the JSON object.
        place: What an error calls the sample.

    Raises:
        UserError: It is not text.
    """
    try:
        text = content.decode("utf-8-sig")
        if extension == "txt":
            return text.strip()
        fields: Any = json.loads(text)
    except ValueError as error:  # of the decoder or the JSON
        raise UserError(
            f"the caption of {place} is not text: its .{extension} cannot be read ({error}); mend or remove it"
        ) from error
    if not isinstance(fields, dict):
        raise UserError(f"the .json of {place} is not an object; write {{{caption_key!r}: 'text'}}")
    caption = fields.get(caption_key)
    if caption is not None and not isinstance(caption, str):
        raise UserError(
            f"the caption of {place} is not text: `{caption_key}` holds {type(caption).__name__}; write a string"
        )
    return None if caption is None else caption.strip()


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UserError(f"cannot read the shard {path}: {error.strerror or error}; check the path") from error


def _members(path: Path, length: int, index: ShardIndex) -> Iterator[tuple[str, Part]]:
    """Whole files of a tar file; notes in the index where it was cut."""
    if length == 0:
        index.cut_at = 0
        return
    try:
        with tarfile.open(path, "r:") as archive:
            try:
                while (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # or they would all be kept
                    if member.offset_data + member.size > length:
                        break
                    if member.isfile():
                        yield member.name, Part("", member.offset_data, member.size)
            except tarfile.ReadError:
                pass  # the end of the data is missing; judged below
            if not _ends(path, archive.offset):
                index.cut_at = min(archive.offset, length)
    except tarfile.ReadError as error:
        if length < _BLOCK:
            index.cut_at = length
            return
        raise UserError(
            f"{path} is no uncompressed tar file ({error}); unpack or download it again"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read the shard {path}: {error.strerror or error}; check the path") from error


def _ends(path: Path, offset: int) -> bool:
    """Whether the mark of the end (two blocks of zeros) begins here.

    `tarfile` takes a broken header, and a file that stops between two members, for the end as well.
    """
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(_BLOCK) == bytes(_BLOCK)


def _split(name: str) -> tuple[str, str, str]:
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    return folder + slash + stem, dot if stem else "", extension.lower()


def _entry(key: str, parts: dict[str, Part]) -> Entry:
    named = {extension: Part(extension, part.offset, part.size) for extension, part in parts.items()}
    picture = next((named[extension] for extension in PICTURES if extension in named), None)
    return Entry(key, picture, named.get("txt"), named.get("json"))


def _braces(pattern: str) -> list[str]:
    """All strings that a pattern with braces stands for; the first pair of braces changes slowest."""
    numbers, words = _NUMBERS.search(pattern), _CHOICES.search(pattern)
    found = min((match for match in (numbers, words) if match), key=lambda match: match.start(), default=None)
    if found is None:
        return [pattern]
    if found is words:
        choices = found.group(1).split(",")
    else:
        first, last = found.groups()
        if int(last) < int(first):
            raise UserError(f"{found.group()} in {pattern} counts down; write the smaller number first")
        width = len(first) if first.startswith("0") else 0
        choices = [str(number).zfill(width) for number in range(int(first), int(last) + 1)]
    start, end = pattern[: found.start()], pattern[found.end() :]
    return [whole for choice in choices for whole in _braces(start + choice + end)]


def _matching(name: Path) -> list[Path]:
    if name.is_dir():
        return sorted(name.glob("*.tar"))
    if glob.has_magic(str(name)) and not name.exists():
        return sorted(Path(found) for found in glob.glob(str(name), recursive=True))
    return [name]
