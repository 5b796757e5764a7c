"""Pictures as files: one PNG each, a list of what they are, and a grid to look at."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from unifl.assembly.open_model import Opened
from unifl.errors import UserError
from unifl.evaluation.grid import picture_grid, to_pil
from unifl.models.user import UserRoles
from unifl.sampling import sample

_GRID_ROWS = 24
_GRID_CELL = 192  # px; small pictures are enlarged by whole pixels up to about this


def generate_pictures(
    model: Opened,
    prompts: Sequence[str],
    folder: str | Path,
    *,
    seed: int = 0,
    count: int = 1,
    batch_size: int = 16,
    user: tuple[str, Float[Tensor, "v e"]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Draw pictures and write them.

    The noise of a picture depends on its prompt's number and its seed alone, as in evaluations: two models give
    paired pictures.

    Args:
        model: See `open_model`.
        prompts: Texts.
        folder: Gets `<prompt number>_<seed>.png`, `metadata.jsonl` and `grid.png`.
        seed: The first seed.
        count: Pictures per prompt, with the seeds that follow.
        batch_size: Pictures at once.
        user: For whom, with a model that has a user adapter: id and embedding. None draws for somebody unknown.
        progress: Called with (pictures done, pictures in all).

    Returns:
        The PNG files in order of prompts, then seeds.

    Raises:
        UserError: No prompts, a count below 1, or a user for a model that has no user adapter.
    """
    if count < 1 or not prompts:
        raise UserError("nothing to draw; give at least one prompt and a count of at least 1")
    if user is not None and not isinstance(model.generator.roles, UserRoles):
        raise UserError(
            f"{model.name} has no user adapter, so it draws for nobody in particular; name no user"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    how, total = model.sampling, count * len(prompts)
    drawn = []
    for turn in range(count):
        images = sample(
            model.generator,
            prompts,
            seed=seed + turn,
            **how.arguments,
            users=None if user is None else user[1].expand(len(prompts), -1, -1),
            batch_size=batch_size,
            progress=_shifted(progress, turn * len(prompts), total),
        )
        drawn.append(images)
    pictures = torch.stack(drawn, dim=1)  # (prompts, count, 3, h, w)
    paths, rows = [], []
    for number, prompt in enumerate(prompts):
        for turn in range(count):
            path = folder / f"{number:05d}_{seed + turn}.png"
            to_pil(pictures[number, turn]).save(path)
            paths.append(path)
            row = _row(model, path.name, prompt, number, seed + turn)
            rows.append(row if user is None else {**row, "user": user[0]})
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")
    shown = [list(row) for row in pictures[:_GRID_ROWS]]
    scale = max(1, _GRID_CELL // pictures.shape[-1])
    picture_grid(shown, rows=list(prompts[:_GRID_ROWS]), scale=scale).save(folder / "grid.png")
    return paths


def _row(model: Opened, file_name: str, prompt: str, number: int, seed: int) -> dict[str, object]:
    how = model.sampling
    return {
        "file_name": file_name,
        "prompt": prompt,
        "index": number,
        "seed": seed,
        "model": model.name,
        "steps": how.num_steps,
        "guidance": how.guidance,
        "spacing": how.spacing,
        "negative_prompt": how.negative_prompt,
    }


def _shifted(
    progress: Callable[[int, int], None] | None, before: int, total: int
) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda done, _: progress(before + done, total)
