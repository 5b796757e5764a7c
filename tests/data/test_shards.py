from __future__ import annotations

import io
import json
import tarfile
import warnings

import pytest
import torch
from PIL import Image

from unifl.data import ShardedPictures, collate
from unifl.errors import UserError


def picture(shade, *, size=(8, 8), kind="PNG"):
    content = io.BytesIO()
    Image.new("RGB", (size[1], size[0]), (shade, 0, 255 - shade)).save(content, kind, quality=95)
    return content.getvalue()


def write(path, files):
    """A tar file of (name, bytes)."""
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def rows(first, count):
    """`count` samples of a picture whose red is its number."""
    found = []
    for number in range(first, first + count):
        found += [(f"{number:04d}.png", picture(number)), (f"{number:04d}.txt", f"picture {number}".encode())]
    return found


def test_rows_are_read_by_number_over_all_shards(tmp_path):
    for shard in range(3):
        write(tmp_path / f"{shard}.tar", rows(10 * shard, 4))
    data = ShardedPictures(f"{tmp_path}/{{0..2}}.tar")
    data.validate()
    assert len(data) == 12
    for index in (11, 0, 6, 5):
        number = 10 * (index // 4) + index % 4
        sample = data[index]
        assert sample.prompt == data.caption(index) == f"picture {number}"
        assert torch.equal(sample.image[0], torch.full((8, 8), number / 255))
    assert [sample.prompt for sample in data] == [data.caption(index) for index in range(12)]
    assert data.at(4)[3].image.shape == (3, 4, 4) and data.picture_size(3) == (8, 8)


def test_formats_of_pictures_and_captions(tmp_path):
    both = json.dumps({"caption": "of the json"}).encode()
    write(
        tmp_path / "0.tar",
        [
            *[("in/a.b.jpg", b"not the key's own picture"), ("in/a.JPG", picture(200, kind="JPEG"))],
            *[("in/a.txt", b"of the text"), ("in/a.json", both)],
            *[("in/b.json", both), ("in/b.webp", picture(100, kind="WEBP"))],
        ],
    )
    data = ShardedPictures(tmp_path / "0.tar")
    assert [data.caption(index) for index in range(2)] == ["of the text", "of the json"]
    assert abs(float(data[0].image[0].mean()) * 255 - 200) < 4
    assert abs(float(data[1].image[0].mean()) * 255 - 100) < 4
    write(tmp_path / "0.tar", [("a.png", picture(1)), ("a.json", b'{"text": "mine"}')])
    assert ShardedPictures(tmp_path / "0.tar", caption_key="text").caption(0) == "mine"


def test_a_shard_cut_anywhere_is_named_and_its_whole_samples_are_all_that_is_used(tmp_path):
    files = rows(0, 3)
    whole = write(tmp_path / "whole.tar", files).read_bytes()
    blocks = [512 + -(-len(content) // 512) * 512 for _, content in files]
    ends = [sum(blocks[: 2 * n + 2]) for n in range(3)]  # where each sample is complete
    cut = tmp_path / "cut.tar"
    for length in [0, 1, 300, 511, 512, 513, *range(600, ends[-1] + 512, 97), *ends]:
        cut.write_bytes(whole[:length])
        complete = sum(end <= length or end - 512 + len(b"picture 0") <= length for end in ends)
        with pytest.raises(
            UserError, match=rf"cut\.tar is cut short .*: it has {complete} whole samples; download"
        ):
            ShardedPictures(cut)
        if complete:
            with pytest.warns(
                UserWarning, match=rf"cut\.tar is cut short.* has {complete} whole samples, and these"
            ):
                data = ShardedPictures(cut, allow_incomplete=True)
            data.validate()
            assert [data.caption(row) for row in range(len(data))] == [
                f"picture {n}" for n in range(complete)
            ]


def test_a_shard_damaged_in_the_middle_is_not_taken_for_a_short_one(tmp_path):
    path = write(tmp_path / "0.tar", rows(0, 3))
    content = bytearray(path.read_bytes())
    third = 2 * (512 + 512 + 512 + 512)
    content[third : third + 100] = b"x" * 100  # a header
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"cut short or damaged at byte {third}: it has 2 whole samples"):
        ShardedPictures(path)


def test_what_is_no_tar_file_is_named(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"no tar file" * 100)
    with pytest.raises(UserError, match=r"0\.tar is no uncompressed tar file"):
        ShardedPictures(tmp_path / "0.tar")


def test_samples_without_a_caption_are_counted_and_skipped_only_if_asked(tmp_path):
    files = rows(0, 2)
    write(tmp_path / "0.tar", files)
    bare = [("x.png", picture(7)), ("y.png", picture(8)), ("y.json", b'{"caption": null}')]
    write(tmp_path / "1.tar", [*bare, *rows(2, 1)])
    with pytest.raises(
        UserError, match=r"2 of 5 samples have no caption, first 'x' of .*1\.tar; add a \.txt"
    ):
        ShardedPictures(tmp_path)
    with pytest.warns(UserWarning, match=r"2 samples have no caption and were left out, first 'x' of"):
        data = ShardedPictures(tmp_path, skip_without_caption=True)
    assert data.skipped == 2
    assert [sample.prompt for sample in data] == ["picture 0", "picture 1", "picture 2"]


def test_captions_without_a_picture_are_passed_over_with_a_word(tmp_path):
    write(tmp_path / "0.tar", [("a.txt", b"a"), *rows(0, 1)])
    with pytest.warns(UserWarning, match=r"1 samples have no picture and were left out, first 'a' of"):
        assert len(ShardedPictures(tmp_path / "0.tar")) == 1
    write(tmp_path / "0.tar", [("a.txt", b"a"), ("b.npy", b"b")])
    with pytest.raises(UserError, match=r"0\.tar hold no picture .* with a caption"):
        ShardedPictures(tmp_path / "0.tar")


def test_a_picture_that_cannot_be_read_is_named_by_key_and_shard(tmp_path):
    whole = picture(9, kind="JPEG", size=(64, 64))
    for broken in (b"not a picture", whole[: len(whole) // 2]):
        write(tmp_path / "0.tar", [*rows(0, 1), ("broken.jpg", broken), ("broken.txt", b"a")])
        data = ShardedPictures(tmp_path / "0.tar")
        assert data[0].prompt == "picture 0"
        for check in (data.validate, lambda data=data: data[1]):
            with pytest.raises(UserError, match=r"cannot read the image 'broken' of .*0\.tar: "):
                check()


def test_a_caption_that_is_not_text_is_named(tmp_path):
    write(tmp_path / "0.tar", [("k.png", picture(9)), ("k.txt", b"\xff\xfe\x00")])
    with pytest.raises(UserError, match=r"the caption of 'k' of .*0\.tar is not text"):
        ShardedPictures(tmp_path / "0.tar").validate()
    write(tmp_path / "0.tar", [("k.png", picture(9)), ("k.json", b'{"caption": ["a"]}')])
    with pytest.raises(UserError, match=r"the caption of 'k' of .*0\.tar is not text: `caption` holds list"):
        ShardedPictures(tmp_path / "0.tar")


def test_two_files_of_one_name_would_hide_each_other(tmp_path):
    write(tmp_path / "0.tar", [*rows(0, 1), *rows(0, 1)])
    with pytest.raises(UserError, match=r"0\.tar holds 0000\.png twice"):
        ShardedPictures(tmp_path / "0.tar")


def test_several_sizes_need_a_resolution(tmp_path):
    write(tmp_path / "0.tar", [*rows(0, 1), ("w.png", picture(1, size=(8, 16))), ("w.txt", b"wide")])
    data = ShardedPictures(tmp_path)
    with pytest.raises(UserError, match=r"'0000' of .* has \(8, 8\) px and 'w' of .* has \(8, 16\) px; set"):
        data.require_one_size()
    data.at(8).require_one_size()
    assert collate([data.at(8)[0], data.at(8)[1]]).images.shape == (2, 3, 8, 8)


def test_a_shard_that_shrinks_later_is_named(tmp_path):
    path = write(tmp_path / "0.tar", rows(0, 2))
    data = ShardedPictures(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"0\.tar became shorter"):
        _ = data[1]


def test_whole_shards_give_no_warning(tmp_path):
    write(tmp_path / "0.tar", rows(0, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(ShardedPictures(tmp_path)) == 2
