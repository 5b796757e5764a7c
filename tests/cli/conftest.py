"""The command line in a workspace with a tiny model."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "assembly"))


@pytest.fixture(scope="session")
def finished_workspace(tmp_path_factory):
    from assembly_toy import make_workspace

    return make_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="session")
def trained_workspace(finished_workspace, tmp_path_factory):
    """The workspace with a finished run in runs/refl."""
    from unifl.assembly import load_recipe, run_recipe

    folder = tmp_path_factory.mktemp("trained") / "work"
    shutil.copytree(finished_workspace, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_recipe(load_recipe("refl.yaml"), progress=False)
    return folder


@pytest.fixture
def workspace(finished_workspace, tmp_path, monkeypatch):
    """A copy of its own for each test, which is the working folder meanwhile."""
    shutil.copytree(finished_workspace, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def unifl(monkeypatch):
    """Call the command line: `unifl("train", "refl.yaml")` gives exit code, output and the error line."""
    from typer.testing import CliRunner

    from unifl.cli import app

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def call(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return call
