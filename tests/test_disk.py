from __future__ import annotations

import hashlib
import shutil
from collections import namedtuple

import numpy as np
import pytest

from unifl.disk import (
    claimed,
    content_sha256,
    file_sha256,
    read_arrays,
    require_free_space,
    require_writable,
    write_atomically,
)
from unifl.errors import UserError

Usage = namedtuple("Usage", "total used free")


def test_room_is_asked_of_the_nearest_folder_that_exists(tmp_path, monkeypatch):
    asked = []

    def usage(path):
        asked.append(path)
        return Usage(100, 60, 40)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    require_free_space(tmp_path / "a" / "b", 40)
    assert asked == [tmp_path]
    assert not (tmp_path / "a").exists()


def test_the_message_has_both_sizes_and_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(0, 0, 1_500_000))
    with pytest.raises(UserError, match=r"2\.3 GB are needed and 1\.5 MB are free.*checkpoints_total_limit"):
        require_free_space(tmp_path, 2_300_000_000)


def test_a_file_that_could_not_be_written_is_refused_beforehand(tmp_path):
    require_writable(tmp_path / "new" / "a.txt")
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(UserError, match="is a folder; name a file"):
        require_writable(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write .*file/a\.txt: .*write elsewhere"):
        require_writable(tmp_path / "file" / "a.txt")


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = write_atomically(tmp_path / "a.txt", b"old")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no room"):
        patch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no room")))
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    assert write_atomically(path, b"new").read_bytes() == b"new"


def test_content_is_that_of_a_file_or_of_all_files_of_a_folder(tmp_path):
    for name in ("a/one.json", "b/one.json", "c/two.json", "d/deep/one.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("{}")
    place = str(tmp_path / "a/one.json")
    assert content_sha256(place) == file_sha256(place) == hashlib.sha256(b"{}").hexdigest()
    folders = {name: content_sha256(tmp_path / name) for name in "abcd"}
    assert folders["a"] == folders["b"] and len(set(folders.values())) == 3
    for nothing in ("", "no such file", "x" * 9999, "a\0b", None, 3):
        assert content_sha256(nothing) is None


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_archive_is_one_kind_of_error_whatever_byte_is_wrong(tmp_path, save):
    path = tmp_path / "a.npz"
    save(path, a=np.arange(12.0), b=np.array("text"))
    whole = path.read_bytes()
    found = read_arrays(path)
    assert list(found) == ["a", "b"] and found["a"].sum() == 66 and list(read_arrays(path, "b")) == ["b"]
    refused = 0
    for place in range(len(whole)):
        for content in (whole[:place], whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]):
            path.write_bytes(content)
            try:
                read_arrays(path)
            except ValueError:
                refused += 1
    assert refused > 1.3 * len(whole)  # a cut always, and most altered bytes
    np.save(tmp_path / "single.npy", np.ones(3))
    for wrong in ("single.npy", "missing.npz"):
        with pytest.raises(ValueError):
            read_arrays(tmp_path / wrong)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="other"):
        read_arrays(path, "other")


# --- claimed -----------------------------------------------------------------------------------------------


def test_a_folder_belongs_to_one_process_at_a_time(tmp_path):
    folder = tmp_path / "new" / "run"
    refused = pytest.raises(
        UserError, match=r"another process works in .*run; wait for its end, stop it, or name"
    )
    with claimed(folder), refused, claimed(folder):
        raise AssertionError
    with claimed(folder):
        assert (folder / ".lock").is_file()
