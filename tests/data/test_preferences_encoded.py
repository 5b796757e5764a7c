"""Preference data whose pictures were encoded once."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from preference_files import comparison, write_jsonl, write_parquet, write_pictures
from unifl.data.preferences import Filters, JudgedSet, PreferenceSet, read_preferences, select
from unifl.data.preferences.encoded_sets import EncodedJudgedSet, EncodedPairs, encode_preferences
from unifl.errors import UserError
from unifl.models import make_generator
from unifl.testing import tiny_pipeline

PAIRS = [("cat", "a", "b"), ("cat", "a", "c"), ("cat", "b", "c"), ("dog", "d", "e"), ("dog", "a", "d")]


@pytest.fixture(scope="module")
def generator():
    return make_generator(tiny_pipeline("sd15"))


@pytest.fixture
def rows(tmp_path):
    rows = [comparison(prompt, win, lose, 1.0, user_id=3) for prompt, win, lose in PAIRS]
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", rows[:3])
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", rows[3:])
    return PreferenceSet(read_preferences(tmp_path / "data"), resolution=32)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_picture_is_encoded_once_per_prompt(generator, rows, tmp_path):
    encoded = encode_preferences(generator, rows, tmp_path / "cache", rows_per_shard=4, with_text=True)
    assert isinstance(encoded, EncodedPairs) and len(encoded) == 5
    assert len(encoded.cache) == 6  # of 10 that are shown: a, b, c of cat and d, e, a of dog
    encoded.check(generator)
    assert encoded.users == ["3"]
    for row in range(5):
        found, pair = encoded[row], rows[row]
        assert found.prompt == found.win.prompt == found.lose.prompt == pair.prompt and found.user == "3"
        for sample, image in ((found.win, pair.win), (found.lose, pair.lose)):
            mean, std = generator.posterior(image[None])
            torch.testing.assert_close(sample.mean, mean[0], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(sample.std, std[0], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(
                sample.embeds, generator.encode_prompts([pair.prompt]).embeds[0], rtol=1e-4, atol=1e-5
            )
    with pytest.raises(IndexError):
        encoded[5]


def test_an_interrupted_run_goes_on_to_the_same_files(generator, rows, tmp_path, monkeypatch):
    encode_preferences(generator, rows, tmp_path / "whole", rows_per_shard=2)

    def stop(done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_preferences(generator, rows, tmp_path / "cache", rows_per_shard=2, progress=stop)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 2
    seen = []
    encode_preferences(
        generator, rows, tmp_path / "cache", rows_per_shard=2, progress=lambda *at: seen.append(at)
    )
    assert seen == [(4, 6), (5, 6), (6, 6)]
    whole, cache = files(tmp_path / "whole"), files(tmp_path / "cache")
    assert whole == cache
    monkeypatch.setattr(type(generator), "posterior", lambda *_: pytest.fail("encoded again"))
    again = encode_preferences(generator, rows, tmp_path / "cache", rows_per_shard=2)
    assert len(again) == 5


def test_a_finished_cache_serves_every_selection(generator, rows, tmp_path, monkeypatch):
    encode_preferences(generator, rows, tmp_path / "cache", rows_per_shard=2)
    chosen, _ = select(rows.index, Filters(absolute_winners=True))
    fewer = PreferenceSet(chosen, resolution=32)
    assert len(fewer) == 3
    alone = encode_preferences(generator, fewer, tmp_path / "alone")
    monkeypatch.setattr(type(generator), "posterior", lambda *_: pytest.fail("encoded again"))
    found = encode_preferences(generator, fewer, tmp_path / "cache", rows_per_shard=7)
    assert len(found) == 3
    for row in range(3):
        assert found[row].prompt == alone[row].prompt
        for side in ("win", "lose"):
            torch.testing.assert_close(getattr(found[row], side).mean, getattr(alone[row], side).mean)
    other = make_generator(tiny_pipeline("sd15"))
    with torch.no_grad():
        other.pipeline.vae.encoder.conv_in.weight.mul_(1.5)
    with pytest.raises(UserError, match="has another one"):
        encode_preferences(other, fewer, tmp_path / "cache", rows_per_shard=7)
    with pytest.raises(UserError, match="with_text False, and this asks for True"):
        encode_preferences(generator, fewer, tmp_path / "cache", with_text=True)
    with pytest.raises(UserError, match="1 of these 6 are not in it"):
        encode_preferences(generator, rows, tmp_path / "alone")


def test_files_of_one_name_are_not_mixed_up(generator, tmp_path):
    """Two folders whose files have one name each: all of them are one cache, and a part of them is not told apart."""
    for folder, pictures in (("one", "ab"), ("two", "cd")):
        write_parquet(tmp_path / folder / "pairs.parquet", [comparison("cat", *pictures, 1.0)])
    paths = [tmp_path / folder / "pairs.parquet" for folder in ("one", "two")]
    rows = PreferenceSet(read_preferences(paths), resolution=32)
    whole = encode_preferences(generator, rows, tmp_path / "cache")
    assert not torch.equal(whole[0].win.mean, whole[1].win.mean)
    part = PreferenceSet(rows.index.take(np.array([1])), resolution=32)
    with pytest.raises(UserError, match="pictures of equal names"):
        encode_preferences(generator, part, tmp_path / "cache")


def test_other_pictures_are_refused(generator, rows, tmp_path):
    encode_preferences(generator, rows, tmp_path / "cache")
    # the same pictures in other pairs are the same cache
    other = PreferenceSet(rows.index.take(np.array([4, 3, 2, 1, 0])), resolution=32)
    encoded = encode_preferences(generator, other, tmp_path / "cache")
    assert [encoded[row].prompt for row in range(5)] == ["dog", "dog", "cat", "cat", "cat"]
    (tmp_path / "cache" / "pictures.json").write_text("{")
    with pytest.raises(UserError, match=r"pictures\.json is damaged"):
        encode_preferences(generator, rows, tmp_path / "cache")
    (tmp_path / "cache" / "pictures.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"pictures\.npy is damaged"):
        encode_preferences(generator, rows, tmp_path / "cache")
    (tmp_path / "cache" / "pictures.npy").unlink()
    with pytest.raises(UserError, match="encoded pictures that are no preferences"):
        encode_preferences(generator, rows, tmp_path / "cache")


def test_another_model_or_resolution_is_refused(generator, rows, tmp_path):
    encoded = encode_preferences(generator, rows, tmp_path / "cache")
    other = make_generator(tiny_pipeline("sd15"))
    with torch.no_grad():
        other.pipeline.vae.encoder.conv_in.weight.mul_(1.5)
    with pytest.raises(UserError, match="another one"):
        encoded.check(other)
    with pytest.raises(UserError, match="the pictures are made for 16 x 16 px"):
        encode_preferences(generator, rows.at(16), tmp_path / "small")


def test_unreadable_pictures_are_named_and_left_out_if_asked(generator, tmp_path):
    write_pictures(tmp_path, **dict.fromkeys("abcde", (32, 32)))
    (tmp_path / "c.png").write_bytes(b"no picture")
    pairs = [{"prompt": p, "chosen": f"{win}.png", "rejected": f"{lose}.png"} for p, win, lose in PAIRS]
    write_jsonl(tmp_path / "metadata.jsonl", pairs)
    rows = PreferenceSet(read_preferences(tmp_path), resolution=32)
    with pytest.raises(UserError, match=r"cannot read the image .*c\.png.*skip_unreadable"):
        encode_preferences(generator, rows, tmp_path / "cache", rows_per_shard=2)
    for _ in range(2):  # the second time from what was written down
        encoded = encode_preferences(
            generator, rows, tmp_path / "cache", rows_per_shard=2, skip_unreadable=True
        )
        assert [encoded[row].prompt for row in range(len(encoded))] == ["cat", "dog", "dog"]
        assert len(encoded.left_out) == 2 and encoded.left_out[0].startswith("row 2 of ")
        mean, _ = generator.posterior(rows[3].lose[None])
        torch.testing.assert_close(encoded[1].lose.mean, mean[0], rtol=1e-5, atol=1e-6)
    assert len(json.loads((tmp_path / "cache" / "pictures.json").read_text())["unreadable"]) == 1
    with pytest.raises(UserError, match="2 of 5 pairs .* cannot be used"):
        encode_preferences(generator, rows, tmp_path / "cache", rows_per_shard=2)
    only = PreferenceSet(rows.index.take(np.array([1, 2])), resolution=32)
    with pytest.raises(UserError, match="no picture of .* can be used"):
        encode_preferences(generator, only, tmp_path / "none", skip_unreadable=True)


def test_pictures_of_another_size_without_a_resolution(generator, tmp_path):
    write_pictures(tmp_path, **dict.fromkeys("abcd", (32, 32)), e=(32, 40))
    pairs = [{"prompt": p, "chosen": f"{win}.png", "rejected": f"{lose}.png"} for p, win, lose in PAIRS]
    write_jsonl(tmp_path / "metadata.jsonl", pairs)
    rows = PreferenceSet(read_preferences(tmp_path))
    with pytest.raises(UserError, match="40 x 32"):
        encode_preferences(generator, rows, tmp_path / "cache")
    encoded = encode_preferences(generator, rows, tmp_path / "cache", skip_unreadable=True)
    assert len(encoded) == 4 and "has 40 x 32 px and not 32 x 32 px" in encoded.left_out[0]


def test_masks_stay_beside_encoded_pictures(generator, tmp_path):
    write_pictures(tmp_path)
    row = {"prompt": "cat", "chosen": "a.png", "rejected": "b.png", "rejected_mask": "c.png"}
    write_jsonl(tmp_path / "metadata.jsonl", [row])
    rows = PreferenceSet(read_preferences(tmp_path), resolution=32)
    found = encode_preferences(generator, rows, tmp_path / "cache")[0]
    assert found.win_mask is None and torch.equal(found.lose_mask, rows[0].lose_mask)
    assert found.lose_mask.shape == (32, 32)


def test_judged_pictures(generator, tmp_path):
    write_pictures(tmp_path)
    labels = [("cat", "a", 1), ("dog", "b", 0), ("cat", "a", 0)]
    lines = [{"prompt": p, "file_name": f"{name}.png", "label": label} for p, name, label in labels]
    write_jsonl(tmp_path / "metadata.jsonl", lines)
    rows = JudgedSet(read_preferences(tmp_path), resolution=32)
    encoded = encode_preferences(generator, rows, tmp_path / "cache")
    assert isinstance(encoded, EncodedJudgedSet) and len(encoded.cache) == 2
    assert [(encoded[row].prompt, encoded[row].score) for row in range(3)] == [
        ("cat", 1.0),
        ("dog", 0.0),
        ("cat", 0.0),
    ]
    assert torch.equal(encoded[0].sample.mean, encoded[2].sample.mean)
    encoded.check(generator)
