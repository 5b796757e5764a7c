"""`unifl distances`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "feedback" / "features"))

from test_features import dinov2

from unifl.assembly.distances import measure_distances
from unifl.assembly.picture_features import FolderFeatures, Picture, find_pictures
from unifl.errors import UserError
from unifl.feedback.features import PictureFeatures
from unifl.metrics import cmmd, frechet_distance, kernel_distance, prdc, vendi_score


def features(x, *, seeds=1, prompts=True):
    pictures = tuple(
        Picture(Path(f"{i}.png"), f"p{i // seeds}" if prompts else None, i % seeds) for i in range(len(x))
    )
    return FolderFeatures(pictures, x, np.full(len(x), 0.2))


def test_numbers_are_those_of_the_metrics():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 6)) + 0.4, rng.normal(size=(80, 6))
    found = measure_distances(features(x, seeds=2), features(y, prompts=False), name="toy")
    value = {name: one.value for name, one in found.numbers.items()}
    assert value["kid"] == pytest.approx(kernel_distance(x, y)) and value["cmmd"] == pytest.approx(cmmd(x, y))
    rows = np.linspace(0, 79, 60).round().astype(int)
    assert value["frechet"] == pytest.approx(frechet_distance(x, y[rows]))
    assert (value["precision"], value["recall"]) == (prdc(x, y).precision, prdc(x, y).recall)
    assert value["vendi"] == pytest.approx(vendi_score(x))
    assert value["diversity"] == pytest.approx(np.linalg.norm(x[::2] - x[1::2], axis=1).mean())
    assert (
        found.numbers["frechet"].n == found.numbers["cmmd"].n == 60
        and found.numbers["frechet"].low < value["frechet"]
    )
    assert "diversity_reference" not in value and not any(name.startswith("drift") for name in value)
    assert found.pictures == (60, 80) and not found.left_out


def test_only_equal_noise_is_paired(tmp_path):
    """Noise depends on the number of the prompt: the same prompts in another order are no pairs."""
    x = np.random.default_rng(3).normal(size=(3, 4))

    def folder(name, numbers):
        pictures = []
        for prompt, index in zip("abc", numbers, strict=True):
            path = tmp_path / f"{name}-{prompt}.png"
            Image.new("RGB", (8, 8), (40 * ord(prompt) % 256, 0, 0)).save(path)
            pictures.append(Picture(path, prompt, 0, index))
        return FolderFeatures(tuple(pictures), x, np.full(3, 0.2))

    def drift(*sides):
        return {name for name in measure_distances(*sides, name="toy").numbers if name.startswith("drift")}

    assert drift(folder("ours", (0, 1, 2)), folder("base", (0, 1, 2)))
    assert not drift(folder("ours", (0, 1, 2)), folder("base", (2, 0, 1)))
    assert drift(folder("ours", (None,) * 3), folder("base", (2, 0, 1)))  # nobody knows; as before


def test_too_few_pictures_leave_out_what_would_mean_nothing():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(5, 16)), rng.normal(size=(5, 16))
    found = measure_distances(features(x), features(y, prompts=False), name="toy")
    assert "add --few if you mean it" in found.left_out["frechet"] and "frechet" not in found.numbers
    assert any(name.startswith("precision") for name in found.left_out)
    assert (
        "frechet" in measure_distances(features(x), features(y, prompts=False), name="toy", few=True).numbers
    )
    with pytest.raises(UserError, match="16 and 4 numbers"):
        measure_distances(features(x), features(rng.normal(size=(5, 4))), name="toy")


def test_a_ratio_to_nothing_is_left_out(tmp_path):
    for side in ("ours", "base"):
        (tmp_path / side).mkdir()
        for i in range(6):
            Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(tmp_path / side / f"{i}.png")

    def found(side, x, share):
        pictures = tuple(Picture(tmp_path / side / f"{i}.png", f"p{i // 2}", i % 2) for i in range(6))
        return FolderFeatures(pictures, x, np.full(6, share))

    rng = np.random.default_rng(2)
    spread, equal = rng.normal(size=(6, 2)), rng.normal(size=(3, 2)).repeat(2, axis=0)
    drift = {"drift_high_frequency_ratio", "drift_diversity_ratio"}
    collapsed = measure_distances(found("ours", spread, 0.1), found("base", equal, 0.0), name="toy")
    assert collapsed.left_out.keys() >= drift and not collapsed.numbers.keys() & drift
    assert np.isfinite([one.value for one in collapsed.numbers.values()]).all()
    other = measure_distances(found("ours", equal, 0.0), found("base", spread, 0.1), name="toy")
    assert [other.numbers[name].value for name in sorted(drift)] == [
        0,
        0,
    ] and not other.left_out.keys() & drift


@pytest.fixture
def drawn(workspace, unifl):
    for steps, out in ((1, "ours"), (2, "base")):
        done = unifl(
            "generate", "tiny", "a circle", "a dog", "a cup", "--steps", steps, "--count", "2", "--out", out
        )
        assert done.exit_code == 0, done.output
    (workspace / "dino").mkdir()
    dinov2(workspace / "dino")
    return workspace


def test_folders_of_one_model_are_compared_picture_by_picture(drawn, unifl):
    arguments = ("distances", "ours", "base", "--features", "dinov2=dino", "--json", "found.json")
    result = unifl(*arguments)
    assert result.exit_code == 0, result.output
    found = json.loads((drawn / "found.json").read_text())
    pairs = [
        [
            np.asarray(Image.open(drawn / side / f"{i:05d}_{seed}.png"), float) / 255
            for side in ("ours", "base")
        ]
        for i in range(3)
        for seed in (0, 1)
    ]
    rms = np.mean([np.sqrt(((a - b) ** 2).mean()) for a, b in pairs])
    assert found["numbers"]["drift_pixels"]["value"] == pytest.approx(rms, rel=1e-5)
    assert found["numbers"]["drift_pixels"]["n"] == 3 and found["pictures"] == [6, 6]
    assert {"drift_features", "drift_high_frequency_ratio", "drift_diversity_ratio", "diversity"} <= set(
        found["numbers"]
    )
    assert "no frechet: 6 samples have no covariance" in result.output
    assert unifl(*arguments, "--few").exit_code == 0
    assert "frechet" in json.loads((drawn / "found.json").read_text())["numbers"]
    same = unifl("distances", "base", "base", "--features", "dinov2=dino", "--json", "same.json")
    assert same.exit_code == 0
    assert json.loads((drawn / "same.json").read_text())["numbers"]["drift_pixels"]["value"] == 0


def test_features_are_kept_until_pictures_or_weights_change(drawn, unifl, monkeypatch):
    seen, real = [], PictureFeatures.__call__

    def counted(self, images):
        seen.append(len(images))
        return real(self, images)

    monkeypatch.setattr(PictureFeatures, "__call__", counted)
    arguments = ("distances", "ours", "base", "--features", "dinov2=dino")
    assert unifl(*arguments).exit_code == 0 and sum(seen) == 12
    assert unifl(*arguments).exit_code == 0 and sum(seen) == 12
    Image.new("RGB", (32, 32), "red").save(drawn / "ours/00000_0.png")
    assert unifl(*arguments).exit_code == 0 and sum(seen) == 18


def test_wrong_use_is_one_line(drawn, unifl, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "single").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "single/a.png")
    (tmp_path / "broken").mkdir()
    for name in "ab":
        (tmp_path / f"broken/{name}.png").write_bytes(b"no picture")
    (tmp_path / "outside").mkdir()
    monkeypatch.setattr(PictureFeatures, "__call__", lambda *_: pytest.fail("pictures were looked at"))
    (tmp_path / "outside/metadata.jsonl").write_text('{"file_name": "../secret.png"}\n')
    for arguments, message in (
        (("ours", "nothing"), "there is no folder nothing"),
        (("ours", tmp_path / "empty"), "holds no pictures"),
        (("ours", tmp_path / "single"), "holds one picture"),
        (("ours", tmp_path / "broken"), "cannot read the image"),
        (("ours", tmp_path / "outside"), "lies outside"),
        (("ours", "base", "--features", "dino"), "there are no features 'dino'"),
        (("ours", "base", "--features", "dinov2="), "names no weights"),
        (("ours", "base", "--json", tmp_path), "is a folder; name a file"),
        (("ours", "base", "--json", tmp_path / "broken/a.png/found.json"), "cannot write"),
        (("ours", "base", "--out", tmp_path / "broken/a.png"), "cannot write"),
    ):
        given = arguments if "--features" in arguments else (*arguments, "--features", "dinov2=dino")
        result = unifl("distances", *given)
        assert result.exit_code == 2 and message in " ".join(result.output.split()), result.output


def test_pictures_without_a_list_are_taken_by_name(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [one.path.name for one in find_pictures(tmp_path)] == ["a.JPG", "b.png"]
