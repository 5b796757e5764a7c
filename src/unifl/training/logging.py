"""The plain files of a run: one line of numbers per step, and grids of pictures."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor


class StepLines:
    """A file with one JSON object per training step, such as `metrics.jsonl`.

    After a resume it goes on at the checkpoint's step, so that its bytes end up as those of an uninterrupted
    run. Nothing that depends on the clock belongs in `metrics.jsonl`; durations go to `timings.jsonl`.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        """Open the file for the steps after `step`, dropping what it holds beyond."""
        self.path = path
        kept = [line for line in _lines(path) if _step(line) <= step]
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Add the line of one step."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Bring the lines to the disk itself; a checkpoint must not be ahead of them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a `metrics.jsonl`, a torn last line left out."""
    return [json.loads(line) for line in _lines(path)]


def save_grid(images: Float[Tensor, "n 3 h w"], path: Path) -> None:
    """Save pictures as one PNG, row by row in a grid that is about as wide as it is high.

    Args:
        images: In [0, 1].
        path: File to write; it appears complete.
    """
    count, _, height, width = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    canvas = torch.ones(rows * height, columns * width, 3)
    for number, image in enumerate(images.detach().float().cpu().clamp(0, 1)):
        top, left = number // columns * height, number % columns * width
        canvas[top : top + height, left : left + width] = image.permute(1, 2, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    Image.fromarray((canvas * 255).round().byte().numpy()).save(temporary, format="PNG")
    os.replace(temporary, path)


def _lines(path: Path) -> list[str]:
    """Complete lines; a process that was killed may have left half of the last one."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n")]


def _step(line: str) -> int:
    return int(json.loads(line)["step"])
