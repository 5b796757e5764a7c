"""Pictures as files: one PNG each, a list of what they are, and a grid to look at.

A batch's pictures are files as soon as they are drawn, so that no number of them needs memory, and a call that was
interrupted goes on. `metadata.jsonl` comes last: a folder that has one is whole.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from unifl.assembly.drawing import GRID, Drawing
from unifl.assembly.open_model import Opened
from unifl.data.store import METADATA, SETTINGS
from unifl.disk import claimed, require_free_space, require_writable, write_atomically
from unifl.errors import UserError
from unifl.evaluation.grid import picture_grid, to_pil
from unifl.sampling import sample

_GRID_ROWS, _GRID_COLUMNS = 24, 8
_GRID_CELL = 192  # px; small pictures are enlarged by whole pixels up to about this
_GRID_MAX = 512  # px; larger ones are made smaller
_ROW_BYTES = 1000  # of metadata.jsonl, beside the prompt

Progress = Callable[[int, int], None]


def generate_pictures(
    model: Opened,
    prompts: Sequence[str],
    folder: str | Path,
    *,
    seed: int = 0,
    count: int = 1,
    batch_size: int = 16,
    user: tuple[str, Float[Tensor, "v e"]] | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Draw pictures and write them, or what an earlier call for the same ones left undone.

    The noise of a picture depends on its prompt's number and its seed alone, as in evaluations: two models give
    paired pictures.

    Args:
        model: See `open_model`.
        prompts: Texts.
        folder: Gets `<prompt number>_<seed>.png`, `grid.png`, `generate.json` and, last, `metadata.jsonl`.
        seed: The first seed.
        count: Pictures per prompt, with the seeds that follow.
        batch_size: Pictures at once.
        user: For whom, with a model that has a user adapter: id and embedding. None draws for somebody unknown.
        progress: Called with (pictures there, pictures in all).

    Returns:
        The PNG files in order of prompts, then seeds.

    Raises:
        UserError: No prompts, a count or batch size below 1, a user for a model that has no user adapter; a folder
            that cannot be written, that another call draws into, that holds other pictures, or is on a disk without
            room for these.
    """
    drawing = Drawing(model=model, prompts=prompts, seed=seed, count=count, user=user)
    return draw(drawing, Path(folder), batch_size=batch_size, progress=progress)


def draw(
    drawing: Drawing, folder: Path, *, batch_size: int = 16, progress: Progress | None = None
) -> list[Path]:
    """The same, for what is asked for by a `Drawing`."""
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1")
    require_writable(folder / METADATA)
    with claimed(folder):
        return _draw_missing(drawing, folder, batch_size, progress)


def _draw_missing(drawing: Drawing, folder: Path, batch_size: int, progress: Progress | None) -> list[Path]:
    drawing.check(folder)
    rows = drawing.rows
    paths = [folder / str(row["file_name"]) for row in rows]
    missing = {path for path in paths if not path.is_file()}
    require_free_space(folder, _bytes_to_write(drawing, len(missing)))
    if progress is not None:
        progress(len(paths) - len(missing), len(paths))
    for turn in range(drawing.count):
        for start in range(0, len(drawing.prompts), batch_size):
            numbers = range(start, min(start + batch_size, len(drawing.prompts)))
            places = [folder / drawing.file_name(number, turn) for number in numbers]
            if missing.isdisjoint(places):
                continue
            # whole even where a part of it is there: rounding depends on what is drawn together
            images = _batch(drawing, numbers, turn)
            if not (folder / SETTINGS).is_file():  # not before: settings that cannot be drawn take no folder
                drawing.sign(folder)
            for place, image in zip(places, images, strict=True):
                if place in missing:
                    write_atomically(place, _png(to_pil(image)))
                    missing.remove(place)
            if progress is not None:
                progress(len(paths) - len(missing), len(paths))
    if not (folder / GRID).is_file():
        write_atomically(folder / GRID, _png(_grid(drawing, folder)))
    if not (folder / METADATA).is_file():  # which may have got scores since
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomically(folder / METADATA, lines.encode())
    return paths


def _batch(drawing: Drawing, numbers: range, turn: int) -> Float[Tensor, "b 3 h w"]:
    """Pictures of some prompts."""
    user = drawing.user
    return sample(
        drawing.model.generator,
        [drawing.prompts[number] for number in numbers],
        seed=drawing.seed + turn,
        indices=numbers,
        **drawing.model.sampling.arguments,
        users=None if user is None else user[1].expand(len(numbers), -1, -1),
        batch_size=len(numbers),
    )


def _bytes_to_write(drawing: Drawing, pictures: int) -> int:
    """At most, as PNG makes pictures smaller."""
    height, width = drawing.model.generator.image_size
    texts = drawing.count * sum(len(prompt.encode()) for prompt in drawing.prompts)
    return pictures * (3 * height * width + _ROW_BYTES) + texts


def _grid(drawing: Drawing, folder: Path) -> Image.Image:
    """The first pictures of the first prompts, from their files."""
    prompts = list(drawing.prompts[:_GRID_ROWS])
    turns = range(min(drawing.count, _GRID_COLUMNS))
    shown = [
        [_opened(folder / drawing.file_name(number, turn)) for turn in turns]
        for number in range(len(prompts))
    ]
    return picture_grid(shown, rows=prompts, scale=max(1, _GRID_CELL // shown[0][0].width))


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        picture.thumbnail((_GRID_MAX, _GRID_MAX))
        return picture.copy()


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()
