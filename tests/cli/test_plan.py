from __future__ import annotations

import re

import pytest

TINY = ("model.pretrained_model_name_or_path=tiny", "model.resolution=32")


def test_a_plan_needs_no_weights_and_writes_nothing(workspace, unifl):
    for weights in (workspace / "tiny").rglob("*.safetensors"):
        weights.unlink()
    before = sorted(workspace.rglob("*"))
    result = unifl("plan", "sd15_unifl_stage1_lora", *TINY)
    assert result.exit_code == 0, result.output
    for row in (
        "memory, weights, unet",
        "memory, weights, LoRA",
        "kept for backward: denoiser",
        "memory, together",
    ):
        assert row in result.output
    assert "free" not in result.output  # nothing is said of a machine that will not run it
    assert "not counted: the critic structure (instances facebook/mask2former" in result.output
    assert sorted(workspace.rglob("*")) == before


@pytest.mark.slow
def test_the_plan_follows_overrides(workspace, unifl):
    def total(*changes):
        text = unifl("plan", "sd15_refl_lora", *TINY, *changes).output
        number, unit = re.search(r"memory, together\W+([\d.]+) (MB|GB)", text).groups()
        return float(number) * {"MB": 1, "GB": 1000}[unit]

    assert total("training.train_batch_size=8") > total()
    rows = unifl("plan", "sd15_refl_lora", *TINY, "--processes", "4").output
    assert "256 rows" in rows.replace(",", "") and "100 of" in rows


WRONG = {
    "family": (["--shapes", "flux"], r"no shapes are known for 'flux'; known are sd15, sd21, sdxl"),
    "model": (
        ["model.pretrained_model_name_or_path=nobody/nothing"],
        r"no configs of the model nobody/nothing can be had .*--shapes sd15\|sd21\|sdxl",
    ),
    "resolution": (
        ["--shapes", "sd15", "model.resolution=500"],
        r"resolution is 500; this model needs a multiple of 64 pixels",
    ),
    "key": (["model.resolutoin=512"], r"unknown key 'model.resolutoin'; did you mean 'model.resolution'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_plan_that_cannot_be_made_is_one_clear_line(workspace, unifl, case):
    changes, message = WRONG[case]
    result = unifl("plan", "sd15_refl_lora", *changes)
    assert result.exit_code == 2, result.output
    assert re.search(message, result.stderr), result.stderr
    assert result.stderr.strip().count("\n") == 0


def test_training_without_the_user_s_files_names_what_to_set(workspace, unifl):
    result = unifl("train", "sd15_refl_lora")
    assert result.exit_code == 2
    assert "the recipe leaves 1 place(s) open (???); name your files on the command line" in result.stderr
    assert "data.prompts=..." in result.stderr
    result = unifl("train", "sd15_refl_lora", "data.prompts=prompts.txt")
    assert "no reward 'rewards/global'; set rewards.global to a folder that" in result.stderr
