"""docs/critics.md: its recipes can be read, and its figures are those that were counted."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from unifl.assembly.data_config import CocoConfig
from unifl.assembly.recipe import load_recipe

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "critics.md"
COUNTED = ROOT / "benchmarks" / "results" / "critic_memory.json"
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split("\n")[0])
def test_its_recipes_can_be_read(block):
    raw = yaml.safe_load(block)
    weights = dict.fromkeys(raw.get("critics", {"a": 1}), 1.0)
    raw.setdefault("method", {"kind": "unifl", "perceptual": {"weights": weights}})
    recipe = load_recipe(raw | {"output_dir": "runs/page", "model": {"pretrained_model_name_or_path": "any"}})
    assert all(hasattr(critic, "kind") for critic in recipe.critics.values())
    assert all(isinstance(source, CocoConfig) for source in recipe.data.values())


def test_its_figures_are_those_of_the_file():
    networks = json.loads(COUNTED.read_text())["networks"]
    rows = re.findall(
        r"^\| (.+?) \| (\d+) \| (\d+) MiB \| (\d+) MiB \| (\d+) MiB \|$", PAGE.read_text(), flags=re.M
    )
    assert {row[0] for row in rows} == set(networks)
    for name, side, *sizes in rows:
        counted = networks[name]
        assert int(side) == counted["side"]
        keys = ("stored", "stored_with_loss", "stored_with_checkpointing")
        assert [int(size) for size in sizes] == [round(counted[key] / 2**20) for key in keys]
        assert int(sizes[2]) < int(sizes[1]) / 20
    # the formula for VGG-16: 1392 bytes per pixel, and what normalising the picture stores
    vgg = networks["VGG-16 to relu4_3"]
    assert abs(vgg["stored"] / (1392 * vgg["side"] ** 2) - 1) < 0.02
