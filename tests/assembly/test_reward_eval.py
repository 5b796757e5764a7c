"""A reward against the pairs that people compared."""

from __future__ import annotations

import json

import pytest
import torch

from preference_files import comparison, write_parquet, write_pictures
from unifl.assembly.reward_eval import evaluate_reward
from unifl.data.preferences import Filters, PreferenceSet, read_preferences, select
from unifl.errors import FeedbackFailed, UserError
from unifl.feedback import FunctionFeedback, as_feedback

PAIRS = [
    ("cat", "a", "b", 1.0),
    ("cat", "b", "a", 1.0),
    ("cat", "a", "c", 1.0),
    ("dog", "c", "a", 1.0),
    ("dog", "b", "c", 0.5),
]


@pytest.fixture
def pairs(tmp_path):
    write_parquet(tmp_path / "pairs" / "pairs.parquet", [comparison(*row) for row in PAIRS])
    index, _ = select(read_preferences(tmp_path / "pairs"), Filters(), ties="keep")
    return PreferenceSet(index, resolution=8)


def redness(images, prompts):
    """a is red, b green, c blue."""
    return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2)) / 2


def test_every_picture_is_scored_once_per_prompt(pairs):
    asked = []

    def count(images, prompts):
        asked.extend(prompts)
        return redness(images, prompts)

    found = evaluate_reward(as_feedback(count), pairs, batch_size=2)
    assert sorted(asked) == ["cat"] * 3 + ["dog"] * 3
    # right: a over b, a over c; wrong: b over a, c over a
    assert (found.decided.value, found.pairs, found.ties, found.decided.n) == (0.5, 4, 1, 2)
    assert sum(one.pairs for one in found.calibration) == 4


def test_without_a_resolution_pictures_go_one_at_a_time(pairs):
    sizes = []

    def look(images, prompts):
        sizes.append(tuple(images.shape))
        return redness(images, prompts)

    alone = evaluate_reward(as_feedback(look), pairs.at(None), batch_size=4)
    assert set(sizes) == {(1, 3, 16, 16)}
    assert alone.decided == evaluate_reward(as_feedback(redness), pairs).decided


def test_rewards_that_cannot_judge_are_refused(pairs):
    latent = FunctionFeedback(function=redness, name="latent", space="latent")
    with pytest.raises(UserError, match="latent reads latents"):
        evaluate_reward(latent, pairs)
    broken = as_feedback(lambda images, prompts: torch.zeros(len(images) + 1), name="broken")
    with pytest.raises(FeedbackFailed, match="'broken' returned shape"):
        evaluate_reward(broken, pairs)


def test_from_the_command_line(pairs, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from unifl.cli import app

    monkeypatch.setenv("COLUMNS", "200")
    arguments = [
        "colourfulness",
        str(tmp_path / "pairs"),
        "--resolution",
        "8",
        "--json",
        str(tmp_path / "found.json"),
    ]
    result = CliRunner().invoke(app, ["reward", "eval", *arguments])
    assert result.exit_code == 0, result.output
    assert "ordered as people did" in result.output and "with 1 ties" in result.output
    assert json.loads((tmp_path / "found.json").read_text())["pairs"] == 4


def test_rankings_whose_pictures_lie_elsewhere(tmp_path):
    """As ImageReward's data/test.json, whose pictures are in data/test_images."""
    from typer.testing import CliRunner

    from unifl.cli import app

    write_pictures(tmp_path / "images")
    row = {"prompt": "cat", "generations": ["a.png", "b.png", "c.png"], "ranking": [1, 2, 2]}
    (tmp_path / "test.json").write_text(json.dumps([row]))
    arguments = ["--images", str(tmp_path / "images"), "--json", str(tmp_path / "found.json")]
    command = ["reward", "eval", "colourfulness", str(tmp_path / "test.json"), *arguments]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "found.json").read_text())["pairs"] == 2
