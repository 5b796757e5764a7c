"""Preference data of a recipe, up to the rows that a method reads."""

from __future__ import annotations

import warnings

import pytest
import torch

from preference_files import colour, comparison, write_jsonl, write_parquet, write_pictures
from unifl import config as configs
from unifl.assembly import sources
from unifl.assembly.preferences_config import PreferencesConfig
from unifl.assembly.recipe import load_recipe
from unifl.data import EncodedPair, Judged, Pair
from unifl.errors import UserError
from unifl.models import make_generator
from unifl.testing import tiny_pipeline

PAIRS = [("cat", "a", "b", 1.0), ("cat", "b", "c", 0.0), ("cat", "a", "d", 0.5), ("dog", "d", "e", 1.0)]


@pytest.fixture(scope="module")
def generator():
    return make_generator(tiny_pipeline("sd15"))


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_parquet(tmp_path / "pairs" / "pairs.parquet", [comparison(*row) for row in PAIRS])
    return tmp_path


def opened(text, generator):
    given = configs.load(text, PreferencesConfig)
    found = sources.source(given, name="pairs")
    return sources.prepared(found, given, generator, name="pairs", seed=0, batch_size=2)


def told(rows):
    return [(row.prompt, colour(row.win), colour(row.lose), row.tie) for row in rows]


def test_pairs_come_in_the_size_of_the_model(data, generator):
    rows = opened("path: pairs", generator)
    assert isinstance(rows[0], Pair) and rows[0].win.shape == (3, *generator.image_size)
    assert told(rows) == [("cat", "a", "b", False), ("cat", "c", "b", False), ("dog", "d", "e", False)]
    rows = opened("{path: [pairs/pairs.parquet], ties: keep, filters: {absolute_winners: true}}", generator)
    assert told(rows) == [("cat", "c", "b", False), ("dog", "d", "e", False)]  # the draw speaks against a


def test_a_recipe_names_preferences(data, generator):
    text = """
output_dir: run
model: {pretrained_model_name_or_path: tiny}
method: {kind: finetune, source: pairs}
data:
  pairs: {kind: preferences, path: pairs}
"""
    recipe = load_recipe(text, ["data.pairs.filters.absolute_winners=true", "data.pairs.ties=keep"])
    given = recipe.data["pairs"]
    assert isinstance(given, PreferencesConfig) and given.filters.absolute_winners and given.form == "auto"
    assert configs.load(configs.dump(recipe), type(recipe)) == recipe
    with pytest.raises(UserError, match=r"data\.pairs\.filters\.absolute_winner'; did you mean"):
        load_recipe(text, ["data.pairs.filters.absolute_winner=true"])
    with pytest.raises(UserError, match="min_wins counts"):
        load_recipe(text, ["data.pairs.filters.min_wins=1"])


def test_pairs_are_encoded_once(data, generator, monkeypatch):
    text = "{path: pairs, encode: {folder: cache, with_text: true, rows_per_shard: 2}}"
    rows = opened(text, generator)
    assert isinstance(rows[0], EncodedPair) and len(rows.cache) == 5
    mean, _ = generator.posterior(opened("path: pairs", generator)[1].lose[None])
    torch.testing.assert_close(rows[1].lose.mean, mean[0], rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(type(generator), "posterior", lambda *_: pytest.fail("encoded again"))
    assert len(opened(text, generator)) == 3


def test_unreadable_pictures_are_refused_or_left_out_with_a_warning(tmp_path, monkeypatch, generator):
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path, b=(30, 20))
    (tmp_path / "c.png").unlink()
    rows = [{"prompt": p, "chosen": f"{win}.png", "rejected": f"{lose}.png"} for p, win, lose, _ in PAIRS]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(UserError, match=r"data\.pairs: 1 of 4 pairs of pairs\.jsonl cannot be used.*c\.png"):
        opened("path: pairs.jsonl", generator)
    for encode in ("", ", encode: {folder: cache}"):
        with pytest.warns(UserWarning, match=r"1 rows were left out; the first is row 2 of pairs\.jsonl"):
            assert len(opened(f"{{path: pairs.jsonl, skip_unreadable: true{encode}}}", generator)) == 3


def test_judged_pictures(tmp_path, monkeypatch, generator):
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path)
    rows = [
        {"prompt": "cat", "file_name": f"{name}.png", "label": label} for name, label in (("a", 1), ("b", 0))
    ]
    write_jsonl(tmp_path / "metadata.jsonl", rows)
    found = opened("path: .", generator)
    assert isinstance(found[0], Judged) and [found[row].score for row in (0, 1)] == found.scores == [1.0, 0.0]
    encoded = opened("{path: ., encode: {folder: cache}}", generator)
    assert encoded[0].score == 1.0 and encoded[1].prompt == "cat" and encoded.scores == [1.0, 0.0]
    with pytest.raises(UserError, match=r"data\.pairs: filters, ties and allow_duplicates are for pairs"):
        opened("{path: ., ties: keep}", generator)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path: nowhere", r"data\.pairs: there is no file or folder nowhere"),
        ("path: ''", "names no preference data"),
        ("{path: pairs, split: test}", r"data\.pairs: pairs has no split 'test'"),
        ("{path: pairs, form: likes}", "needed are likes"),
        ("{path: pairs, form: pickapic}", "pick_a_pic"),
        (
            "{path: pairs, filters: {absolute_winners: true, min_wins: 1}}",
            "pairs has no usable row: of 4, 0 have",
        ),
    ],
)
def test_what_makes_no_sense(data, generator, text, message):
    with pytest.raises(UserError, match=message):
        opened(text, generator)


def test_nothing_is_said_where_nothing_is_left_out(data, generator):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened("path: pairs", generator)
