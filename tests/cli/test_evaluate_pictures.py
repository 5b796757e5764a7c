"""`unifl evaluate` on pictures that another tool drew."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unifl.assembly.evaluate import Candidate
from unifl.metrics import read_result

sys.path.insert(0, str(Path(__file__).parents[1] / "feedback"))
sys.path.insert(0, str(Path(__file__).parents[1] / "feedback" / "features"))

ROWS = [
    {"tag": "single_object", "include": [{"class": "circle", "count": 1}], "prompt": "a circle"},
    {"tag": "colors", "include": [{"class": "square", "count": 1, "color": "red"}], "prompt": "a red square"},
]


def draw_elsewhere(folder, rows=ROWS, number=2, side=32):
    """As GenEval's script leaves pictures, with its grid beside them; each of the pictures is of one grey."""
    for i, row in enumerate(rows):
        samples = folder / f"{i:05d}/samples"
        samples.mkdir(parents=True)
        (folder / f"{i:05d}/metadata.jsonl").write_text(json.dumps(row))
        Image.new("RGB", (2 * side, side)).save(folder / f"{i:05d}/grid.png")
        for k in range(number):
            Image.new("RGB", (side, side), (10 * (1 + 10 * i + k),) * 3).save(samples / f"{k:05d}.png")


def test_pictures_of_another_tool_are_judged_where_they_lie(workspace, unifl, monkeypatch):
    from test_detectors import yolos

    drawn, real = [], Candidate.draw
    monkeypatch.setattr(Candidate, "draw", lambda *given, **how: drawn.append(1) or real(*given, **how))
    (workspace / "detector").mkdir()
    yolos(workspace / "detector")
    draw_elsewhere(workspace / "theirs")
    (workspace / "grey.py").write_text("def light(images, prompts):\n    return images.mean((1, 2, 3))\n")
    arguments = ("--detector", "detector", "--color-model", "world:palette", "--seeds", "2", "--out", "out")
    result = unifl("evaluate", "theirs", *arguments, "--score", "light=grey:light")
    assert result.exit_code == 0 and not drawn, result.output
    entry = read_result(workspace / "out/result.json").models["theirs"]
    assert (entry.sampler, entry.steps, entry.metrics["geneval"].n) == ("files", 0, 2)
    assert entry.metrics["light/single_object"].value == pytest.approx((10 + 20) / 2 / 255)
    assert entry.metrics["light/colors"].value == pytest.approx((110 + 120) / 2 / 255)
    assert (workspace / "out/samples/theirs/1.png").is_file()
    # beside a model that draws the same prompts, and with what is known of them reused
    both = unifl("evaluate", "tiny@1", "other=theirs", *arguments, "--num-prompts", "1", "--reuse")
    assert both.exit_code == 0 and len(drawn) == 2, both.output  # one prompt, one batch for each seed
    assert "1 of 2 prompts of theirs" in both.output
    row = read_result(workspace / "out/result.json").comparisons[0]
    assert (row.a, row.b, row.metric) == ("other", "tiny@1", "geneval")
    assert unifl("report", "out").exit_code == 0
    page = (workspace / "out/report.html").read_text()
    assert "have noise of their own" in page and "All pictures of a row" not in page


def test_pictures_of_other_noise_have_distances_and_no_drift(workspace, unifl):
    from test_features import dinov2

    (workspace / "dino").mkdir()
    dinov2(workspace / "dino")
    draw_elsewhere(workspace / "theirs")
    draw_elsewhere(workspace / "others")
    settings = ("--score", "sharpness", "--features", "dinov2=dino", "--reference", "theirs/00000/samples")
    for models in (("theirs", "others"), ("tiny@1", "tiny@2", "theirs")):
        result = unifl("evaluate", *models, *settings, "--seeds", "2", "--out", "out")
        assert result.exit_code == 0, result.output
    found = read_result(workspace / "out/result.json").models
    drift = {name for name, entry in found.items() if any(key.startswith("drift") for key in entry.metrics)}
    assert drift == {"tiny@2"}
    assert all("kid_samples_on_dinov2" in entry.metrics for entry in found.values())
    assert found["theirs"].metrics["diversity"].n == 2  # over the two pictures that there are


def test_pictures_that_changed_are_judged_again(workspace, unifl):
    draw_elsewhere(workspace / "theirs")

    def value():
        done = unifl(
            "evaluate", "theirs", "--score", "colourfulness", "--seeds", "2", "--reuse", "--out", "out"
        )
        assert done.exit_code == 0, done.output
        return read_result(workspace / "out/result.json").models["theirs"].metrics["colourfulness"].value

    before = value()
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(workspace / "theirs/00001/samples/00001.png")
    assert value() != before


def test_folders_of_pictures_that_cannot_be_judged(workspace, unifl):
    draw_elsewhere(workspace / "theirs")
    draw_elsewhere(workspace / "others", ROWS[:1])
    draw_elsewhere(workspace / "mixed", ROWS[:1])
    Image.new("RGB", (16, 32)).save(workspace / "mixed/00000/samples/00001.png")
    draw_elsewhere(workspace / "broken", ROWS[:1])
    (workspace / "broken/00000/samples/00001.png").write_bytes(b"no picture")
    draw_elsewhere(workspace / "rows", ROWS[:1])
    (workspace / "rows/00000/metadata.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    for models, message in (
        (["theirs@4"], "leave out @4"),
        (["theirs", "others"], "others has no pictures of 'a red square'"),
        (["theirs", "theirs"], "two models are called 'theirs'"),
        (["mixed"], "16 x 32 px; pictures of one evaluation have one size"),
        (["broken"], "cannot read the image"),
        (["rows"], "has 2 rows, and one prompt is drawn there"),
        (["theirs", "--seeds", "3"], "has 2 pictures (0000.png, ...), and 3 are wanted; set --seeds"),
    ):
        seeds = [] if "--seeds" in models else ["--seeds", "2"]
        result = unifl("evaluate", *models, *seeds, "--score", "sharpness")
        assert result.exit_code == 2 and message in " ".join(result.output.split()), result.output
