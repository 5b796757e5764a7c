"""`unifl audit`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "feedback" / "scorers"))

from tiny_scorers import clip, open_clip_state


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


def test_a_published_scorer_judges_from_files_alone(audited, unifl):
    model = clip(audited / "clip-h")
    torch.save({"state_dict": open_clip_state(model), "epoch": 3}, "HPS.pt")
    files = ("--weights", "hps=HPS.pt", "--base", "hps=clip-h")
    asked = ("--judge", "hps=hpsv2.1", "--prompts", "prompts.txt", "--seeds", "1", "--num-prompts", "3")
    result = unifl("audit", "runs/refl", *asked, *files)
    assert result.exit_code == 0, result.output
    record = json.loads((audited / "runs/refl/audit/audit.json").read_text())
    assert "held_out/hps" in record["checkpoints"][0]["scores"]


def test_wrong_use_is_one_line(audited, unifl):
    for arguments, message in (
        (["nothing"], "there is no folder nothing"),
        (["runs/refl"], "names no judge that is held out"),
        (["runs/refl", "--judge", "a=x:y", "--judge", "a=x:z"], "two are called 'a'"),
        (["runs/refl", "--judge", "pickscore", "--weights", "hps=x"], "gives no scorer of pickscore a path"),
        (["runs/refl", "--weights", "hps=x"], "'hps=x' names a file of a scorer, and none was named"),
        (["runs/refl", "--judge", "hpsv3", "--question", "hpsv3=gone.txt"], "gone.txt cannot be read"),
        (["runs/refl", "--judge", "assembly_toy:red", "--prompts", "prompts.txt"], "which trained"),
        (["pictures"], "is not the folder of a run"),
    ):
        result = unifl("audit", *arguments)
        assert result.exit_code == 2 and message in " ".join(result.output.split()), result.output
