from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline


def _metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_recipe_trains_and_its_lora_loads_in_plain_diffusers(workspace, unifl):
    result = unifl(
        "train", "refl.yaml", "validation={judge: assembly_toy:Reader, prompts: prompts.txt, every: 1}"
    )
    assert result.exit_code == 0, result.output
    assert result.output.index("Plan") < result.output.index("2 steps in")
    assert "unet forward+backward, samples per step" in result.output
    run = workspace / "runs" / "refl"
    rows = _metrics(run)
    assert [row["step"] for row in rows if "reward/red" in row] == [1, 2]
    looks = {row["step"]: row["validation/overall"] for row in rows if "validation/overall" in row}
    assert list(looks) == [0, 1, 2]
    assert looks[0] != looks[2], "the model that was judged is not the one that trains"
    assert "tiny" in (run / "config.yaml").read_text()
    assert "guidance_scale" in (run / "model" / "README.md").read_text()
    pipeline = StableDiffusionPipeline.from_pretrained("tiny", safety_checker=None)
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    pipeline.load_lora_weights(str(run / "model"))
    pipeline.fuse_lora()
    changed = pipeline.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q.weight
    assert not torch.equal(
        changed, before["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"]
    )


def test_the_same_command_goes_on_and_other_settings_are_refused(workspace, unifl):
    run = workspace / "runs" / "refl"
    assert unifl("train", "refl.yaml", "--quiet", "training.checkpointing_steps=1").exit_code == 0
    whole = {
        name: (run / name).read_bytes()
        for name in ("metrics.jsonl", "model/pytorch_lora_weights.safetensors")
    }

    again = unifl("train", "refl.yaml", "training.checkpointing_steps=1")
    assert again.exit_code == 0
    assert "complete already" in again.output

    shutil.rmtree(run / "checkpoint-2")  # as if the process had died in the second step
    shutil.rmtree(run / "model")
    assert unifl("train", "refl.yaml", "--quiet", "training.checkpointing_steps=1").exit_code == 0
    assert {name: (run / name).read_bytes() for name in whole} == whole

    other = unifl("train", "refl.yaml", "training.checkpointing_steps=1", "training.learning_rate=0.5")
    assert other.exit_code == 2
    assert "training.learning_rate: 0.01 -> 0.5" in other.stderr
    assert "--resume latest" in other.stderr

    longer = ("train", "refl.yaml", "training.checkpointing_steps=1", "training.max_train_steps=3")
    assert unifl(*longer).exit_code == 2
    resumed = unifl(*longer, "--resume", "latest")
    assert resumed.exit_code == 0
    assert "1 steps in" in resumed.output
    assert [row["step"] for row in _metrics(run)] == [1, 2, 3]


def test_a_dry_run_shows_the_plan_and_writes_nothing(workspace, unifl):
    before = sorted(workspace.rglob("*"))
    result = unifl("train", "refl.yaml", "--dry-run")
    assert result.exit_code == 0
    assert "trained parameters, student" in result.output
    assert "dry run" in result.output
    assert sorted(workspace.rglob("*")) == before


def test_full_training_saves_a_pipeline_that_the_next_run_and_generate_take(workspace, unifl):
    changes = ["model.train={kind: full}", "output_dir=runs/full", "training.max_train_steps=1"]
    assert unifl("train", "refl.yaml", "--quiet", *changes).exit_code == 0
    assert (workspace / "runs/full/model/model_index.json").exists()
    start = "model.pretrained_model_name_or_path=runs/full"
    second = unifl("train", "refl.yaml", start, "output_dir=runs/second", "training.max_train_steps=1")
    assert second.exit_code == 0, second.output
    assert unifl("generate", "runs/second", "a cat", "--out", "drawn").exit_code == 0


def test_stage_two_starts_from_the_lora_of_stage_one(workspace, unifl):
    assert unifl("train", "refl.yaml", "--quiet", "training.max_train_steps=1").exit_code == 0
    changes = ["model.lora=runs/refl", "output_dir=runs/two", "training.max_train_steps=1"]
    assert unifl("train", "refl.yaml", "--quiet", *changes).exit_code == 0
    # the second LoRA holds both: its rank is the sum
    from safetensors.torch import load_file

    weights = load_file(workspace / "runs/two/model/pytorch_lora_weights.safetensors")
    ranks = {
        len(tensor) for name, tensor in weights.items() if name.endswith(("lora_A.weight", "down.weight"))
    }
    assert ranks == {4}


def test_ctrl_c_says_how_to_go_on(workspace, unifl, monkeypatch):
    def stop(*_, **__):
        (workspace / "runs" / "refl" / "checkpoint-1").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr("unifl.assembly.run.run_recipe", stop)
    result = unifl("train", "refl.yaml")
    assert result.exit_code == 130
    assert "goes on from step 1" in result.stderr
    assert "Traceback" not in result.output


def test_a_reward_that_is_not_a_number_names_step_term_and_checkpoint(workspace, unifl):
    result = unifl("train", "refl.yaml", "--quiet", "rewards.red=assembly_toy:not_a_number")
    assert result.exit_code == 1
    assert "stopped at step 1" in result.stderr
    assert "reward/red" in result.stderr
    assert "no checkpoint had been written before" in result.stderr


WRONG = {
    "unknown key": (
        ["training.learning_rat=1"],
        r"unknown key 'training.learning_rat'; did you mean 'training.learning_rate'",
    ),
    "unknown method": (["method.kind=refll"], r"unknown kind 'refll'.*did you mean 'refl'"),
    "missing model": (["model.pretrained_model_name_or_path=./gone"], r"no model at ./gone; check the path"),
    "wrong folder": (["model.pretrained_model_name_or_path=pictures"], r"pictures is not a diffusers folder"),
    "unsupported pipeline": (
        ["model.pretrained_model_name_or_path=other"],
        r"FluxPipeline are not supported; supported are StableDiffusionPipeline",
    ),
    "missing lora": (["model.lora=./gone.safetensors"], r"no LoRA at ./gone.safetensors"),
    "missing prompts": (["data.prompts=gone.txt"], r"there is no file or folder gone.txt; check the path"),
    "missing data": (["data.prompts=gone"], r"data.prompts: there is no file or folder gone"),
    "empty prompts": (["data.prompts=empty.txt"], r"empty.txt holds no prompt; write at least one"),
    "no gradient, declared": (
        ["rewards.red={path: assembly_toy:red, differentiable: false}"],
        r"ReFL needs a gradient through the feedback 'red', which has none",
    ),
    "no gradient, found out": (
        ["rewards.red=assembly_toy:counted"],
        r"ReFL needs a gradient through the feedback 'red', which has none",
    ),
    "no steps": (["training.max_train_steps=0"], r"max_train_steps is 0; it must be at least 1"),
    "stop out of range": (["method.stop=[0, 3]"], r"stop is \[0, 3\]; choose 0 <= low <= high <= 2"),
    "more steps than the model has": (["method.num_steps=2000"], r"num_steps is 2000; choose 1 to 1000"),
    "no sampling steps": (["sampling.num_steps=0"], r"sampling.num_steps is 0; it must be at least 1"),
    "unknown reward": (
        ["method.reward=rde"],
        r"names the reward 'rde', which is not there; did you mean 'red'",
    ),
    "unknown module": (["rewards.red=gone_module:red"], r"cannot import 'gone_module'"),
    "unknown attribute": (["rewards.red=assembly_toy:rde"], r"assembly_toy has no 'rde'; did you mean 'red'"),
    "bad arguments": (
        ["rewards.red={path: assembly_toy:RewardNet, kwargs: {size: 3}}"],
        r"assembly_toy:RewardNet cannot be called with \{'size': 3\}",
    ),
    "no critic": (["critics.x=assembly_toy:red"], r"critics.x: assembly_toy:red is no critic"),
    "unknown world data": (["data.prompts=world:prompt"], r"no data 'prompt'; did you mean 'prompts'"),
    "unknown world model": (
        ["model.pretrained_model_name_or_path=world:pipelin"],
        r"no model 'pipelin'; did you mean 'pipeline'",
    ),
    "the judge of final figures": (
        ["validation.judge=world:judges/gold"],
        r"gives final figures and nothing else; use world:judges/validation",
    ),
    "output is a file": (["output_dir=prompts.txt"], r"output_dir prompts.txt is a file; name a folder"),
    "no rank": (["model.train.rank=0"], r"LoRA rank is 0; choose 1 or more"),
    "unknown layer": (
        ["model.train.target_modules=[to_qq]"],
        r"'to_qq' is not in the UNet; did you mean 'to_q'",
    ),
    "unknown optimiser": (["training.optimizers.studnt.kind=sgd"], r"did you mean 'student'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings_are_one_clear_line(workspace, unifl, case):
    import re

    changes, message = WRONG[case]
    result = unifl("train", "refl.yaml", *changes)
    assert result.exit_code == 2, result.output
    assert re.search(message, result.stderr), result.stderr
    assert result.stderr.strip().count("\n") == 0, result.stderr
    assert "Traceback" not in result.output
    assert not (workspace / "runs").exists(), "something was written"


PICTURES = {
    "unreadable": ("broken", r"broken/2\.png"),
    "mask of the wrong size": (
        "mismatch",
        r"mismatch/1\.npz is 8 x 8 px but its picture .*1\.png is 32 x 32 px",
    ),
    "no annotation": ("plain", r"needs masks, which the source 'images' does not have; annotate it"),
    "prompts alone": ("prompts.txt", r"the source 'images' must hold pictures with captions, not str"),
}


@pytest.mark.parametrize("case", PICTURES)
def test_wrong_pictures_are_found_before_training(workspace, unifl, case):
    import re

    folder, message = PICTURES[case]
    result = unifl("train", "structure.yaml", f"data.images={folder}")
    assert result.exit_code == 2, result.output
    assert re.search(message, result.stderr), result.stderr
    assert not (workspace / "runs").exists()


def test_a_full_disk_is_refused_before_training(workspace, unifl, monkeypatch):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9, 100))
    result = unifl("train", "refl.yaml")
    assert result.exit_code == 2
    assert "not enough room on the disk" in result.stderr
    assert not (workspace / "runs/refl/checkpoint-2").exists()


def test_a_recipe_that_is_not_there_names_the_nearest(workspace, unifl):
    result = unifl("train", "refll")
    assert result.exit_code == 2
    assert "no recipe at refll; did you mean 'refl'?" in result.stderr
    result = unifl("train", "pictures")
    assert "is a folder without a config.yaml" in result.stderr


def test_annotated_pictures_train_a_critic(workspace, unifl):
    result = unifl("train", "structure.yaml")
    assert result.exit_code == 0, result.output
    assert "critic/structure" in (workspace / "runs/structure/metrics.jsonl").read_text()
