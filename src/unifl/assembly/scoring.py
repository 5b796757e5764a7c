"""Scores of pictures in a folder, beside what its `metadata.jsonl` says already."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unifl.data.pictures import check_picture, read_picture, to_tensor
from unifl.data.store import METADATA
from unifl.data.text_files import json_rows, read_text
from unifl.disk import claimed, require_writable, write_atomically
from unifl.errors import UserError
from unifl.feedback import Feedback
from unifl.feedback.black_box import require_scores
from unifl.metrics import Interval, mean_interval

_PROMPT_KEYS = ("prompt", "text", "caption")
_SAVED_EVERY = 16  # batches


def score_folder(
    folder: str | Path,
    scorers: Mapping[str, Feedback],
    *,
    batch_size: int = 16,
    again: bool = False,
    device: torch.device | str = "cpu",
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Interval]:
    """Score every picture of a folder, and write what came of it into its `metadata.jsonl`.

    The folder is what `unifl generate` or a sample store writes: rows with `file_name` and a prompt. Afterwards it is a
    sample store, of which `unifl preferences` makes pairs. Scores that are there stay; an interrupted run goes on where
    it was, and whatever else a row says is kept.

    Args:
        folder: With `metadata.jsonl` and the pictures.
        scorers: By the names that scores get.
        batch_size: Pictures at once; only pictures of one size go together.
        again: Score what has a score already, too.
        device: Where pictures are shown to scorers.
        progress: Called with (name, pictures done, pictures to do).

    Returns:
        The mean of each score over prompts, with its interval.

    Raises:
        UserError: No such folder or rows, another call that works there, a row that names no picture or prompt, a
            picture that cannot be read, or a scorer on latents.
        FeedbackFailed: A scorer that gives something else than a finite number per picture.
    """
    path = Path(folder) / METADATA
    for name, scorer in scorers.items():
        if scorer.space != "pixel":
            raise UserError(
                f"{name} reads {scorer.space}s, and these are pictures; choose a scorer on pixels"
            )
    _rows(path)
    require_writable(path)
    with claimed(path.parent):  # the file is written whole: what another call scored meanwhile would be lost
        return _scored(path, scorers, batch_size, again, device, progress)


def _scored(
    path: Path,
    scorers: Mapping[str, Feedback],
    batch_size: int,
    again: bool,
    device: torch.device | str,
    progress: Callable[[str, int, int], None] | None,
) -> dict[str, Interval]:
    rows = _rows(path)
    sizes = [check_picture(path.parent / row["file_name"]) for row in rows]
    for name, scorer in scorers.items():
        todo = [at for at, row in enumerate(rows) if again or name not in row["scores"]]
        done = 0
        try:
            for turn, batch in enumerate(_batches(todo, sizes, batch_size), start=1):
                pictures = [read_picture(path.parent / rows[at]["file_name"]) for at in batch]
                images = torch.stack([to_tensor(picture) for picture in pictures]).to(device)
                with torch.no_grad():
                    answer = scorer(images, [rows[at]["prompt"] for at in batch])
                found = require_scores(answer, images, name=name).tolist()
                for at, score in zip(batch, found, strict=True):
                    rows[at]["scores"][name] = score
                done += len(batch)
                if progress is not None:
                    progress(name, done, len(todo))
                if turn % _SAVED_EVERY == 0:
                    _write(path, rows)
        finally:
            if done:
                _write(path, rows)
    return {name: _mean(rows, name) for name in scorers}


def _rows(path: Path) -> list[dict[str, Any]]:
    """Rows with `prompt` and `scores`, whatever their prompt was called."""
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent}; check the path")
    if not path.is_file():
        raise UserError(
            f"{path.parent} has no {METADATA}, which says what its pictures were drawn for; write a row with file_name "
            "and prompt for each picture, as `unifl generate` does"
        )
    rows = []
    for number, row in enumerate(json_rows(read_text(path), path), start=1):
        prompt = next((row[key] for key in _PROMPT_KEYS if isinstance(row.get(key), str)), None)
        if prompt is None or not isinstance(row.get("file_name"), str):
            raise UserError(
                f"row {number} of {path} needs file_name and prompt, and has {', '.join(sorted(row))}"
            )
        scores = row.get("scores", {})
        if not isinstance(scores, dict):
            raise UserError(f"scores of row {number} of {path} are {scores!r}; write a number by name")
        rows.append({**row, "prompt": prompt, "scores": dict(scores)})
    if not rows:
        raise UserError(f"{path} has no rows; there is nothing to score")
    return rows


def _batches(todo: Sequence[int], sizes: Sequence[tuple[int, int]], batch_size: int) -> Iterator[list[int]]:
    """Rows of one size at a time."""
    for size in dict.fromkeys(sizes[at] for at in todo):
        alike = [at for at in todo if sizes[at] == size]
        for start in range(0, len(alike), batch_size):
            yield alike[start : start + batch_size]


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(path, lines.encode(errors="surrogatepass"))


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> Interval:
    """Over prompts, each of which counts once."""
    by_prompt: dict[str, list[float]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt"], []).append(row["scores"][name])
    return mean_interval(np.array([np.mean(scores) for scores in by_prompt.values()]))
