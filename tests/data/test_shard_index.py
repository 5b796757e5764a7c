from __future__ import annotations

import pytest

from unifl.data.shard_index import caption_in, expand
from unifl.errors import UserError


def touch(folder, *names):
    for name in names:
        (folder / name).touch()


def test_braces_count_with_their_zeros_and_name_words(tmp_path):
    touch(tmp_path, "a-008.tar", "a-009.tar", "a-010.tar", "b-008.tar", "b-009.tar", "b-010.tar")
    names = [file.name for file in expand(tmp_path / "{b,a}-{008..010}.tar")]
    assert names == ["b-008.tar", "b-009.tar", "b-010.tar", "a-008.tar", "a-009.tar", "a-010.tar"]
    touch(tmp_path, "9.tar", "10.tar")
    assert [file.name for file in expand(f"{tmp_path}/{{9..10}}.tar")] == ["9.tar", "10.tar"]


def test_globs_folders_and_lists(tmp_path):
    touch(tmp_path, "1.tar", "0.tar", "notes.txt")
    both = [tmp_path / "0.tar", tmp_path / "1.tar"]
    assert expand(tmp_path) == expand(f"{tmp_path}/*.tar") == both
    assert expand([both[1], tmp_path]) == both[::-1]  # each file once


def test_a_pattern_that_finds_nothing_or_not_all(tmp_path):
    touch(tmp_path, "0.tar", "2.tar")
    for pattern in (tmp_path / "*.tgz", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=r"no shard matches .*; name \.tar files"):
            expand(pattern)
    with pytest.raises(UserError, match=r"2 of 4 shards of .* are not there, first .*1\.tar"):
        expand(tmp_path / "{0..3}.tar")
    with pytest.raises(UserError, match=r"1 of 1 shards of .*none\.tar are not there"):
        expand(tmp_path / "none.tar")
    with pytest.raises(UserError, match="counts down"):
        expand(tmp_path / "{3..0}.tar")
    with pytest.raises(UserError, match=r"s3://.* is not on this disk; download"):
        expand("s3://bucket/0.tar")
    with pytest.raises(UserError, match="no shards were named"):
        expand([])


def test_captions_of_texts_and_objects():
    assert caption_in("\ufeffein Vögelchen\n".encode(), "txt", "caption", "here") == "ein Vögelchen"
    assert caption_in(b'{"text": "a", "caption": " b "}', "json", "caption", "here") == "b"
    assert caption_in(b'{"text": "a"}', "json", "caption", "here") is None
    for content, extension, message in (
        (b"\xff\xfe", "txt", r"the caption of here is not text: its \.txt cannot be read"),
        (b"{", "json", r"its \.json cannot be read"),
        (b"[1]", "json", r"\.json of here is not an object"),
        (b'{"caption": 5}', "json", r"is not text: `caption` holds int; write a string"),
    ):
        with pytest.raises(UserError, match=message):
            caption_in(content, extension, "caption", "here")
