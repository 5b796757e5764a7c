"""`unifl audit`."""

from __future__ import annotations

import shutil

import pytest


@pytest.fixture
def audited(trained_workspace, tmp_path, monkeypatch):
    shutil.copytree(trained_workspace, tmp_path / "audited")
    monkeypatch.chdir(tmp_path / "audited")
    return tmp_path / "audited"


def test_a_run_is_audited_from_the_command_line(audited, unifl):
    options = (
        "--judge",
        "mine=assembly_toy:counted",
        "--judge",
        "assembly_toy:RewardNet",
        "--prompts",
        "prompts.txt",
    )
    result = unifl("audit", "runs/refl", *options, "--seeds", "1", "--num-prompts", "3")
    assert result.exit_code == 0, result.output
    assert "sound: Keep " in result.output or "over-optimised: Keep " in result.output
    assert "the page is runs/refl/audit/audit.html" in result.output
    page = (audited / "runs/refl/audit/audit.html").read_text()
    assert "held out/mine" in page and "held out/RewardNet" in page


def test_wrong_use_is_one_line(audited, unifl):
    for arguments, message in (
        (["nothing"], "there is no folder nothing"),
        (["runs/refl"], "names no judge that is held out"),
        (["runs/refl", "--judge", "a=x:y", "--judge", "a=x:z"], "two are called 'a'"),
        (["runs/refl", "--judge", "assembly_toy:red", "--prompts", "prompts.txt"], "which trained"),
        (["pictures"], "is not the folder of a run"),
    ):
        result = unifl("audit", *arguments)
        assert result.exit_code == 2 and message in " ".join(result.output.split()), result.output
