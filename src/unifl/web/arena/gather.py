"""Pictures for an arena: from folders with metadata.jsonl, checked one by one and copied, names left behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from unifl.data.pictures import check_picture
from unifl.data.suites import require_text
from unifl.data.text_files import json_rows, read_text
from unifl.disk import require_free_space
from unifl.errors import UserError
from unifl.web.arena.database import Arena
from unifl.web.arena.pairs import Candidate

LONGEST_PROMPT = 10_000
"""Characters that a prompt may have; a page has to show it."""
_FORMATS = {".png", ".jpg", ".jpeg", ".webp", ".gif"}
_PICTURES = "pictures"
_NAMED = 3  # broken pictures that a message names


def read_folder(folder: Path, name: str = "") -> list[Candidate]:
    """The pictures that a folder's metadata.jsonl lists, with their places on this machine.

    Args:
        folder: As `unifl generate` or a sample store writes it.
        name: Of the model; that of each row by default, and that of the folder where rows have none.

    Raises:
        UserError: No such file, a row that lacks something, or one that names a file outside of the folder.
    """
    path = folder / "metadata.jsonl"
    if not path.is_file():
        raise UserError(
            f"{folder} has no metadata.jsonl; name a folder that `unifl generate` or `unifl score` wrote"
        )
    rows = json_rows(read_text(path), path)
    if not rows:
        raise UserError(f"{path} lists no picture; write a row for each")
    return [_candidate(row, folder, name, f"row {at} of {path}") for at, row in enumerate(rows, start=1)]


def _candidate(row: Mapping[str, object], folder: Path, name: str, place: str) -> Candidate:
    prompt, file = row.get("prompt", row.get("text")), row.get("file_name")
    if not isinstance(prompt, str) or not isinstance(file, str):
        raise UserError(f"{place} needs a prompt and a file_name; it has {sorted(row)}")
    checked_prompt(prompt, place)
    found = (folder / file.replace("\0", "")).resolve()
    if "\0" in file or not found.is_relative_to(folder.resolve()):
        raise UserError(f"{place} names {file!r}, which is outside of {folder}; move the picture there")
    if found.suffix.lower() not in _FORMATS:
        raise UserError(f"{place} names {file!r}; browsers show {', '.join(sorted(_FORMATS))} alone")
    seed, model = row.get("seed"), row.get("model")
    seed = seed if isinstance(seed, int) else 0
    if not -(2**63) <= seed < 2**63:
        raise UserError(
            f"{place} has the seed {seed}; arenas keep 64 bits with a sign, so write another number"
        )
    name = name or (model if isinstance(model, str) and model else folder.name)
    require_text(name, f"the model of {place}")
    return Candidate(prompt=prompt, file=str(found), model=name, seed=seed)


def checked_prompt(prompt: str, place: str) -> str:
    """The prompt itself.

    Raises:
        UserError: It is too long to be shown, or no text.
    """
    if len(prompt) > LONGEST_PROMPT:
        raise UserError(
            f"the prompt of {place} has {len(prompt)} characters; a page shows {LONGEST_PROMPT} at most, shorten it"
        )
    require_text(prompt, f"the prompt of {place}")
    return prompt


def require_distinct(candidates: Sequence[Candidate]) -> None:
    """Refuse two pictures of one model for the same prompt and seed from two folders: nobody could tell which won.

    Raises:
        UserError: There are such.
    """
    seen: dict[tuple[str, str, int], Path] = {}
    for one in candidates:
        folder = Path(one.file).parent
        other = seen.setdefault((one.model, one.prompt, one.seed), folder)
        if other != folder:
            raise UserError(
                f"{other} and {folder} both have pictures of {one.model!r} for the same prompts and seeds; give them "
                "names, as in --pictures before=FOLDER --pictures after=FOLDER"
            )


def require_whole(
    candidates: Sequence[Candidate], *, progress: Callable[[int, int], None] | None = None
) -> None:
    """Look at every picture before anything is done with them.

    Args:
        candidates: With their places on this machine.
        progress: Called with (pictures done, pictures).

    Raises:
        UserError: Some are missing or broken.
    """
    _require_whole([Path(one.file) for one in candidates], "replace them, or take their rows out", progress)


def take_in(
    candidates: Sequence[Candidate], arena: Path, *, progress: Callable[[int, int], None] | None = None
) -> list[Candidate]:
    """Check pictures and copy them into an arena's folder, under numbers that say nothing about their models.

    Args:
        candidates: With their places on this machine.
        arena: The folder; pictures that lie below it already stay where they are.
        progress: Called with (pictures done, pictures).

    Raises:
        UserError: Pictures that are missing or broken, or no room for them.
    """
    require_whole(candidates, progress=progress)
    inside = arena.resolve()
    outside = [one for one in candidates if not Path(one.file).is_relative_to(inside)]
    require_free_space(arena, sum(Path(one.file).stat().st_size for one in outside))
    (arena / _PICTURES).mkdir(parents=True, exist_ok=True)
    taken = []
    for number, one in enumerate(candidates):
        source = Path(one.file)
        if source.is_relative_to(inside):
            taken.append(replace(one, file=source.relative_to(inside).as_posix()))
            continue
        file = f"{_PICTURES}/{number:06d}{source.suffix.lower()}"
        shutil.copyfile(source, arena / file)
        taken.append(replace(one, file=file))
    return taken


def check_pictures(arena: Arena, *, progress: Callable[[int, int], None] | None = None) -> int:
    """Look at every picture of an arena before anybody is asked about it; returns how many there are.

    Raises:
        UserError: Some are missing or broken.
    """
    files = [arena.folder / row[0] for row in arena.rows("SELECT file FROM pictures ORDER BY id")]
    _require_whole(files, "put them back from where they came", progress)
    return len(files)


def _require_whole(files: Sequence[Path], advice: str, progress: Callable[[int, int], None] | None) -> None:
    wrong = []
    for number, file in enumerate(files, start=1):
        try:
            check_picture(file)
        except UserError as error:
            wrong.append(
                f"{error}".removeprefix("cannot read the image ").removesuffix("; replace or remove it")
            )
        if progress is not None:
            progress(number, len(files))
    if wrong:
        more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise UserError(
            f"{len(wrong)} of {len(files)} pictures cannot be shown: {'; '.join(wrong[:_NAMED])}{more}; {advice}"
        )
