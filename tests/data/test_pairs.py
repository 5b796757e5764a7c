from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from unifl.data import PreferencePairs
from unifl.errors import UserError


def _pictures(folder):
    Image.new("RGB", (8, 8), "white").save(folder / "white.png")
    Image.new("RGB", (8, 8), "black").save(folder / "black.png")


def _rows(folder, *rows):
    _pictures(folder)
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return PreferencePairs.from_folder(folder)


def test_prompt_chosen_rejected(tmp_path):
    row = {"prompt": "a", "chosen": "white.png", "rejected": "black.png", "axis": "color"}
    pairs = _rows(tmp_path, row, row | {"axis": "detail", "prompt": "b"})
    pairs.validate()
    assert len(pairs) == 2 and pairs.axes == ["color", "detail"]
    pair = pairs[0]
    assert pair.prompt == "a" and float(pair.win.min()) == 1.0 and float(pair.lose.max()) == 0.0
    assert [pair.prompt for pair in map(pairs.of_axis("detail").__getitem__, [0])] == ["b"]


def test_pick_a_pic_columns_and_ties(tmp_path):
    row = {"caption": "a", "jpg_0": "black.png", "jpg_1": "white.png", "label_0": 0.0, "label_1": 1.0}
    swapped = row | {"label_0": 1.0, "label_1": 0.0}
    tie = row | {"label_0": 0.5, "label_1": 0.5}
    pairs = _rows(tmp_path, row, swapped, tie)
    assert len(pairs) == 2 and pairs.ties == 1
    assert float(pairs[0].win.mean()) == 1.0 and float(pairs[1].win.mean()) == 0.0


def test_pairs_in_memory():
    pairs = PreferencePairs.from_tensors(["a", "b"], torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4))
    pairs.validate()
    assert pairs[1].prompt == "b" and float(pairs[1].win.mean()) == 1.0
    assert [pairs.subset([1])[0].prompt] == ["b"]


def test_errors(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        PreferencePairs.from_folder(tmp_path / "none")
    with pytest.raises(UserError, match="neither metadata"):
        PreferencePairs.from_folder(tmp_path)
    with pytest.raises(UserError, match="row 1 .* has the columns"):
        _rows(tmp_path, {"prompt": "a", "win": "white.png"})
    good = {"prompt": "a", "chosen": "white.png", "rejected": "gone.png"}
    with pytest.raises(UserError, match=r"gone\.png"):
        _rows(tmp_path, good).validate()
    with pytest.raises(UserError, match="no pairs for the axis 'color'"):
        _rows(tmp_path, good).of_axis("color")
    tie = {"caption": "a", "jpg_0": "black.png", "jpg_1": "white.png", "label_0": 1, "label_1": 1}
    with pytest.raises(UserError, match="no preference pairs"):
        _rows(tmp_path, tie)
