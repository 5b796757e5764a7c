"""The whole loop in small: pictures, votes in the real page, a reward, a model, a comparison."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unifl.data.preferences import PreferenceSet, read_preferences
from unifl.world.annotator import overall
from unifl.world.assets import load_judge

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PROMPTS = 15  # of which two are held out: one ends the fit, the other measures

pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="no benchmarks here")


def run(folder, out):
    command = [sys.executable, "closed_loop.py", str(folder), "--out", str(out), "--prompts", str(PROMPTS)]
    command += [
        "--steps",
        "2",
        "--fit-steps",
        "20",
        "--num-prompts",
        "4",
        "--judge",
        "world:judges/validation",
        "--noise",
        "0",
    ]
    return subprocess.run(
        command,
        cwd=BENCHMARKS,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.browser
def test_the_loop_closes(tmp_path):
    done = run(tmp_path / "loop", tmp_path / "found.json")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["judgements"] == 3 * PROMPTS
    assert found["comparison"]["n"] == 4
    assert (tmp_path / "loop" / "aligned" / "model").is_dir()

    # what was pressed is what the annotator says of these pictures, which reached it through the page
    pairs = PreferenceSet(read_preferences(str(tmp_path / "loop" / "arena" / "votes.jsonl")), resolution=64)
    judged = [pairs[row] for row in range(len(pairs))]
    judge, prompts = load_judge("annotator"), [pair.prompt for pair in judged]
    won, lost = (
        overall(judge(torch.stack([getattr(pair, side) for pair in judged]), prompts))
        for side in ("win", "lose")
    )
    tie = torch.tensor([pair.tie for pair in judged])
    assert len(judged) == 3 * PROMPTS and tie.sum() < PROMPTS
    assert (won - lost)[~tie].min() > 0.0099 and ((won - lost)[tie].abs() < 0.0101).all()

    again = run(tmp_path / "loop", tmp_path / "again.json")
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout.count("$ unifl") == 1  # the comparison alone; all that went before is there
    assert json.loads((tmp_path / "again.json").read_text()) == found


def test_the_page_says_what_was_measured():
    found = json.loads((BENCHMARKS / "results" / "closed_loop.json").read_text())
    page = " ".join((BENCHMARKS.parent / "docs" / "closed-loop.md").read_text().split())
    accuracy, compared = (
        [round(100 * one[end], digits) for end in (value, "low", "high")]
        for one, value, digits in ((found["reward_accuracy"], "value", None), (found["comparison"], "win", 1))
    )
    assert found["judgements"] <= 2000 and f"After {found['judgements']:,} judgements" in page
    assert "orders {} % [{}, {}] of the answers".format(*accuracy) in page
    assert "the aligned model in {} % [{}, {}] of 1,000 pairs on 500".format(*compared) in page
    assert found["comparison"]["judge"] == "gold" and found["comparison"]["low"] > 0.5
