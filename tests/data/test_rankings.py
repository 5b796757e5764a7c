"""Comparisons that add up to an order, and pictures that stay in memory."""

from __future__ import annotations

import pytest
import torch

from preference_files import comparison, write_parquet
from unifl.data.preferences import Filters, PreferenceSet, read_preferences, select
from unifl.data.preferences.kept_pictures import KeptPictures
from unifl.data.preferences.rankings import only_order, rankings


@pytest.mark.parametrize(
    ("pairs", "order"),
    [
        ([(1, 2), (2, 3), (1, 3)], (1, 2, 3)),
        ([(2, 3), (1, 2)], (1, 2, 3)),  # a chain says it, too
        ([(1, 2), (1, 2)], (1, 2)),
        ([(1, 2), (1, 3)], None),  # 2 and 3 are open
        ([(1, 2), (2, 3), (3, 1)], None),
        ([(1, 2), (2, 1)], None),
        ([(1, 2), (3, 4)], None),
    ],
)
def test_the_only_order(pairs, order):
    assert only_order(pairs) == order


@pytest.fixture
def index(tmp_path):
    rows = [
        comparison("cat", "a", "b", 1.0), comparison("cat", "c", "b", 0.0), comparison("cat", "c", "a", 0.0),
        comparison("dog", "a", "b", 1.0), comparison("dog", "b", "a", 1.0), comparison("dog", "c", "a", 0.5),
    ]  # fmt: skip
    write_parquet(tmp_path / "pairs" / "pairs.parquet", rows)
    return select(read_preferences(tmp_path / "pairs"), Filters(), ties="keep")[0]


def test_orders_become_rankings_and_the_rest_stay_pairs(index):
    found = rankings(index, range(len(index)))
    cat, *dogs = found
    a, b = int(index.win[0]), int(index.lose[0])
    assert cat.prompt == "cat" and len(cat.pictures) == 3 and cat.pictures[:2] == (a, b)
    assert [one.prompt for one in dogs] == ["dog", "dog"]
    assert dogs[0].pictures == dogs[1].pictures[::-1]
    assert [len(one.pictures) for one in rankings(index, [0, 1])] == [3]  # a over b, b over c


def test_kept_pictures_are_those_that_were_read(index):
    plain, kept = PreferenceSet(index, resolution=8), KeptPictures(index, resolution=8)
    for _ in range(2):
        for row in range(len(index)):
            assert torch.equal(kept[row].win, plain[row].win) and torch.equal(kept[row].lose, plain[row].lose)
    small = KeptPictures(index, resolution=8, room=200)  # one of 192 bytes
    for row in range(len(index)):
        assert torch.equal(small[row].win, plain[row].win)
    assert len(small._kept) == 1
