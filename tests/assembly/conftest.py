"""Makes `assembly_toy` importable, and a workspace that tests share and do not write to."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def finished_workspace(tmp_path_factory):
    from assembly_toy import make_workspace

    return make_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture
def workspace(finished_workspace, tmp_path, monkeypatch):
    """A copy of its own for each test, which is the working folder meanwhile."""
    shutil.copytree(finished_workspace, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"
