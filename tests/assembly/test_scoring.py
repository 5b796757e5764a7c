"""Scores of a folder of pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from unifl.assembly import resolve
from unifl.assembly.part import Part
from unifl.assembly.scoring import score_folder
from unifl.data.preferences import PreferenceSet, read_preferences
from unifl.data.store import SampleStore
from unifl.errors import FeedbackFailed, UserError
from unifl.feedback import as_feedback
from unifl.feedback.scorers import Sharpness, open_scorer


@pytest.fixture
def folder(tmp_path):
    """Five pictures of two prompts in two sizes, as other tools describe them."""
    rows = []
    for number, (side, prompt) in enumerate(((16, "a"), (24, "a"), (16, "b"), (24, "b"), (16, "b"))):
        values = np.full((side, side, 3), 40 * number + 20, np.uint8)
        Image.fromarray(values).save(tmp_path / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "text": prompt, "seed": number, "note": "kept"})
    write(tmp_path, rows)
    return tmp_path


def write(folder, rows):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def brightness(images, prompts):
    return images.mean((1, 2, 3)) + torch.tensor([float(prompt == "b") for prompt in prompts])


def test_every_picture_gets_its_own_score(folder):
    found = score_folder(folder, {"light": as_feedback(brightness), "sharp": Sharpness()}, batch_size=2)
    scored = rows_of(folder)
    expected = [(40 * n + 20) / 255 + (n > 1) for n in range(5)]
    assert [row["scores"]["light"] for row in scored] == pytest.approx(expected, abs=1e-6)
    assert [row["note"] for row in scored] == ["kept"] * 5 and scored[2]["prompt"] == "b"
    # a prompt counts once, however many pictures it has
    assert found["light"].value == pytest.approx((np.mean(expected[:2]) + np.mean(expected[2:])) / 2)
    assert found["light"].n == 2 and found["sharp"].value == pytest.approx(0, abs=1e-6)


def test_the_folder_is_a_sample_store_of_which_pairs_are_made(folder):
    score_folder(folder, {"light": as_feedback(brightness)})
    assert len(SampleStore(folder)) == 5
    pairs = PreferenceSet(read_preferences(folder, score="light", pairing="extremes"), resolution=16)
    assert {(pair.prompt, float(pair.win.mean()) > float(pair.lose.mean())) for pair in pairs} == {
        ("a", True),
        ("b", True),
    }


def test_what_has_a_score_is_not_asked_again(folder):
    asked = []

    def count(images, prompts):
        asked.extend(prompts)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return [float(len(asked))] * len(images)

    feedback = as_feedback(count, differentiable=False)
    with pytest.raises(KeyboardInterrupt):
        score_folder(folder, {"n": feedback}, batch_size=1)
    assert sum("n" in row["scores"] for row in rows_of(folder)) == 2  # what was answered is kept
    seen = []
    score_folder(folder, {"n": feedback}, batch_size=1, progress=lambda *at: seen.append(at))
    assert seen[-1] == ("n", 3, 3) and len(asked) == 6
    score_folder(folder, {"n": feedback}, batch_size=1)
    assert len(asked) == 6
    score_folder(folder, {"n": feedback}, batch_size=1, again=True)
    assert len(asked) == 11


def test_mistakes_are_told_before_anything_is_scored(folder, tmp_path):
    feedback = {"light": as_feedback(brightness)}
    rows = rows_of(folder)
    with pytest.raises(UserError, match=r"there is no folder .*nothing; check the path"):
        score_folder(tmp_path / "nothing", feedback)
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match=r"has no metadata.jsonl"):
        score_folder(tmp_path / "bare", feedback)
    write(folder, [*rows[:2], {"file_name": "2.png"}])
    with pytest.raises(UserError, match="row 3 of .* needs file_name and prompt, and has file_name"):
        score_folder(folder, feedback)
    write(folder, [*rows, {"file_name": "lost.png", "prompt": "a"}])
    with pytest.raises(UserError, match="lost.png"):
        score_folder(folder, feedback)
    (folder / "lost.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="lost.png"):
        score_folder(folder, feedback)
    write(folder, [])
    with pytest.raises(UserError, match="has no rows"):
        score_folder(folder, feedback)
    write(folder, [rows[0] | {"scores": [1]}])
    with pytest.raises(UserError, match="scores of row 1"):
        score_folder(folder, feedback)
    write(folder, rows)
    bad = as_feedback(lambda images, prompts: torch.full((len(images),), torch.nan), name="bad")
    with pytest.raises(FeedbackFailed, match="'bad' returned nan"):
        score_folder(folder, {"bad": bad})
    assert not any(row.get("scores") for row in rows_of(folder))


def test_scorers_are_found_by_name():
    assert resolve.feedback("scorer:sharpness", name="sharp").name == "sharpness"
    assert not resolve.is_file("scorer:hpsv2.1")
    with pytest.raises(UserError, match="no scorer 'sharpnes'; did you mean 'sharpness'"):
        resolve.feedback("scorer:sharpnes", name="sharp")
    with pytest.raises(UserError, match="its arguments are weights, base and revision"):
        resolve.feedback(Part(path="scorer:sharpness", kwargs={"size": 3}), name="sharp")
    assert open_scorer("sharpness").needs == frozenset()


def test_what_another_call_scored_is_not_lost(folder):
    def meanwhile(name, done, total):
        with pytest.raises(UserError, match="another process works in"):
            score_folder(folder, {"sharp": Sharpness()})

    score_folder(folder, {"light": as_feedback(brightness)}, progress=meanwhile)
    score_folder(folder, {"sharp": Sharpness()})
    assert all(row["scores"].keys() == {"light", "sharp"} for row in rows_of(folder))
    with pytest.raises(UserError, match="there is no folder"):
        score_folder(folder / "nothing", {"sharp": Sharpness()})
    assert not (folder / "nothing").exists()
