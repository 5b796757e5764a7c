"""Pictures as files: whole after an interruption, never drawn twice, never mixed with others."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from unifl.assembly import generate as generating
from unifl.assembly.drawing import Drawing
from unifl.assembly.generate import generate_pictures
from unifl.assembly.open_model import open_model
from unifl.assembly.picture_features import find_pictures
from unifl.data.store import SETTINGS
from unifl.errors import UserError
from unifl.evaluation.grid import to_pil
from unifl.sampling import sample
from unifl.testing import tiny_folder

PROMPTS = ["a cat", "a dog", "a red cup", "två hundar", "a tree"]
ASK = {"seed": 3, "count": 2, "batch_size": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return open_model(
        tiny_folder("sd15", tmp_path_factory.mktemp("model") / "tiny"), num_steps=2, guidance=2.0
    )


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """What a call that nobody interrupts leaves."""
    folder = tmp_path_factory.mktemp("whole") / "pictures"
    generate_pictures(model, PROMPTS, folder, **ASK)
    return folder


@pytest.fixture
def drawn(monkeypatch):
    """(index, seed) of each picture that is drawn from here on."""
    found = []

    def watched(*arguments, seed, indices, **more):
        found.extend((index, seed) for index in indices)
        return sample(*arguments, seed=seed, indices=indices, **more)

    monkeypatch.setattr(generating, "sample", watched)
    return found


def _files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def _stop_at(number):
    def progress(done, total):
        if done >= number:
            raise KeyboardInterrupt

    return progress


def test_pictures_are_those_of_the_sampler(model, whole):
    for turn in range(2):
        images = sample(
            model.generator, PROMPTS, seed=3 + turn, **model.sampling.arguments, batch_size=ASK["batch_size"]
        )
        for number, image in enumerate(images):
            with Image.open(whole / f"{number:05d}_{3 + turn}.png") as written:
                assert written.tobytes() == to_pil(image).tobytes()
    rows = [json.loads(line) for line in (whole / "metadata.jsonl").read_text("utf-8").splitlines()]
    assert [(row["index"], row["seed"]) for row in rows] == [(n, s) for n in range(5) for s in (3, 4)]
    assert rows[6]["prompt"] == "två hundar" and rows[6]["file_name"] == "00003_3.png"


def test_an_interrupted_call_goes_on_to_the_same_files_and_draws_nothing_twice(model, whole, drawn, tmp_path):
    for stop in (4, 7):
        with pytest.raises(KeyboardInterrupt):
            generate_pictures(model, PROMPTS, tmp_path, **ASK, progress=_stop_at(stop))
        there = _files(tmp_path)
        assert len(drawn) == len([name for name in there if name.endswith(".png")]) == stop
        assert "metadata.jsonl" not in there
    told = []
    paths = generate_pictures(model, PROMPTS, tmp_path, **ASK, progress=lambda *done: told.append(done))
    assert told == [(7, 10), (9, 10), (10, 10)]
    assert [path.name for path in paths[:3]] == ["00000_3.png", "00000_4.png", "00001_3.png"]
    assert len(drawn) == len(set(drawn)) == 10
    assert _files(tmp_path) == _files(whole)


def test_half_a_batch_is_drawn_whole_and_to_the_same_bytes(model, whole, drawn, tmp_path):
    place = shutil.copytree(whole, tmp_path / "pictures")
    for name in ("00003_3.png", "metadata.jsonl", "grid.png"):
        (place / name).unlink()
    before = (place / "00002_3.png").stat().st_mtime_ns
    generate_pictures(model, PROMPTS, place, **ASK)
    assert drawn == [(2, 3), (3, 3)]
    assert _files(place) == _files(whole)
    assert (place / "00002_3.png").stat().st_mtime_ns == before


def test_what_is_whole_is_left_alone(model, whole, drawn, tmp_path):
    place = shutil.copytree(whole, tmp_path / "pictures")
    scored = (place / "metadata.jsonl").read_text("utf-8").replace('"model"', '"scores": {"a": 1.0}, "model"')
    (place / "metadata.jsonl").write_text(scored, "utf-8")
    paths = generate_pictures(model, PROMPTS, place, **{**ASK, "batch_size": 3})
    assert len(paths) == 10 and not drawn
    assert (place / "metadata.jsonl").read_text("utf-8") == scored


def test_only_one_batch_is_in_memory(model, tmp_path, monkeypatch):
    """However many are drawn: nothing but the batch at hand is alive when the next one is asked for."""
    import weakref

    alive = []

    def watched(*arguments, **more):
        assert sum(one() is not None for one in alive) <= 1
        images = sample(*arguments, **more)
        alive.append(weakref.ref(images))
        return images

    monkeypatch.setattr(generating, "sample", watched)
    generate_pictures(model, PROMPTS, tmp_path, count=2, batch_size=2)
    assert len(alive) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, "seed 3 and not 4"),
        ({"count": 3}, "count 2 and not 3"),
        ({"prompts": [*PROMPTS[:4], "a house"]}, r"\(other prompts\)"),
        ({"prompts": PROMPTS[:4]}, "num_prompts 5 and not 4; other prompts"),
        ({"guidance": 1.0}, "guidance 2.0 and not 1.0"),
        ({"num_steps": 3}, "num_steps 2 and not 3"),
        ({"negative_prompt": "blurred"}, "negative_prompt None and not blurred"),
        ({"dtype": torch.bfloat16}, "other weights; precision .*float32.* and not .*bfloat16"),
        ({"resolution": 64}, r"resolution \[32, 32\] and not \[64, 64\]"),
    ],
)
def test_a_folder_of_other_pictures_is_refused(model, whole, drawn, changes, message):
    before = _files(whole)
    ask = {**ASK, "prompts": PROMPTS, **{key: changes[key] for key in changes.keys() & {*ASK, "prompts"}}}
    how = {key: changes[key] for key in changes.keys() - ask.keys()}
    asked = open_model(model.generator.source, **{"num_steps": 2, "guidance": 2.0, **how})
    with pytest.raises(UserError, match=f"drawn otherwise .*{message}.*take another folder, or remove"):
        generate_pictures(asked, folder=whole, **ask)
    assert not drawn and _files(whole) == before


def test_other_weights_under_the_same_name_are_noticed(model, whole, tmp_path):
    other = open_model(tiny_folder("sd15", tmp_path / "tiny", seed=1), num_steps=2, guidance=2.0)
    with pytest.raises(UserError, match=r"drawn otherwise \(other weights\)"):
        generate_pictures(other, PROMPTS, whole, **ASK)
    same = open_model(model.generator.source, num_steps=2, guidance=2.0)
    ask = {"prompts": PROMPTS, "seed": 3, "count": 2}
    digests = [Drawing(model=one, **ask).digest for one in (model, same, other)]
    assert digests[0] == digests[1] != digests[2]


def test_pictures_that_nothing_is_known_of_are_not_taken_for_ours(model, tmp_path):
    (tmp_path / "00001_3.png").write_bytes(b"somebody's")
    with pytest.raises(UserError, match=f"holds 00001_3.png, and no {SETTINGS} says how it was drawn"):
        generate_pictures(model, PROMPTS, tmp_path, **ASK)
    (tmp_path / SETTINGS).write_text("{")
    with pytest.raises(UserError, match=f"{SETTINGS} cannot be read"):
        generate_pictures(model, PROMPTS, tmp_path, **ASK)


def test_mistakes_are_told_before_anything_is_drawn(model, drawn, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="batch_size is 0"):
        generate_pictures(model, PROMPTS, tmp_path / "a", batch_size=0)
    with pytest.raises(UserError, match="num_steps is 2000"):
        how = replace(model, sampling=replace(model.sampling, num_steps=2000))
        generate_pictures(how, PROMPTS, tmp_path / "a", **ASK)
    assert not _files(tmp_path / "a") and len(drawn) == 2
    drawn.clear()
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**9, 10**9, 10_000))
    with pytest.raises(UserError, match="not enough room on the disk"):
        generate_pictures(model, PROMPTS, tmp_path / "a", **ASK)
    assert not drawn


def test_a_folder_of_an_interrupted_call_is_no_set_of_pictures(model, whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        generate_pictures(model, PROMPTS, tmp_path, **ASK, progress=_stop_at(4))
    with pytest.raises(UserError, match="was interrupted; go on with the same `unifl generate`"):
        find_pictures(tmp_path)
    assert len(find_pictures(whole)) == 10


def test_the_grid_shows_the_first_few(model, whole, tmp_path):
    generate_pictures(model, ["a cat"] * 26, tmp_path, count=9, batch_size=26)
    with Image.open(tmp_path / "grid.png") as many, Image.open(whole / "grid.png") as few:
        scale = 192 // 32
        cell = 32 * scale + 6
        assert many.width - few.width == 6 * cell and many.height - few.height == 19 * cell


def test_another_call_in_the_same_folder_is_refused(model, tmp_path):
    other = replace(model, sampling=replace(model.sampling, guidance=7.0))
    told = []

    def meanwhile(done, total):
        with pytest.raises(UserError, match="another process works in") as error:
            generate_pictures(other, PROMPTS, tmp_path, **ASK)
        told.append(error)

    generate_pictures(model, PROMPTS[:2], tmp_path, **ASK, progress=meanwhile)
    assert told and {row["guidance"] for row in _rows(tmp_path)} == {2.0}


@pytest.mark.parametrize("change", [{"prediction_type": "v_prediction"}, {"beta_end": 0.02}], ids=str)
def test_a_scheduler_that_was_mended_is_another_model(tmp_path, change):
    place = tiny_folder("sd15", tmp_path / "tiny")
    generate_pictures(open_model(place, num_steps=2), PROMPTS[:1], tmp_path / "pictures")
    generate_pictures(open_model(place, num_steps=2), PROMPTS[:1], tmp_path / "pictures")
    config = place / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(UserError, match=r"drawn otherwise \(other process\)"):
        generate_pictures(open_model(place, num_steps=2), PROMPTS[:1], tmp_path / "pictures")


def test_a_prompt_in_another_encoding_is_told_as_such(model, tmp_path):
    with pytest.raises(UserError, match="prompt 2 is no text in UTF-8"):
        generate_pictures(model, ["a cat", b"caf\xe9".decode(errors="surrogateescape")], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def _rows(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text("utf-8").splitlines()]
