"""Filters, the report, and the file of what was kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preference_files import colour, comparison, write_jsonl, write_parquet, write_pictures
from unifl.data.preferences import (
    Filters,
    PreferenceSet,
    absolute_winners,
    duplicates,
    latest_losers,
    read_preferences,
    report_judged,
    report_pairs,
    select,
    write_pairs,
)
from unifl.data.preferences.index import LeftOut, PreferenceIndex
from unifl.data.preferences.places import named_places
from unifl.data.preferences.tables import Texts
from unifl.errors import UserError

_HERE = Path("pictures")


class NoTable:
    columns = frozenset()

    def __len__(self):
        return 0

    def texts(self, name): ...
    def numbers(self, name): ...
    def pictures(self, names, uids): ...
    def place(self, row):
        return f"row {row + 1} of memory"


def make(rows, *, axes=None, users=None, order=None, strength=None):
    """An index of (prompt, winner, loser, tie)."""
    number = len(rows)
    prompt, win, lose, tie = (list(column) for column in zip(*rows, strict=True))
    pictures = sorted({*win, *lose})

    def texts(values):
        held = sorted({value for value in values if value is not None})
        return Texts(np.array([-1 if v is None else held.index(v) for v in values], np.int32), held)

    return PreferenceIndex(
        shown="memory",
        prompts=texts(prompt),
        win=np.array([pictures.index(name) for name in win]),
        lose=np.array([pictures.index(name) for name in lose]),
        tie=np.array(tie, bool),
        strength=np.array(strength or [1.0] * number, np.float32),
        order=np.array(order or range(number), np.int64),
        dated=order is not None,
        row=np.arange(number),
        axes=texts(axes or [None] * number),
        users=texts(users or [None] * number),
        pictures=named_places([f"{name}.png" for name in pictures], _HERE),
        left_out=LeftOut(number),
        table=NoTable(),
    )


CHAIN = make(
    [
        ("cat", "a", "b", False),  # a never loses, and wins twice
        ("cat", "a", "c", False),
        ("cat", "b", "c", False),  # b lost to a
        ("cat", "d", "e", True),  # a draw says that neither is absolute
        ("cat", "d", "c", False),
        ("dog", "b", "a", False),  # another prompt is another question
        ("cat", "f", "c", False),  # f wins once
    ],
    order=[5, 3, 9, 1, 2, 7, 4],
)


def test_absolute_winners_are_those_without_a_loss_or_a_draw():
    assert absolute_winners(CHAIN).tolist() == [True, True, False, False, False, True, True]
    assert absolute_winners(CHAIN, min_wins=1).tolist() == [True, True] + [False] * 5


def test_the_latest_loser_is_the_one_of_the_largest_ranking_id():
    assert np.flatnonzero(latest_losers(CHAIN)).tolist() == [0, 2, 3, 4, 5, 6]  # ties stay
    kept, steps = select(CHAIN, Filters(absolute_winners=True, latest_losers=True))
    assert kept.row.tolist() == [0, 5, 6]
    assert [(step.name, step.kept) for step in steps] == [
        ("labelled", 7),
        ("absolute winners", 4),
        ("latest losers", 3),
        ("without ties", 3),
    ]


def test_an_axis_is_a_question_of_its_own():
    rows = [("cat", "a", "b", False), ("cat", "b", "a", False)]
    assert not absolute_winners(make(rows)).any()
    assert absolute_winners(make(rows, axes=["color", "layout"])).all()
    assert report_pairs(make(rows)).contradictions.pairs == 1
    assert report_pairs(make(rows, axes=["color", "layout"])).contradictions.pairs == 0


@given(
    st.lists(
        st.tuples(st.sampled_from("xy"), st.permutations("abcd"), st.booleans()), min_size=1, max_size=40
    )
)
def test_filters_and_report_against_a_slow_count(drawn):
    """Everything counted once more, row by row."""
    rows = [(prompt, order[0], order[1], tie) for prompt, order, tie in drawn]
    index = make(rows)

    def of(prompt, picture, what):
        return sum(
            1
            for p, win, lose, tie in rows
            if p == prompt
            and ((what == "win" and not tie and win == picture)
            or (what == "lose" and not tie and lose == picture)
            or (what == "draw" and tie and picture in (win, lose)))
        )  # fmt: skip

    shown = {(p, x) for p, win, lose, _ in rows for x in (win, lose)}
    best = {key for key in shown if of(*key, "win") and not of(*key, "lose") and not of(*key, "draw")}
    expected = [not tie and (p, win) in best for p, win, _, tie in rows]
    assert absolute_winners(index).tolist() == expected
    report = report_pairs(index)
    assert report.winners.pictures == len(best) and report.winners.rows == sum(expected)
    torn = {key for key in shown if of(*key, "win") and of(*key, "lose")}
    assert report.contradictions.pictures == len(torn)
    one_way = {(p, win, lose) for p, win, lose, tie in rows if not tie}
    assert report.contradictions.pairs * 2 == sum((p, b, a) in one_way for p, a, b in one_way)
    said = [(p, frozenset((a, b)), None if tie else a) for p, a, b, tie in rows]
    assert duplicates(index).tolist() == [said[row] in said[:row] for row in range(len(said))]
    latest = {}
    for row, (p, win, _, tie) in enumerate(rows):
        if not tie:
            latest[p, win] = row
    assert latest_losers(index).tolist() == [
        tie or latest[p, win] == row for row, (p, win, _, tie) in enumerate(rows)
    ]


def test_duplicates_have_the_same_user_strength_and_ranking():
    rows = [("cat", "a", "b", False)] * 2
    assert duplicates(make(rows)).tolist() == [False, True]
    assert not duplicates(make(rows, users=["ann", "bob"])).any()
    assert not duplicates(make(rows, strength=[1.0, 0.5])).any()
    assert not duplicates(make(rows, order=[1, 2])).any()
    assert duplicates(make(rows, order=[2, 2])).tolist() == [False, True]
    assert len(select(make(rows), Filters(), allow_duplicates=False)[0]) == 1
    assert len(select(make(rows), Filters())[0]) == 2


def test_strength_and_ties():
    rows = [("cat", "a", "b", False), ("cat", "c", "d", True), ("cat", "e", "f", False)]
    index = make(rows, strength=[0.3, 1.0, 0.8])
    assert select(index, Filters(min_strength=0.5))[0].row.tolist() == [2]
    assert select(index, Filters(min_strength=0.5), ties="keep")[0].row.tolist() == [1, 2]
    assert report_pairs(index).strengths == [0, 0, 1, 0, 0, 0, 0, 1, 0, 0]
    assert report_pairs(make(rows)).strengths == [0] * 9 + [2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_wins": 1}, "min_wins counts the wins of absolute winners"),
        ({"min_wins": -1, "absolute_winners": True}, "min_wins is -1"),
        ({"min_strength": 2.0}, "min_strength is 2"),
    ],
)
def test_filters_that_make_no_sense(settings, message):
    with pytest.raises(UserError, match=message):
        Filters(**settings)


def _parquet(folder):
    rows = [
        comparison("cat", "a", "b", 1.0, ranking_id=1, user_id=4),
        comparison("cat", "c", "a", 0.0, ranking_id=2, user_id=4),
        comparison("cat", "b", "c", 0.5, ranking_id=3, user_id=5),
        comparison("dog", "d", "e", 0.0, ranking_id=4, user_id=5),
        comparison("dog", "d", "e", 0.0, ranking_id=4, user_id=5),
        comparison("dog", "d", "e", None, ranking_id=6, user_id=5),
    ]
    write_parquet(folder / "data" / "train-00000-of-00001.parquet", rows)
    return read_preferences(folder / "data")


def test_the_report_of_pick_a_pic(tmp_path):
    report = report_pairs(_parquet(tmp_path))
    assert (report.rows, report.missing, report.identical, report.labelled) == (6, 1, 0, 5)
    assert (report.ties, report.prompts, report.pictures, report.users) == (1, 2, 5, 2)
    assert report.duplicates == 1 and report.contradictions.pairs == 0
    assert (report.winners.pictures, report.winners.rows, report.winners.share) == (2, 4, 0.8)
    assert (report.winners.more_than_one, report.winners.rows_more_than_one) == (2, 4)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_what_was_kept_refers_to_the_originals(tmp_path, ending):
    """The file of a selection is read like the data that it comes from."""
    index, _ = select(_parquet(tmp_path), Filters(absolute_winners=True), ties="keep", allow_duplicates=False)
    path = tmp_path / "kept" / f"pairs.{ending}"
    path.parent.mkdir()
    write_pairs(index, path)
    assert path.stat().st_size < 8_000 and [file.name for file in path.parent.iterdir()] == [path.name]
    again = read_preferences(path)
    assert again.prompts.values == ["cat", "dog"] and again.dated
    assert again.order.tolist() == index.order.tolist() == [1, 2, 4]
    assert [again.users.at(row) for row in range(3)] == ["4", "4", "5"]
    for old, new in zip(PreferenceSet(index), PreferenceSet(again), strict=True):
        assert (old.prompt, colour(old.win), colour(old.lose)) == (
            new.prompt,
            colour(new.win),
            colour(new.lose),
        )
    assert absolute_winners(again).all()  # a picture of two rows is still known to be one
    assert len(again.pictures) == 5 and again.pictures.name(0).startswith("jpg_0 of row 1 of ")


def test_kept_pairs_of_files_and_ties(tmp_path):
    write_pictures(tmp_path / "pictures")
    pairs = [
        {"prompt": "cat", "chosen": "a.png", "rejected": "b.png", "strength": 0.5, "axis": "color"},
        {"prompt": "cat", "chosen": "c.png", "rejected": "b.png", "tie": True, "chosen_mask": "d.png"},
    ]
    write_jsonl(tmp_path / "pictures" / "metadata.jsonl", pairs)
    index = read_preferences(tmp_path / "pictures")
    write_pairs(index, tmp_path / "kept.jsonl")
    assert '"chosen": "pictures/a.png"' in (tmp_path / "kept.jsonl").read_text()
    again = PreferenceSet(read_preferences(tmp_path / "kept.jsonl"))
    assert [pair.tie for pair in again] == [False, True] and again[0].strength == 0.5
    assert again[0].axis == "color" and again[1].axis is None
    assert again[1].win_mask is not None and again[0].win_mask is None


def test_what_cannot_be_written(tmp_path):
    for path, message in ((tmp_path / "pairs.csv", "use a .jsonl or .parquet"), (tmp_path, "use a .jsonl")):
        with pytest.raises(UserError, match=message):
            write_pairs(CHAIN, path)
    with pytest.raises(UserError, match="nothing of memory is left to write"):
        write_pairs(CHAIN.take(np.array([], np.int64)), tmp_path / "pairs.jsonl")


def test_filters_need_to_know_pictures(tmp_path):
    rows = [comparison("cat", "a", "b", 1.0)] * 2
    rows = [{key: value for key, value in row.items() if "uid" not in key} for row in rows]
    write_parquet(tmp_path / "pairs.parquet", rows)
    index = read_preferences(tmp_path)
    for filters in (Filters(absolute_winners=True), Filters(latest_losers=True)):
        with pytest.raises(UserError, match="neither names nor uids"):
            select(index, filters)
    report = report_pairs(index)
    assert report.winners is None and report.duplicates is None and report.pictures == 4


def test_the_report_of_likes(tmp_path):
    write_pictures(tmp_path)
    labels = [("a", 1), ("a", 0), ("b", 1), ("c", None)]
    write_jsonl(
        tmp_path / "metadata.jsonl",
        [{"prompt": "cat", "file_name": f"{name}.png", "label": label} for name, label in labels],
    )
    report = report_judged(read_preferences(tmp_path))
    assert (report.rows, report.missing, report.liked, report.disliked) == (4, 1, 2, 1)
    assert report.contradictions == 1 and report.mean == pytest.approx(2 / 3)
