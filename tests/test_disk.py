from __future__ import annotations

import shutil
from collections import namedtuple

import pytest

from unifl.disk import require_free_space
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
