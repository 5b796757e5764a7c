"""Planned figures in docs and recipes are those of the committed plans."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from unifl.assembly.forecast import plan_recipe

ROOT = Path(__file__).parents[2]
FILE = ROOT / "benchmarks" / "results" / "plan" / "memory.json"
RECIPES = sorted(
    path.stem for path in (ROOT / "recipes").glob("sd*_*.yaml") if not path.stem.startswith("sd3_")
)  # of which no shapes are written

pytestmark = pytest.mark.skipif(not FILE.exists(), reason="no benchmarks in this copy")


def _found():
    return json.loads(FILE.read_text())


def _rows(page, *, columns):
    lines = re.findall(r"^\| (.*) \|$", (ROOT / "docs" / page).read_text(), flags=re.M)
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    return {row[0].strip("`"): row[1:] for row in cells if len(row) == columns}


def test_every_row_of_the_page_is_a_plan():
    rows = _rows("sdxl-24gb.md", columns=8)
    shown = {name: [float(cell) for cell in cells] for name, cells in rows.items() if cells[0][0].isdigit()}
    found = _found()["page"]
    assert set(shown) == set(found)
    for name, entry in found.items():
        memory, kept = entry["memory"], entry["activations"]
        own = memory["weights, LoRA"] + memory["optimizers"]
        step = memory["gradients and activations"]
        decoder = kept.get("decoder", 0)
        judged = sum(kept.values()) - kept["denoiser"] - decoder
        sizes = [entry["total"] - own - step, own, step, kept["denoiser"], decoder, judged]
        assert shown[name] == pytest.approx([size / 1e9 for size in (*sizes, entry["total"])], abs=0.051)
        assert entry["total"] == sum(memory.values())


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_says_what_its_plan_says(name):
    planned = _found()["recipes"][name]["total"] / 1e9
    head = (ROOT / "recipes" / f"{name}.yaml").read_text()
    (told,) = re.findall(r"^# Cost:  (\d+) GB per process by the plan", head, flags=re.M)
    assert int(told) == pytest.approx(planned, abs=0.51)
    assert _rows("recipes.md", columns=5)[name][-1] == f"{told} GB"


def test_the_list_of_recipes_is_complete():
    text = (ROOT / "docs" / "recipes.md").read_text()
    assert all(f"`{path.stem}`" in text for path in (ROOT / "recipes").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15_refl_lora", "sdxl_refl_lora"])
def test_the_committed_plans_are_those_of_today(name):
    found = plan_recipe(name, ["model.device=cuda"]).plan
    assert found.total_memory == pytest.approx(_found()["recipes"][name]["total"], rel=0.02)
