"""The plain files of a run."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from unifl.training.logging import StepLines, read_lines, save_grid


def test_lines_beyond_the_step_and_torn_lines_go(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = StepLines(path, step=0)
    for step in range(1, 5):
        lines.write(step, {"loss": 1 / step})
    lines.close()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 5, "lo')
    assert [line["step"] for line in read_lines(path)] == [1, 2, 3, 4]

    lines = StepLines(path, step=2)
    lines.write(3, {"loss": 1 / 3})
    lines.write(4, {"loss": 1 / 4})
    lines.sync()
    lines.close()
    assert path.read_bytes() == whole


def test_a_new_run_starts_with_an_empty_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    StepLines(path, step=0).close()
    assert path.read_text() == ""


def test_the_grid_shows_every_picture_in_order(tmp_path):
    images = torch.arange(5).reshape(5, 1, 1, 1).expand(5, 3, 4, 6) * 0.2
    save_grid(images + 1e-3, tmp_path / "samples" / "grid.png")
    pixels = np.asarray(Image.open(tmp_path / "samples" / "grid.png"))
    assert pixels.shape == (8, 18, 3)
    centres = [pixels[2 + 4 * (n // 3), 3 + 6 * (n % 3), 0] for n in range(6)]
    assert centres == [0, 51, 102, 153, 204, 255]  # the empty place is white
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["grid.png"]


def test_values_outside_the_range_are_clamped(tmp_path):
    save_grid(torch.tensor([-1.0, 2.0]).reshape(2, 1, 1, 1).expand(2, 3, 2, 2), tmp_path / "grid.png")
    pixels = np.asarray(Image.open(tmp_path / "grid.png"))
    assert pixels[0, 0, 0] == 0 and pixels[0, 2, 0] == 255
