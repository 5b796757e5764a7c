from __future__ import annotations

import math
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from assembly_toy import refl_recipe

import unifl
from unifl import config as configs
from unifl.assembly.build import assemble
from unifl.assembly.forecast import plan_recipe
from unifl.assembly.recipe import Recipe, find_recipe, load_recipe, recipes_folder
from unifl.assembly.run import run_recipe
from unifl.data.users import UserEmbeddings
from unifl.errors import UserError
from unifl.feedback import LatentProxyConfig, make_proxy, save_proxy
from unifl.testing import tiny_folder

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
OF_A_FAMILY = [path for path in RECIPES if path.stem.startswith(("sd15_", "sd21_", "sd3_", "sdxl_"))]
_PLANNED = [path for path in OF_A_FAMILY if not path.stem.startswith("sd3_")]
_OF_THE_WORLD = [pytest.param(path, id=path.stem) for path in RECIPES if path not in OF_A_FAMILY]
WORLD = Path(__file__).parents[2] / "src/unifl/world/assets/pipeline"
ROWS = {"prompts": "PROMPTS", "pairs": "PAIRS", "likes": "JUDGED", "scored": "JUDGED"}
FILES = {
    "lora": "pytorch_lora_weights.safetensors",
    "full": "unet/diffusion_pytorch_model.safetensors",
    "user": "ip_adapter.safetensors",
}
NEEDS = {"structure": "masks", "layout": "semantic", "style": "image"}


def _slow_but(*names, of=OF_A_FAMILY):
    """The recipes of families, slow but for some: in the default suite each family and kind of training is there."""
    return [
        pytest.param(path, id=path.stem, marks=() if path.stem in names else pytest.mark.slow) for path in of
    ]


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
    recipe = load_recipe(path, _toy_parts(path))
    assert recipe.output_dir == f"runs/{path.stem}"
    assert configs.load(configs.dump(recipe), Recipe).method.kind == recipe.method.kind


def _toy_parts(path):
    """Overrides that put toys in place of feedback and data."""
    raw = configs.load(path, dict)
    changes = [f"rewards.{name}=assembly_toy:RewardNet" for name in raw.get("rewards", {})]
    changes += [
        f"critics.{name}={{path: assembly_toy:BlurCritic, kwargs: {{needs: [{NEEDS[name]}]}}}}"
        for name in raw.get("critics", {})
    ]
    changes += [f"data.{name}=assembly_toy:{ROWS.get(name, 'SAMPLES')}" for name in raw["data"]]
    changes += [f"{name}=assembly_toy:RewardNet" for name in raw.keys() & {"discriminator", "expert"}]
    return changes


def _family(path):
    return path.stem.partition("_")[0]


def _skip_without_8_bits(path):
    if "adamw8bit" in path.read_text():
        pytest.importorskip("bitsandbytes")


def on_the_tiny_model(path, folder):
    """Overrides that put a tiny model and toys in place of what a recipe names, and change nothing else but sizes."""
    raw = configs.load(path, dict)
    changes = _toy_parts(path)
    family = _family(path) if path in OF_A_FAMILY else "sd15"
    tiny = folder.parent / {"sd15": "tiny", "sd21": "tiny_21", "sd3": "tiny_3", "sdxl": "tiny_xl"}[family]
    if not tiny.exists():
        tiny_folder(family, tiny)
    changes += [f"output_dir={folder}", f"model.pretrained_model_name_or_path={tiny}", "validation=null"]
    changes += ["model.lora=null", "model.resolution=null", "model.student=null"]
    if raw["model"]["train"]["kind"] == "lora":
        changes.append("model.train.rank=2")
    if "levels" in raw:
        (folder.parent / "levels.json").write_text('{"color": 1, "layout": 1, "lighting": 1, "detail": 1}')
        changes.append(f"levels={folder.parent / 'levels.json'}")
    if "users" in raw:
        UserEmbeddings({"ada": torch.ones(2)}).save(folder.parent / "users.safetensors")
        changes += [f"users={folder.parent / 'users.safetensors'}", "model.train.embedding_dim=2"]
    if "proxy" in raw:
        shape = LatentProxyConfig(
            size=8, patch=2, width=32, depth=3, heads=2, embedding=32, text="hashed", text_depth=5
        )
        save_proxy(make_proxy(shape), folder.parent / "proxy")
        changes.append(f"proxy={folder.parent / 'proxy'}")
    training = {"max_train_steps": 1, "train_batch_size": 2, "gradient_accumulation_steps": 1}
    training["lr_warmup_steps"] = 0
    return changes + [f"training.{key}={value}" for key, value in training.items()]


@pytest.mark.parametrize(
    "path",
    [
        *_OF_THE_WORLD,
        *_slow_but(
            "sd15_unifl_stage1_lora",
            "sdxl_unifl_stage2_full",
            "sd21_rg_lcd_full",
            "sd15_ncp_dpo_lora",
            "sd15_kto_lora",
            "sdxl_pso_lora",
            "sd15_ppd_dpo",
            "sd3_flow_dpo_lora",
        ),
    ],
)
def test_each_recipe_takes_a_step_on_the_tiny_model(path, workspace):
    _skip_without_8_bits(path)
    recipe = load_recipe(path, on_the_tiny_model(path, workspace / "run"))
    result = run_recipe(recipe, progress=False)
    assert result.steps == 1
    assert result.last is not None
    assert all(math.isfinite(value) for value in result.last.losses.values())
    # a bounded adversarial loss is 0 where the toy's picture already scores like the real one
    assert max(result.last.grad_norms.values()) > 0
    assert (workspace / "run/model" / FILES[recipe.model.train.kind]).exists()


@pytest.mark.parametrize(
    "path", _slow_but("sdxl_unifl_stage2_lora", "sdxl_ncp_dpo_lora", "sd15_ppd_dpo", of=_PLANNED)
)
def test_each_recipe_of_a_family_is_planned_without_its_files(path, workspace):
    """Its critics and data stay as they are written: nothing of them is opened."""
    _skip_without_8_bits(path)
    tiny = tiny_folder(_family(path), workspace / "model")
    changes = [f"model.pretrained_model_name_or_path={tiny}", "model.resolution=32"]
    forecast = plan_recipe(path, changes)
    memory = forecast.plan.memory
    raw = configs.load(path, dict)
    kind = raw["model"]["train"]["kind"]
    assert ("weights, ema" in memory) == ("ema_decay" in raw["training"])
    assert ("weights, LoRA" in memory) == (kind == "lora")
    assert ("weights, user adapter" in memory) == (kind == "user")
    assert ("weights, discriminator" in memory) == ("stage2" in path.stem)
    if "rewards" in raw:
        assert memory["weights, rewards"] > 0
    assert {"denoiser", *raw.keys() & {"rewards"}} <= set(forecast.plan.activations)
    assert any("the latent proxy" in line for line in forecast.left_out) == ("proxy" in raw)
    critics = raw.get("critics", {})
    assert all(any(f"the critic {name} (" in line for line in forecast.left_out) for name in critics)


@pytest.mark.parametrize("path", OF_A_FAMILY, ids=lambda path: path.stem)
def test_a_recipe_without_its_files_names_the_overrides(path, workspace):
    raw = configs.load(path, dict)
    with pytest.raises(UserError, match=r"leaves \d place\(s\) open \(\?\?\?\)") as error:
        assemble(
            load_recipe(raw, [c for c in _toy_parts(path) if c.startswith("critics.")] + _plain_data(raw))
        )
    assert ("levels=..." in str(error.value)) == ("levels" in raw)
    assert all(f"data.{name}=..." in str(error.value) for name in raw["data"])
    assert all(f"{name}=..." in str(error.value) for name in raw.keys() & {"proxy", "expert", "users"})


def _plain_data(raw):
    return [f"data.{name}='???'" for name, entry in raw["data"].items() if isinstance(entry, dict)]


def test_a_critic_of_weight_0_is_not_opened_and_its_data_not_missed(workspace):
    (path,) = (path for path in OF_A_FAMILY if path.stem == "sd15_unifl_stage1_lora")
    changes = [c for c in on_the_tiny_model(path, workspace / "run") if not c.startswith("data.styles")]
    changes += ["method.perceptual.weights.style=0", "critics.style=no_such_module:Style"]
    built = assemble(load_recipe(path, changes))
    assert set(built.method.sources) == {"images", "prompts"}
    assert set(built.recipe.critics) == {"structure"} and "styles" not in built.recipe.data


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15_unifl_stage1_full", "sdxl_unifl_stage2_lora"])
def test_a_recipe_of_each_family_runs_on_two_processes(name, workspace):
    path = recipes_folder() / f"{name}.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "bf16", "--dynamo_backend", "no"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command += ["--main_process_port", str(port), "--module", "unifl.cli", "train", str(path)]
    command += on_the_tiny_model(path, workspace / "run")
    places = [str(Path(__file__).parent), str(Path(unifl.__file__).parents[1])]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": os.pathsep.join(places)}
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert result.returncode == 0, result.stderr
    assert "1 of 4 rows" in result.stdout  # two rows on each of two processes
    (line,) = (workspace / "run/metrics.jsonl").read_text().splitlines()
    assert '"step": 1' in line


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
