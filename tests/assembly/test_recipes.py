from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from assembly_toy import refl_recipe

from unifl import config as configs
from unifl.assembly.recipe import Recipe, find_recipe, load_recipe, recipes_folder
from unifl.assembly.run import run_recipe
from unifl.errors import UserError

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
WORLD = Path(__file__).parents[2] / "src/unifl/world/assets/pipeline"
NEEDS = {"structure": "masks", "layout": "semantic", "style": "image"}


def test_the_recipes_are_found_by_name():
    assert recipes_folder() == RECIPES[0].parent
    assert {path.stem for path in RECIPES} >= {
        "unifl_stage1",
        "unifl_stage2",
        "pefl_structure",
        "pefl_style",
        "pefl_layout",
        "aesthetic",
        "adversarial",
        "refl",
        "finetune",
    }
    assert find_recipe("refl", recipes_folder()) == find_recipe("refl.yaml", recipes_folder())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_recipe_says_what_it_is_and_where_it_writes(path):
    head = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    for word in ("# Paper: ", "arXiv", "# Run:   unifl train", "# Cost:  "):
        assert word in head
    assert f"unifl train {path.stem}" in head
    recipe = load_recipe(path)
    assert recipe.output_dir == f"runs/{path.stem}"
    assert configs.load(configs.dump(recipe), Recipe).method.kind == recipe.method.kind


def _on_the_tiny_model(path, folder):
    """The recipe with toy parts in place of the packaged ones, and nothing else changed but the sizes."""
    raw = configs.load(path, dict)
    raw["model"] = {"pretrained_model_name_or_path": "tiny", "train": raw["model"]["train"] | {"rank": 2}}
    raw["output_dir"] = str(folder)
    raw["rewards"] = dict.fromkeys(raw.get("rewards", {}), "assembly_toy:RewardNet")
    raw["critics"] = {
        name: {"path": "assembly_toy:BlurCritic", "kwargs": {"needs": [NEEDS[name]]}}
        for name in raw.get("critics", {})
    }
    if "discriminator" in raw:
        raw["discriminator"] = "assembly_toy:RewardNet"
    if "levels" in raw:
        (folder.parent / "levels.json").write_text('{"color": 1, "layout": 1, "lighting": 1, "detail": 1}')
        raw["levels"] = str(folder.parent / "levels.json")
    raw["data"] = {
        name: f"assembly_toy:{'PROMPTS' if name == 'prompts' else 'SAMPLES'}" for name in raw["data"]
    }
    raw["training"] |= {"max_train_steps": 1, "train_batch_size": 2, "lr_warmup_steps": 0}
    raw["validation"] = None
    return load_recipe(raw)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_recipe_takes_a_step_on_the_tiny_model(path, workspace):
    result = run_recipe(_on_the_tiny_model(path, workspace / "run"), progress=False)
    assert result.steps == 1
    assert result.last is not None
    assert all(math.isfinite(value) for value in result.last.losses.values())
    # a bounded adversarial loss is 0 where the toy's picture already scores like the real one
    assert max(result.last.grad_norms.values()) > 0
    assert (workspace / "run/model/pytorch_lora_weights.safetensors").exists()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_recipe_names_things_that_the_world_has(path):
    text = path.read_text()
    has = {
        "critics": set(NEEDS),
        "rewards": {"color", "layout", "lighting", "detail", "global"},
        "data": {"prompts", "scenes", "curated", "pipeline"},
    }
    named = {family: set(re.findall(rf"world:{family}/(\w+)", text)) for family in ("critics", "rewards")}
    named["data"] = set(re.findall(r"^  \w+: world:(\w+)$", text, flags=re.M))
    assert all(named[family] <= has[family] for family in has)


@pytest.mark.skipif(not WORLD.is_dir(), reason="the weights of the embedded world are not in this checkout")
def test_a_recipe_of_the_world_takes_a_step(workspace):
    changes = [f"output_dir={workspace / 'run'}", "training.max_train_steps=1", "training.train_batch_size=2"]
    recipe = load_recipe("unifl_stage1", [*changes, "validation.num_prompts=4"])
    result = run_recipe(recipe, progress=False)
    assert result.steps == 1
    levels = result.recipe.method.aesthetic.levels
    assert set(levels) == {"color", "layout", "lighting", "detail"}
    assert all(math.isfinite(level) for level in levels.values())
    assert "validation/overall" in (workspace / "run/metrics.jsonl").read_text()


def test_overrides_reach_every_depth_and_leave_the_mapping_alone():
    raw = refl_recipe()
    recipe = load_recipe(
        raw, ["model.train.rank=7", "method.anchors.distance_weight=0.5", "rewards.blue=a:b"]
    )
    assert recipe.model.train.rank == 7
    assert recipe.method.anchors.distance_weight == 0.5
    assert list(recipe.rewards) == ["red", "blue"]
    assert raw == refl_recipe()


def test_levels_that_are_not_there_are_an_error():
    method = {"kind": "unifl", "aesthetic": {"weight": 1.0}}
    with pytest.raises(UserError, match=r"aesthetic\.levels is empty; give each reward its level"):
        load_recipe(refl_recipe(method=method))


def test_a_levels_file_that_is_not_there_is_told_before_a_model_is_loaded(workspace, monkeypatch):
    from unifl.assembly import build

    monkeypatch.setattr(build, "_generator", lambda *_: pytest.fail("a model was loaded"))
    method = {"kind": "unifl", "aesthetic": {"weight": 1.0, "num_steps": 3, "stop": [0, 1]}}
    recipe = load_recipe(refl_recipe(method=method, levels="levles.json"))
    with pytest.raises(
        UserError, match=r"no hinge levels at levles\.json \(there is no such file or folder\)"
    ):
        run_recipe(recipe)


def test_levels_come_from_preferred_pictures_of_a_folder(workspace):
    import json

    from assembly_toy import SAMPLES, red

    rows = [
        {"prompt": "a", "chosen": f"{i}.png", "rejected": "0.png", "axis": "red"} for i in range(len(SAMPLES))
    ]
    (workspace / "pictures/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    terms = {"weight": 1.0, "num_steps": 3, "stop": [0, 1]}
    recipe = load_recipe(refl_recipe(method={"kind": "unifl", "aesthetic": terms}, levels="pictures"))
    result = run_recipe(recipe, dry_run=True)
    expected = sum(float(red(sample.image[None], [""])) for sample in SAMPLES) / len(SAMPLES)
    assert result.recipe.method.aesthetic.levels["red"] == pytest.approx(expected, abs=2 / 255)
    assert "red" in configs.dump(result.recipe)
