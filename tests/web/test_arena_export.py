"""Votes as data: the columns of Pick-a-Pic, read as published trainers read them, and back into an arena."""

from __future__ import annotations

import io
import json
import resource
import sys
from datetime import UTC, datetime

import numpy as np
import pyarrow
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from pyarrow import parquet

from unifl.data.preferences import PreferenceSet, read_preferences
from unifl.errors import UserError
from unifl.web.arena import Arena, read_results
from unifl.web.arena import export as exporting
from unifl.web.arena.app import make_app
from unifl.web.arena.export import as_jsonl, as_parquet, export_votes, vote_rows
from unifl.web.arena.make import import_arena
from unifl.web.arena.results import read_votes

# https://huggingface.co/datasets/yuvalkirstain/pickapic_v2, without image_0_url and image_1_url
PICK_A_PIC = {
    "are_different": "bool",
    "best_image_uid": "string",
    "caption": "string",
    "created_at": "timestamp[ns]",
    "has_label": "bool",
    "image_0_uid": "string",
    "image_1_uid": "string",
    "jpg_0": "binary",
    "jpg_1": "binary",
    "label_0": "double",
    "label_1": "double",
    "model_0": "string",
    "model_1": "string",
    "ranking_id": "int64",
    "user_id": "string",  # a number there
    "num_example_per_prompt": "int64",
    "__index_level_0__": "int64",
}
OURS = {"axis": "string", "milliseconds": "int64"}


@pytest.fixture
def judged(make_arena):
    """An arena with a vote of two people on each of five pairs, a vote that was undone, and known pairs."""
    arena = make_arena(prompts=6, overlap=2, gold=1, gold_every=3, axes=("colour", "layout"))
    for picture in range(12):  # each with a content of its own
        pixels = np.full((8, 8, 3), 20 * picture, np.uint8)
        Image.fromarray(pixels).save(arena.picture(picture))
    said = np.random.default_rng(4)
    for name in ("ann", "bøb <b>"):
        person = arena.annotator(arena.add_annotator(name))
        first = arena.next(person)
        arena.vote(person, first.id, {"colour": "left", "layout": "left"})
        arena.undo(person, arena.next(person).id)
        while (shown := arena.next(person)) is not None:
            answers = {axis: str(said.choice(["left", "same", "right"])) for axis in arena.settings.axes}
            arena.vote(person, shown.id, answers, milliseconds=int(said.integers(300, 9000)))
    return arena


def table(arena, path, **options):
    export_votes(arena, path, **options)
    return parquet.read_table(path)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_columns_are_those_of_pick_a_pic(judged, tmp_path):
    found = table(judged, tmp_path / "votes.parquet")
    assert {field.name: str(field.type) for field in found.schema} == PICK_A_PIC | OURS
    votes = [vote for vote in read_votes(judged) if vote.gold is None]
    assert len(votes) == found.num_rows == 10
    for number, (row, vote) in enumerate(zip(found.to_pylist(), votes, strict=True)):
        label = vote.answers["colour"]
        uids = (row["image_0_uid"], row["image_1_uid"])
        assert row["best_image_uid"] == {1.0: uids[0], 0.0: uids[1], 0.5: "tie"}[label]
        assert (row["label_0"], row["label_1"]) == (label, 1 - label)
        assert row["has_label"] and row["are_different"] and len(set(uids)) == 2
        assert (row["jpg_0"], row["jpg_1"]) == tuple(
            (judged.folder / file).read_bytes() for file in vote.files
        )
        assert (row["caption"], row["model_0"], row["model_1"]) == (vote.prompt, *vote.models)
        assert (row["ranking_id"], row["__index_level_0__"]) == (number + 1, number)
        assert (row["user_id"], row["axis"], row["milliseconds"]) == (
            vote.annotator,
            "colour",
            vote.milliseconds,
        )
        assert row["milliseconds"] >= 300
        assert row["created_at"].replace(tzinfo=UTC).timestamp() == pytest.approx(vote.at, abs=2e-6)
        assert row["num_example_per_prompt"] == 2
    export_votes(judged, tmp_path / "votes.jsonl")
    for row, named in zip(found.to_pylist(), lines(tmp_path / "votes.jsonl"), strict=True):
        assert named.keys() == row.keys() - {"__index_level_0__"}
        for side in ("jpg_0", "jpg_1"):
            assert (tmp_path / named.pop(side)).read_bytes() == row.pop(side)
        at = datetime.fromisoformat(named.pop("created_at"))
        assert at.replace(tzinfo=None) == row.pop("created_at")
        assert named.items() <= row.items()


def test_a_uid_is_the_same_in_every_arena_and_tells_pictures_apart(make_arena, tmp_path):
    """Files of several arenas are read as one, and equal numbers would make their pictures the same."""
    found = {}
    for name, models in (("one", ("base", "good")), ("other", ("good", "better"))):
        arena = make_arena(name, prompts=1, models=models)
        person = arena.annotator(arena.add_annotator("ann"))
        arena.vote(person, arena.next(person).id, {"overall": "left"})
        (row,) = vote_rows(arena)
        found[name] = {row["model_0"]: row["image_0_uid"], row["model_1"]: row["image_1_uid"]}
        export_votes(arena, tmp_path / f"{name}.parquet")
    assert found["one"]["good"] == found["other"]["good"]
    assert len({*found["one"].values(), *found["other"].values()}) == 3
    index = read_preferences([tmp_path / "one.parquet", tmp_path / "other.parquet"])
    assert len({*index.win.tolist(), *index.lose.tolist()}) == 3


def test_pictures_that_are_equal_are_said_to_be(make_arena, tmp_path):
    arena = make_arena(prompts=2)
    person = arena.annotator(arena.add_annotator("ann"))
    arena.vote(person, arena.next(person).id, {"overall": "left"})
    (vote,) = read_votes(arena)
    (arena.folder / vote.files[0]).write_bytes((arena.folder / vote.files[1]).read_bytes())
    for name in ("votes.parquet", "votes.jsonl"):
        export_votes(arena, tmp_path / name)
        index = read_preferences(tmp_path / name)
        assert len(index) == 0 and index.left_out.identical == 1


def test_models_that_drew_the_very_same_keep_their_names(make_arena, tmp_path):
    arena = make_arena(prompts=1, models=("base", "good", "better"))
    files = {model: arena.folder / file for model, file in arena.rows("SELECT model, file FROM pictures")}
    files["better"].write_bytes(files["good"].read_bytes())
    person = arena.annotator(arena.add_annotator("ann"))
    while (shown := arena.next(person)) is not None:
        arena.vote(person, shown.id, {"overall": "left"})
    before = table(arena, tmp_path / "before.parquet")
    import_arena(tmp_path / "again", str(tmp_path / "before.parquet"), overlap=1, question="Which?")
    again = Arena(tmp_path / "again", look_only=True)
    after = table(again, tmp_path / "after.parquet")
    again.close()
    kept = [row for row in before.to_pylist() if row["are_different"]]
    assert len(kept) == 2  # of three; nothing can be learnt from the other
    for one, other in zip(kept, after.to_pylist(), strict=True):
        assert [one[f"model_{n}"] for n in (0, 1)] == [other[f"model_{n}"] for n in (0, 1)]


def decoded(value):
    return Image.open(io.BytesIO(value)).convert("RGB")


def test_pickscores_trainer_finds_its_columns(judged, tmp_path):
    """What trainer/datasetss/clip_hf_dataset.py of github.com/yuvalkirstain/PickScore asks of rows."""
    frame = table(judged, tmp_path / "votes.parquet")
    names = set(frame.column_names)
    assert {"caption", "jpg_0", "jpg_1", "label_0", "label_1", "are_different", "has_label"} <= names
    assert "num_example_per_prompt" in names and "__index_level_0__" in names
    for row in frame.to_pylist():
        assert isinstance(row["caption"], str) and row["are_different"] is True and row["has_label"] is True
        assert decoded(row["jpg_0"]).size == decoded(row["jpg_1"]).size == (8, 8)
        assert row["label_0"] + row["label_1"] == 1 and row["num_example_per_prompt"] >= 1
    # only_on_best: from every picture that lost a way leads to one that won, by uids
    better = {}
    for row in frame.to_pylist():
        if row["label_0"] in (0.0, 1.0):
            won, lost = (0, 1) if row["label_0"] else (1, 0)
            better[row[f"image_{lost}_uid"]] = row[f"image_{won}_uid"]
    assert better and all(uid != other for uid, other in better.items())


def test_diffusion_dpos_trainer_finds_its_columns(judged, tmp_path):
    """What train.py of github.com/SalesforceAIResearch/DiffusionDPO asks: clear labels, bytes, models as text."""
    rows = table(judged, tmp_path / "votes.parquet").to_pylist()
    clear = [row for row in rows if row["label_0"] in (0, 1)]
    assert 0 < len(clear) < len(rows)  # ties are there, and told apart
    wins = {(vote.prompt, vote.annotator): vote for vote in read_votes(judged)}
    for row in clear:
        assert "dream" not in row["model_0"] and "dream" not in row["model_1"]
        pictures = [decoded(row["jpg_0"]), decoded(row["jpg_1"])]
        if row["label_0"] == 0:
            pictures.reverse()
        vote = wins[row["caption"], row["user_id"]]
        winner = vote.files[0 if vote.answers["colour"] else 1]
        assert pictures[0].tobytes() == Image.open(judged.folder / winner).tobytes() != pictures[1].tobytes()


def pairs_of(path):
    index = read_preferences(path)
    pairs = PreferenceSet(index, resolution=8)
    return [
        (
            pairs[row].prompt,
            pairs[row].win.numpy().tobytes(),
            pairs[row].lose.numpy().tobytes(),
            bool(index.tie[row]),
            float(index.strength[row]),
            int(index.order[row]),
            index.axes.at(row),
            index.users.at(row),
            index.win[row] == index.win[0],
        )
        for row in range(len(index))
    ]


@pytest.mark.parametrize("axis", ["colour", "layout"])
def test_both_forms_are_read_as_the_same_pairs(judged, tmp_path, axis):
    for name in ("votes.jsonl", "votes.parquet"):
        assert export_votes(judged, tmp_path / name, axis=axis) == 10
    found = pairs_of(tmp_path / "votes.parquet")
    assert found == pairs_of(tmp_path / "votes.jsonl") and len(found) == 10
    assert {pair[6] for pair in found} == {axis} and {pair[7] for pair in found} == {"ann", "bøb <b>"}
    first = read_preferences(tmp_path / "votes.parquet", form="pick_a_pic")
    assert first.dated and first.pictures.known


@pytest.mark.parametrize("by", ["votes.parquet", "votes.jsonl"])
def test_an_import_of_an_export_exports_the_same(judged, tmp_path, by):
    before = table(judged, tmp_path / "before.parquet")
    export_votes(judged, tmp_path / by)
    assert import_arena(tmp_path / "again", str(tmp_path / by), overlap=2, question="Which?").repeated == 0
    again = Arena(tmp_path / "again")
    assert table(again, tmp_path / "after.parquet").equals(before)
    export_votes(judged, tmp_path / "before.jsonl")
    export_votes(again, tmp_path / "after.jsonl")
    for one, other in zip(lines(tmp_path / "before.jsonl"), lines(tmp_path / "after.jsonl"), strict=True):
        for side in ("jpg_0", "jpg_1"):
            assert (tmp_path / one.pop(side)).read_bytes() == (tmp_path / other.pop(side)).read_bytes()
        assert one == other
    first, second = read_results(judged, "colour"), read_results(again, "colour")
    assert first.wins == second.wins and first.agreement == second.agreement
    assert again.rows("SELECT DISTINCT swapped FROM shown") == [(0,)]
    again.close()


def test_pick_a_pic_itself_is_imported_with_its_models_and_times(judged, tmp_path):
    """With numbers for users, as there, and without columns of ours."""
    found = table(judged, tmp_path / "votes.parquet").drop_columns(list(OURS))
    numbers = [["ann", "bøb <b>"].index(name) + 17 for name in found["user_id"].to_pylist()]
    found = found.set_column(found.column_names.index("user_id"), "user_id", pyarrow.array(numbers))
    parquet.write_table(found, tmp_path / "sample.parquet")
    import_arena(tmp_path / "again", str(tmp_path / "sample.parquet"), overlap=2, question="Which?")
    again = Arena(tmp_path / "again", look_only=True)
    votes = list(read_votes(again))
    again.close()
    assert {vote.annotator for vote in votes} == {"17", "18"} and {vote.milliseconds for vote in votes} == {0}
    assert [vote.models for vote in votes] == list(
        zip(found["model_0"].to_pylist(), found["model_1"].to_pylist(), strict=True)
    )
    for vote, at in zip(votes, found["created_at"].to_pylist(), strict=True):
        assert vote.at == pytest.approx(at.replace(tzinfo=UTC).timestamp(), abs=2e-6)


def test_a_time_that_is_none_names_its_row(judged, tmp_path):
    export_votes(judged, tmp_path / "votes.jsonl")
    rows = lines(tmp_path / "votes.jsonl")
    rows[3]["created_at"] = "yesterday"
    (tmp_path / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="created_at of row 4 of .*votes.jsonl is 'yesterday'; write a time"):
        import_arena(tmp_path / "again", str(tmp_path / "votes.jsonl"), overlap=2, question="Which?")
    assert not (tmp_path / "again" / "arena.sqlite").exists()


def test_large_arenas_are_written_a_row_group_at_a_time(judged, tmp_path, monkeypatch):
    size = judged.picture(0).stat().st_size
    monkeypatch.setattr(exporting, "_GROUP", 4 * size)  # two rows
    read = []
    held = type(judged.picture(0)).read_bytes
    monkeypatch.setattr(type(judged.picture(0)), "read_bytes", lambda self: read.append(self) or held(self))
    pieces = as_parquet(vote_rows(judged))
    assert not read  # before anything is asked for
    counts = [(len(piece), len(read)) for piece in pieces]
    assert [count for _, count in counts] == [4, 8, 12, 16, 20, 20] and all(size for size, _ in counts)
    export_votes(judged, tmp_path / "votes.parquet")
    file = parquet.ParquetFile(tmp_path / "votes.parquet")
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [2] * 5
    assert file.metadata.row_group(0).column(7).compression == "UNCOMPRESSED"  # PNG is compressed already


@pytest.mark.parametrize("name", ["votes.parquet", "votes.jsonl"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(judged, tmp_path, name, monkeypatch):
    monkeypatch.setattr(exporting, "_GROUP", 1)
    place = tmp_path / "out"
    place.mkdir()
    (place / name).write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # what goes beyond fails, as on a full disk
    try:
        with pytest.raises(UserError, match=f"cannot write .*{name}: .*; make room, or write elsewhere"):
            export_votes(judged, place / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (place / name).read_bytes() == b"old" and list(place.iterdir()) == [place / name]
    assert export_votes(judged, place / name) == 10


def test_what_is_missing_is_said_before_anything_is_written(judged, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"use a \.jsonl or \.parquet file"):
        export_votes(judged, tmp_path / "votes.csv")
    with pytest.raises(UserError, match="asks for colour, layout, not for 'taste'"):
        export_votes(judged, tmp_path / "votes.parquet", axis="taste")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name in list(sys.modules):
        if name.startswith("pyarrow."):
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        UserError, match=r"votes\.parquet needs pyarrow; run `pip install 'unifl\[parquet\]'`"
    ):
        export_votes(judged, tmp_path / "votes.parquet")
    client, admin = TestClient(make_app(judged)), judged.new_admin()
    answer = client.get(f"/admin/{admin}/votes.parquet")
    assert answer.status_code == 400 and "pip install &#39;unifl[parquet]&#39;" in answer.text
    assert client.get(f"/admin/{admin}/votes.jsonl").status_code == 200
    judged.picture(0).unlink(), judged.picture(1).unlink()
    with pytest.raises(UserError, match=r"cannot read the picture .*png: No such file.*put it back"):
        export_votes(judged, tmp_path / "votes.jsonl")
    assert client.get(f"/admin/{admin}/votes.jsonl").status_code == 400
    assert not list(tmp_path.glob("*votes*"))


def test_the_admin_page_gives_both_forms(judged, tmp_path):
    client, admin = TestClient(make_app(judged)), judged.new_admin()
    page = client.get(f"/admin/{admin}?axis=1").text
    for name, kind in (
        ("votes.jsonl", "application/jsonl"),
        ("votes.parquet", "application/vnd.apache.parquet"),
    ):
        assert f'href="/admin/{admin}/{name}?axis=1"' in page
        answer = client.get(f"/admin/{admin}/{name}?axis=1")
        assert answer.headers["content-type"] == kind
        assert answer.headers["content-disposition"] == f'attachment; filename="{name}"'
        export_votes(judged, judged.folder / name, axis="layout")
        assert answer.content == (judged.folder / name).read_bytes()
        assert client.get(f"/admin/nobody/{name}").status_code == 404
        assert client.get(f"/admin/{admin}/{name}?axis=2").status_code == 404


def test_files_are_named_from_the_folder_of_the_export(judged, tmp_path):
    (inside,) = {
        json.loads(line)["jpg_0"].partition("/")[0] for line in as_jsonl(vote_rows(judged), tmp_path)
    }
    assert inside == "arena"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    export_votes(judged, elsewhere / "votes.jsonl")
    assert all(
        row["jpg_0"].startswith(str(judged.folder.resolve())) for row in lines(elsewhere / "votes.jsonl")
    )
    assert len(read_preferences(elsewhere / "votes.jsonl")) == 10
