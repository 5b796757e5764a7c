"""The sample store, and pairs of its samples."""

from __future__ import annotations

import json

import pytest
import torch

from preference_files import COLOURS, colour
from unifl.data.preferences import JudgedSet, PreferenceSet, read_preferences, report_judged, report_pairs
from unifl.data.store import SampleStore
from unifl.errors import UserError

PLAIN = torch.stack(
    [torch.tensor(rgb).float()[:, None, None].expand(3, 8, 8) / 255 for rgb in COLOURS.values()]
)


def fill(folder):
    store = SampleStore(folder)
    store.add(
        PLAIN[:3],
        ["cat"] * 3,
        seeds=[1, 2, 3],
        model="base",
        scores={"color": torch.tensor([0.5, 2.5, 1.0]), "detail": torch.zeros(3)},
    )
    store.add(
        PLAIN[3:], ["dog", "cow"], seeds=[1, 1], model="tuned", scores={"color": torch.tensor([1.0, 7.0])}
    )
    return store


def test_what_is_added_is_read_again(tmp_path):
    fill(tmp_path / "store")
    store = SampleStore(tmp_path / "store")
    assert len(store) == 5 and store[3].model == "tuned" and store[1].seed == 2
    assert store[1].scores == {"color": 2.5, "detail": 0.0} and store[4].scores == {"color": 7.0}
    assert [colour(store.image(index)) for index in range(5)] == list(COLOURS)
    assert len(list((tmp_path / "store").glob("*.png"))) == 5


def test_a_crash_between_picture_and_line_leaves_a_whole_store(tmp_path, monkeypatch):
    store = fill(tmp_path)
    monkeypatch.setattr(SampleStore, "_append", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.add(PLAIN[:1], ["pig"], seeds=[9], model="m", scores={})
    monkeypatch.undo()
    store = SampleStore(tmp_path)
    assert len(store) == 5
    store.add(PLAIN[1:2], ["pig"], seeds=[9], model="m", scores={})
    assert colour(SampleStore(tmp_path).image(5)) == "b"


def test_pairs_by_score(tmp_path):
    fill(tmp_path)

    def pairs(**settings):
        rows = PreferenceSet(read_preferences(tmp_path, score="color", **settings))
        return [(colour(pair.win), colour(pair.lose), round(pair.strength, 3)) for pair in rows]

    assert pairs() == [("b", "c", 0.75), ("b", "a", 1.0), ("c", "a", 0.25)]
    assert pairs(pairing="extremes") == [("b", "a", 1.0)]
    assert pairs(min_gap=1.0) == [("b", "c", 0.75), ("b", "a", 1.0)]
    report = report_pairs(read_preferences(tmp_path, score="color", min_gap=1.0))
    assert (report.rows, report.too_close, report.labelled) == (3, 1, 2)


def test_equal_scores_are_ties_and_missing_ones_are_left_out(tmp_path):
    fill(tmp_path)
    index = read_preferences(tmp_path, score="detail")
    assert len(index) == 3 and index.tie.all() and index.left_out.missing == 2
    assert len(read_preferences(tmp_path, score="detail", min_gap=0.1)) == 0
    with pytest.raises(UserError, match="has no usable row"):
        PreferenceSet(read_preferences(tmp_path, score="detail", min_gap=0.1))


def test_samples_with_their_scores(tmp_path):
    fill(tmp_path)
    judged = JudgedSet(read_preferences(tmp_path, score="color", unpaired=True))
    assert [judged[row].score for row in range(5)] == [0.5, 2.5, 1.0, 1.0, 7.0]
    assert judged[4].prompt == "cow" and colour(judged[4].image) == "e"
    report = report_judged(judged.index)
    assert (report.liked, report.lowest, report.highest) == (None, 0.5, 7.0)
    assert len(JudgedSet(read_preferences(tmp_path, score="detail", unpaired=True))) == 3


def test_which_score_has_to_be_said(tmp_path):
    fill(tmp_path)
    with pytest.raises(
        UserError, match="which score decides is not said; set `score` to one of color, detail"
    ):
        read_preferences(tmp_path)
    with pytest.raises(UserError, match="no sample has the score 'colour'; did you mean 'color'"):
        read_preferences(tmp_path, score="colour")
    with pytest.raises(UserError, match="min_gap is -1"):
        read_preferences(tmp_path, score="color", min_gap=-1.0)


def test_mistakes_of_the_writer(tmp_path):
    store = SampleStore(tmp_path)
    with pytest.raises(UserError, match="5 pictures and 1 prompts"):
        store.add(PLAIN, ["cat"], seeds=range(5), model="m", scores={})
    with pytest.raises(UserError, match="5 pictures and 2 color"):
        store.add(PLAIN, ["cat"] * 5, seeds=range(5), model="m", scores={"color": torch.zeros(2)})
    with pytest.raises(UserError, match="'color' is not finite"):
        scores = {"color": torch.full((5,), torch.nan)}
        store.add(PLAIN, ["cat"] * 5, seeds=range(5), model="m", scores=scores)
    assert not list(tmp_path.iterdir())
    for row, message in (
        ({"prompt": "cat"}, "row 1 of .* is no sample"),
        ({"prompt": "cat", "file_name": "a.png", "scores": {"color": "high"}}, "the score 'color' of row 1"),
    ):
        (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
        with pytest.raises(UserError, match=message):
            SampleStore(tmp_path)
