"""Forms of preference data and their index."""

from __future__ import annotations

import json
import math
import sys
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preference_files import COLOURS, colour, comparison, png, write_jsonl, write_parquet, write_pictures
from unifl.data.preferences import (
    JudgedIndex,
    JudgedSet,
    PreferenceIndex,
    PreferenceSet,
    read_preferences,
)
from unifl.data.preferences.arrow_table import parquet_table
from unifl.errors import UserError


def told(index):
    """Prompt, winner and loser of every row, by what the pictures show."""
    pairs = PreferenceSet(index)
    return [(pairs[row].prompt, colour(pairs[row].win), colour(pairs[row].lose)) for row in range(len(pairs))]


ROWS = [
    comparison("cat", "a", "b", 1.0, ranking_id=3, user_id=7),
    comparison("cat", "b", "c", 0.0, ranking_id=2, user_id=7),
    comparison("dog", "d", "e", 0.5, ranking_id=5, user_id=8),
    comparison("dog", "d", "e", None, ranking_id=6, user_id=8),
    comparison("dog", "e", "d", math.nan, ranking_id=6, user_id=8),
    comparison("dog", "e", "e", 1.0, ranking_id=7, user_id=9),
    comparison("dog", "e", "d", 0.9, ranking_id=8, user_id=9),
]


@pytest.mark.parametrize("structs", [False, True])
def test_pick_a_pic_over_several_files(tmp_path, structs):
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", ROWS[:3], structs=structs)
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", ROWS[3:], structs=structs)
    index = read_preferences(tmp_path)
    assert isinstance(index, PreferenceIndex)
    assert told(index) == [("cat", "a", "b"), ("cat", "c", "b"), ("dog", "d", "e"), ("dog", "e", "d")]
    assert index.tie.tolist() == [False, False, True, False]
    assert index.left_out.read == 7 and index.left_out.missing == 2 and index.left_out.identical == 1
    assert index.order.tolist() == [3, 2, 5, 8] and index.dated
    assert index.strength.tolist() == pytest.approx([1, 1, 1, 0.8])
    assert len(index.pictures) == 5  # each uid once, though pictures are in 14 places
    assert [index.users.at(row) for row in range(4)] == ["7", "7", "8", "9"]
    assert index.who() == ["7", "8", "9"] and index.take(np.array([3, 0])).who() == ["7", "9"]
    assert index.name(3).startswith("row 4 of ") and "00001-of" in index.name(3)


def test_indexing_reads_no_picture(tmp_path, monkeypatch):
    """Bytes of the columns of pictures are overwritten; indexing does not notice, reading does."""
    path = tmp_path / "pairs.parquet"
    rows = [comparison("cat", "a", "b", 1.0) | {"jpg_0": b"x" * 50_000} for _ in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2, compression=None, use_dictionary=False)
    content = bytearray(path.read_bytes())
    for group in range(2):
        column = pq.read_metadata(path).row_group(group).column(1)
        assert column.path_in_schema == "jpg_0"
        start = column.data_page_offset
        content[start : start + 20] = b"\0" * 20
    path.write_bytes(content)
    index = read_preferences(path)
    assert len(index) == 4
    with pytest.raises(UserError, match=r"cannot read row 0 of 'jpg_0' of .*pairs\.parquet"):
        index.pictures.picture(int(index.win[0]))


def test_without_uids_every_picture_is_its_own(tmp_path):
    rows = [{key: value for key, value in row.items() if "uid" not in key} for row in ROWS[:3]]
    write_parquet(tmp_path / "pairs.parquet", rows)
    index = read_preferences(tmp_path)
    assert not index.pictures.known and len(index.pictures) == 6
    assert told(index)[:2] == [("cat", "a", "b"), ("cat", "c", "b")]


def test_has_label_and_are_different_and_best_image_uid(tmp_path):
    flags = [(True, True), (False, True), (True, False), (True, True)]
    rows = [
        comparison("cat", "a", "b", 1.0, has_label=has, are_different=different, best_image_uid=best)
        for (has, different), best in zip(flags, ["a", "a", "a", "tie"], strict=True)
    ]
    rows[1] |= {"label_0": 0.0, "label_1": 0.0}  # nonsense does not matter where there is no label
    write_parquet(tmp_path / "pairs.parquet", rows)
    index = read_preferences(tmp_path)
    assert len(index) == 2 and index.left_out.missing == 1 and index.left_out.identical == 1
    for row in rows:
        del row["label_0"], row["label_1"]
    rows[0]["best_image_uid"] = "b"
    write_parquet(tmp_path / "pairs.parquet", rows)
    index = read_preferences(tmp_path)
    assert index.tie.tolist() == [False, True] and told(index)[0] == ("cat", "b", "a")
    rows[0]["best_image_uid"] = "z"
    write_parquet(tmp_path / "pairs.parquet", rows)
    with pytest.raises(UserError, match=r"best_image_uid of row 1 of .*pairs\.parquet is 'z'"):
        read_preferences(tmp_path)


@pytest.mark.parametrize("labels", [(0.3, 0.9), (1.0, 1.0), (2.0, -1.0), (0.0, 0.0)])
def test_labels_of_no_known_form_are_named(tmp_path, labels):
    rows = [comparison("cat", "a", "b", 1.0) for _ in range(3)]
    rows[2] |= {"label_0": labels[0], "label_1": labels[1]}
    write_parquet(tmp_path / "pairs.parquet", rows)
    with pytest.raises(UserError, match=r"the labels of row 3 of .*pairs\.parquet are .*sum to 1"):
        read_preferences(tmp_path)


def test_pick_a_pic_as_json_and_files(tmp_path):
    write_pictures(tmp_path)
    rows = [
        {"caption": "cat", "jpg_0": "a.png", "jpg_1": "b.png", "label_0": 0, "label_1": 1},
        {"caption": "cat", "jpg_0": "b.png", "jpg_1": "c.png", "label_0": None, "label_1": None},
    ]
    write_jsonl(tmp_path / "metadata.jsonl", rows)
    index = read_preferences(tmp_path)
    assert told(index) == [("cat", "b", "a")] and index.left_out.missing == 1
    rows[1] |= {"label_0": "yes"}
    write_jsonl(tmp_path / "metadata.jsonl", rows)
    with pytest.raises(UserError, match=r"label_0 of row 2 of .*metadata\.jsonl is 'yes'; a number"):
        read_preferences(tmp_path)


def test_rankings_become_all_ordered_pairs(tmp_path):
    write_pictures(tmp_path / "test")
    rows = [
        {"prompt": "cat", "image_path": ["a.png", "b.png", "c.png"], "rank": [2, 1, 2]},
        {"prompt": "dog", "image_path": ["d.png", "e.png"], "rank": [None, 1]},
        {"prompt": "cow", "image_path": ["d.png"], "rank": [1]},
    ]
    (tmp_path / "test.json").write_text(json.dumps(rows))
    index = read_preferences(tmp_path / "test.json", images=tmp_path / "test")
    assert told(index) == [("cat", "b", "a"), ("cat", "a", "c"), ("cat", "b", "c")]
    assert index.tie.tolist() == [False, True, False] and index.left_out.missing == 1
    assert index.strength.tolist() == [0.5, 1.0, 0.5] and index.row.tolist() == [0, 0, 0]
    rows = [{"prompt": "cat", "file_path": ["a.png", "b.png"], "human_preference": [0, 1]}]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    assert told(read_preferences(tmp_path / "train.json", images=tmp_path / "test")) == [("cat", "b", "a")]
    with pytest.raises(UserError, match="has the splits test, train"):
        read_preferences(tmp_path)
    assert len(read_preferences(tmp_path, split="train")) == 1


def test_rankings_of_imagereward(tmp_path):
    """`data/test.json` of its repository: equal ranks are a tie, and ranks may leave numbers out."""
    write_pictures(tmp_path / "test_images")
    row = {
        "id": "005870-0077",
        "prompt": "cat",
        "generations": ["a.png", "b.png", "c.png"],
        "ranking": [5, 1, 1],
    }
    (tmp_path / "test.json").write_text(json.dumps([row]))
    index = read_preferences(tmp_path / "test.json", images=tmp_path / "test_images")
    assert told(index) == [("cat", "b", "a"), ("cat", "c", "a"), ("cat", "b", "c")]
    assert index.tie.tolist() == [False, False, True] and index.strength.tolist() == [1.0, 1.0, 1.0]
    assert index.pictures.name(0) == str(tmp_path / "test_images" / "a.png")
    for changes, message in (
        ({"ranking": [1, 2]}, r"ranking of row 2 of .* is \[1, 2\]; one number for each of its 3 pictures"),
        ({"generations": "a.png"}, "row 2 of .* has no list of file names; generations is 'a.png'"),
    ):
        (tmp_path / "test.json").write_text(json.dumps([row, row | changes]))
        with pytest.raises(UserError, match=message):
            read_preferences(tmp_path / "test.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": [1]}, "rank of row 2 of .* one number for each of its 2"),
        ({"rank": [1, "x"]}, "rank of row 2"),
        ({"image_path": "a.png"}, "row 2 .* has no list of file names"),
        ({"prompt": None}, "row 2 of .* has no prompt"),
        ({"prompt": ["cat"]}, "prompt of row 2 .* text is needed"),
    ],
)
def test_rankings_that_are_wrong_are_named(tmp_path, changes, message):
    good = {"prompt": "cat", "image_path": ["a.png", "b.png"], "rank": [2, 1]}
    (tmp_path / "test.json").write_text(json.dumps([good, good | changes]))
    with pytest.raises(UserError, match=message):
        read_preferences(tmp_path)


def test_a_json_list_that_was_cut_short(tmp_path):
    good = {"prompt": "cat", "image_path": ["a.png", "b.png"], "rank": [2, 1]}
    text = json.dumps([good, good], indent=1)
    path = tmp_path / "test.json"
    for cut, message in (
        (text[:-2], "ends or breaks after element 2"),
        (text[:-30], "element 2 of .* not JSON"),
    ):
        path.write_text(cut)
        with pytest.raises(UserError, match=message):
            read_preferences(path)
    path.write_text(json.dumps(good))
    with pytest.raises(UserError, match="holds no list"):
        read_preferences(path)
    path.write_text("[]")
    with pytest.raises(UserError, match="has no rows"):
        read_preferences(path)


def test_chosen_and_rejected_with_everything(tmp_path):
    write_pictures(tmp_path / "pictures")
    pairs = [
        {"prompt": "cat", "chosen": "pictures/a.png", "rejected": "pictures/b.png"},
        {
            "prompt": "cat",
            "chosen": "pictures/c.png",
            "rejected": "pictures/b.png",
            "axis": "color",
            "tie": True,
        },
        {
            **{"prompt": "dog", "chosen": "pictures/d.png", "rejected": "pictures/e.png", "strength": 0.25},
            **{"axis": "layout", "user": "ann", "chosen_mask": "pictures/a.png"},
        },
    ]
    write_jsonl(tmp_path / "pairs.jsonl", pairs)
    index = read_preferences(tmp_path / "pairs.jsonl")
    rows = PreferenceSet(index, resolution=8)
    assert told(index) == [("cat", "a", "b"), ("cat", "c", "b"), ("dog", "d", "e")]
    assert [rows[row].axis for row in range(3)] == [None, "color", "layout"]
    assert [rows[row].tie for row in range(3)] == [False, True, False]
    assert [rows[row].strength for row in range(3)] == [1.0, 1.0, 0.25]
    assert None in rows.users and "ann" in rows.users
    assert rows[2].user == "ann" and rows[2].win_mask.shape == (8, 8) and rows[2].lose_mask is None
    assert rows[0].win_mask is None and rows[0].win.shape == (3, 8, 8)
    assert rows.has_masks
    assert float(rows[2].win_mask.mean()) == pytest.approx(0.33, abs=0.02)  # red in grey
    write_jsonl(tmp_path / "pairs.jsonl", [*pairs, pairs[2] | {"strength": 1.5}])
    with pytest.raises(UserError, match=r"the strength of row 4 of .*pairs\.jsonl is 1\.5"):
        read_preferences(tmp_path / "pairs.jsonl")


def test_likes(tmp_path):
    write_pictures(tmp_path)
    rows = [
        {"prompt": "cat", "file_name": "a.png", "label": True},
        {"prompt": "cat", "file_name": "b.png", "label": 0},
        {"prompt": "dog", "file_name": "c.png", "label": None},
        {"prompt": "dog", "file_name": "d.png", "label": 1.0},
    ]
    write_jsonl(tmp_path / "metadata.jsonl", rows)
    index = read_preferences(tmp_path)
    assert isinstance(index, JudgedIndex) and index.left_out.missing == 1
    judged = JudgedSet(index)
    found = [(judged[row].prompt, colour(judged[row].image), judged[row].score) for row in range(3)]
    assert found == [("cat", "a", 1.0), ("cat", "b", 0.0), ("dog", "d", 1.0)]
    write_jsonl(tmp_path / "metadata.jsonl", [*rows, rows[0] | {"label": 3}])
    with pytest.raises(UserError, match="label of row 5 of .* is 3; write 0, 1"):
        read_preferences(tmp_path)
    table = pa.Table.from_pylist([{"prompt": "cat", "image": png("a"), "liked": True}])
    pq.write_table(table, tmp_path / "likes.parquet")
    judged = JudgedSet(read_preferences(tmp_path / "likes.parquet"), resolution=4)
    assert colour(judged[0].image) == "a" and judged[0].score == 1.0
    with pytest.raises(UserError, match="likes, which are no pairs"):
        PreferenceSet.from_path(str(tmp_path / "likes.parquet"))


def test_what_cannot_be_opened(tmp_path):
    for path, message in (
        ("none", "there is no file or folder"),
        (".", "holds no metadata.jsonl"),
        ("words.txt", "use .json, .jsonl or .parquet"),
    ):
        (tmp_path / "words.txt").write_text("cat")
        with pytest.raises(UserError, match=message):
            read_preferences(tmp_path / path)
    write_jsonl(tmp_path / "odd.jsonl", [{"prompt": "cat", "winner": "a.png"}])
    with pytest.raises(UserError, match=r"has the columns prompt, winner; needed are pick_a_pic: caption"):
        read_preferences(tmp_path / "odd.jsonl")
    write_jsonl(tmp_path / "good.jsonl", [{"prompt": "cat", "chosen": "a.png", "rejected": "b.png"}])
    with pytest.raises(UserError, match=r"needed are likes: prompt, image or file_name, label or liked$"):
        read_preferences(tmp_path / "good.jsonl", form="likes")
    with pytest.raises(UserError, match="are for a sample store"):
        read_preferences(tmp_path / "good.jsonl", score="color")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"cannot read .*broken\.parquet"):
        read_preferences(tmp_path / "broken.parquet")
    write_parquet(tmp_path / "x" / "train-00000-of-00001.parquet", ROWS[:1])
    write_parquet(tmp_path / "x" / "test-00000-of-00001.parquet", ROWS[1:2])
    with pytest.raises(UserError, match="has the splits test, train; set `split`"):
        read_preferences(tmp_path / "x")
    with pytest.raises(UserError, match="has no split 'validation'"):
        read_preferences(tmp_path / "x", split="validation")
    assert told(read_preferences(tmp_path / "x", split="test")) == [("cat", "c", "b")]
    files = sorted((tmp_path / "x").glob("*.parquet"))
    assert len(read_preferences(files)) == 2
    with pytest.raises(UserError, match="is one file"):
        read_preferences(files[0], split="test")
    write_parquet(tmp_path / "x" / "test-00000-of-00001.parquet", [ROWS[1] | {"extra": 1}])
    with pytest.raises(UserError, match="differ in the columns extra"):
        read_preferences(files)


def test_without_pyarrow_the_message_names_the_extra(tmp_path, monkeypatch):
    write_parquet(tmp_path / "pairs.parquet", ROWS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"needs pyarrow; run `pip install 'unifl\[parquet\]'`"):
        read_preferences(tmp_path)
    write_pictures(tmp_path)  # and JSON does not need it
    write_jsonl(tmp_path / "good.jsonl", [{"prompt": "cat", "chosen": "a.png", "rejected": "b.png"}])
    assert told(read_preferences(tmp_path / "good.jsonl")) == [("cat", "a", "b")]


def test_columns_that_no_form_understands_are_read_when_they_are_asked_for(tmp_path):
    at = pa.array([1_700_000_000_000_000_000, None], pa.timestamp("ns"))
    columns = {
        "prompt": ["cat", "dog"],
        "chosen": ["a.png"] * 2,
        "rejected": ["b.png"] * 2,
        "made_by": ["x", "y"],
    }
    pq.write_table(pa.table({**columns, "at": at, "tie": at}), tmp_path / "pairs.parquet")
    table = parquet_table([tmp_path / "pairs.parquet"], frozenset({"prompt"}), tmp_path)
    assert table.texts("made_by").values == ["x", "y"]
    assert [table.texts("at").at(row) for row in range(2)] == ["2023-11-14 22:13:20.000000000", None]
    with pytest.raises(UserError, match=r"the column 'tie' of .*pairs\.parquet holds no numbers"):
        read_preferences(tmp_path / "pairs.parquet")


_TYPES = {"double": "float64", "binary": "binary", "string": "string", "int64": "int64"}  # theirs, by arrow's


class Rows:
    """Behaves like a `datasets.Dataset` over an arrow table, as far as indexing goes."""

    def __init__(self, table, arrow=False):
        self.table, self.arrow, self.column_names = table, arrow, table.column_names
        self.features = {
            field.name: types.SimpleNamespace(dtype=_TYPES[str(field.type)]) for field in table.schema
        }

    def __len__(self):
        return len(self.table)

    def select_columns(self, names):
        return Rows(self.table.select(names), self.arrow)

    def with_format(self, kind):
        assert kind == "arrow"
        return Rows(self.table, arrow=True)

    def __getitem__(self, key):
        if self.arrow:
            return self.table[key]
        return {name: self.table[name][key].as_py() for name in self.column_names}


def test_a_data_set_of_the_hub(monkeypatch):
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return Rows(pa.Table.from_pylist(ROWS))

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    index = read_preferences("hub:someone/pairs", split="validation")
    assert asked == [("someone/pairs", "validation")]
    assert told(index) == [("cat", "a", "b"), ("cat", "c", "b"), ("dog", "d", "e"), ("dog", "e", "d")]
    assert index.name(0) == "row 1 of hub:someone/pairs@validation"


def test_pairs_are_checked_before_they_are_used(tmp_path):
    write_pictures(tmp_path, c=(16, 24))
    (tmp_path / "d.png").write_bytes(b"no picture")
    rows = [
        {"prompt": "cat", "chosen": f"{win}.png", "rejected": f"{lose}.png"}
        for win, lose in ("ab", "ac", "db", "ez")
    ]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    index = read_preferences(tmp_path / "pairs.jsonl")
    with pytest.raises(
        UserError, match=r"2 of 4 pairs .* first is row 3 of .*pairs\.jsonl: cannot read .*d\.png"
    ):
        PreferenceSet(index, resolution=8).checked()
    kept = PreferenceSet(index, resolution=8).checked(skip_unreadable=True)
    assert len(kept) == 2 and len(kept.left_out) == 2 and "z.png" in kept.left_out[1]
    kept = PreferenceSet(index).checked(skip_unreadable=True)
    assert len(kept) == 1 and len(kept.left_out) == 3
    assert "row 2" in kept.left_out[2] and "16 x 16 px and 24 x 16 px" in kept.left_out[2]
    with pytest.raises(UserError, match="the pictures of row 2 of .* have 16 x 16 px and 24 x 16 px"):
        PreferenceSet(index)[1]
    with pytest.raises(UserError, match=r"24 x 16 px; set `resolution`"):
        PreferenceSet(index.take(np.array([0, 1]))).require_one_size()
    PreferenceSet(index.take(np.array([0, 1])), resolution=8).require_one_size()
    with pytest.raises(UserError, match="has no usable row"):
        PreferenceSet(index.take(np.array([2]))).checked(skip_unreadable=True)
    with pytest.raises(IndexError):
        kept[1]
    assert set(COLOURS) == set("abcde")
