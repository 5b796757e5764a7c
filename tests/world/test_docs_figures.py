"""The tables of docs/world.md say what was measured: its figures are those of the packaged JSON files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from unifl.world.assets import ASSETS
from unifl.world.scenes import QUALITIES, STYLES

PAGE = Path(__file__).parents[2] / "docs" / "world.md"

pytestmark = pytest.mark.skipif(
    not (ASSETS / "trust.json").exists() or not PAGE.exists(), reason="no weights or no docs in this copy"
)

JUDGE_ROWS = {
    "attributes and relations read right": "attribute_accuracy",
    "style read right": "style_accuracy",
    "attributes, re-encoded": "attribute_accuracy_reencoded",
    "mean quality after noise of 0.1": "quality_change_noise_0.1",
    "mean quality after a blur of 1.5 px": "quality_change_blur_1.5px",
    "mean quality after a gain of 1.5": "quality_change_gain_1.5",
    **{
        f"rank correlation, {axis}": f"rank_correlation_{axis}"
        for axis in ("color", "layout", "lighting", "detail")
    },
    **{
        f"cost of re-encoding, {axis}": f"reencoding_cost_{axis}"
        for axis in ("color", "layout", "lighting", "detail")
    },
}


def _row(name: str) -> list[str]:
    match = re.search(rf"^\| {re.escape(name)} \|(.*)\|$", PAGE.read_text(), flags=re.M)
    assert match, f"docs/world.md has no row {name!r}"
    return [cell.strip() for cell in match[1].split("|")]


@pytest.mark.parametrize(("name", "key"), JUDGE_ROWS.items())
def test_figures_of_the_judges(name, key):
    trust = json.loads((ASSETS / "trust.json").read_text())
    shown = [float(cell) for cell in _row(name)[:3]]
    assert shown == pytest.approx([trust[j][key] for j in ("annotator", "validation", "gold")], abs=6e-4)


@pytest.mark.parametrize("reward", ["color", "layout", "lighting", "detail", "global"])
def test_figures_of_the_rewards(reward):
    climbed = json.loads((ASSETS / "trust.json").read_text())["pixel_ascent"][reward]
    rise, *gold = [float(cell) for cell in _row(reward)]
    assert rise == pytest.approx(climbed["reward_change"], abs=6e-2)
    assert gold == pytest.approx([climbed["gold_change"], climbed["gold_quality_change"]], abs=6e-4)
    accuracy = json.loads((ASSETS / "rewards" / "levels.json").read_text())[reward]["accuracy"]
    assert f"{reward} {accuracy:.2f}" in PAGE.read_text()


@pytest.mark.parametrize("steps", ["4", "20"])
def test_figures_of_the_base_model(steps):
    best = json.loads((ASSETS / "baselines.json").read_text())[steps]["best"]
    guidance, spacing, overall, right = _row(steps)
    assert (float(guidance), spacing) == (best["guidance"], best["spacing"])
    assert [float(overall), float(right)] == pytest.approx([best["overall"], best["alignment"]], abs=6e-3)


FAIR_ROWS = {
    **{
        f"{word}, fully right": f"right_{n}"
        for n, word in enumerate(("one object", "two objects", "three objects"), 1)
    },
    **{f"{style} style, recognised": f"style_{style}" for style in STYLES},
    **{f"{axis}, mean": f"mean_{axis}" for axis in QUALITIES},
    **{f"{axis}, standard deviation": f"std_{axis}" for axis in QUALITIES},
    "diversity, share of rendered scenes": "diversity_share",
}


@pytest.mark.parametrize(("name", "key"), FAIR_ROWS.items())
def test_figures_of_the_fair_start(name, key):
    numbers = json.loads((ASSETS / "fair_start.json").read_text())
    assert float(_row(name)[0]) == pytest.approx(numbers[key], abs=6e-3)
