"""`unifl reward train`, and what it leaves is opened by the other commands."""

from __future__ import annotations

import json
import shutil

import numpy as np
from PIL import Image

from preference_files import write_jsonl

QUICK = ["fit.steps=8", "fit.batch_size=4", "fit.evaluate_every=4", "fit.held_out=0.3", "resolution=16"]


def _pairs(folder):
    rng, rows = np.random.default_rng(0), []
    folder.mkdir()
    for number in range(20):
        for side, level in (("a", 200), ("b", 60)):
            pixels = rng.normal(level, 10, (16, 16, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}{side}.png")
        rows.append({"prompt": f"p{number // 2}", "chosen": f"{number}a.png", "rejected": f"{number}b.png"})
    write_jsonl(folder / "metadata.jsonl", rows)


def test_a_reward_is_trained_scored_with_and_evaluated(workspace, unifl):
    _pairs(workspace / "pairs")
    done = unifl("reward", "train", "pairs", "--out", "mine", "--vote", "--quiet", "voting.models=2", *QUICK)
    assert done.exit_code == 0, done.output
    assert "the reward model is in mine" in done.output and "ordered as people did" in done.output
    assert json.loads((workspace / "mine/reward.json").read_text())["found"]["voters"] == 2
    found = unifl("reward", "eval", "mine", "pairs", "--resolution", "16", "--json", "found.json")
    assert found.exit_code == 0 and json.loads((workspace / "found.json").read_text())["pairs"] == 20
    assert "was trained on pairs, so that its accuracy there flatters" in " ".join(found.output.split())
    shutil.copytree(workspace / "pairs", workspace / "others")
    others = unifl("reward", "eval", "mine", "others", "--resolution", "16")
    assert others.exit_code == 0 and "flatters" not in others.output
    blocked = unifl("reward", "eval", "mine", "others", "--json", "found.json/x.json")
    assert blocked.exit_code == 2 and "cannot write" in blocked.output and "pictures" not in blocked.output
    drawn = unifl("generate", "tiny", "a dog", "--steps", "1", "--out", "drawn")
    assert drawn.exit_code == 0
    scored = unifl("score", "drawn", "mine")
    assert scored.exit_code == 0, scored.output
    again = unifl("reward", "train", "pairs", "--out", "mine", *QUICK)
    assert again.exit_code == 2 and "whose training is complete" in " ".join(again.output.split())


def test_settings_come_from_a_file_and_mistakes_are_one_line(workspace, unifl):
    _pairs(workspace / "pairs")
    (workspace / "reward.yaml").write_text("fit:\n  steps: 0\n")
    for arguments, message in (
        (["--config", "reward.yaml"], "must be at least 1"),
        (["network.backbon=clip"], "backbon"),
        (["network.backbone=clip"], "needs `base`"),
        (["fit.held_out=0.0"], "cannot keep back a share"),
        (["--out", "pairs/metadata.jsonl"], "is a file; name a folder"),
    ):
        result = unifl("reward", "train", "pairs", "--out", "new", *arguments)
        assert result.exit_code == 2 and message in " ".join(result.output.split()), result.output
        assert "step [" not in result.output, "no progress is shown of what did not begin"
