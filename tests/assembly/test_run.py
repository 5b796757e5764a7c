"""What a recipe's run adds to the loop: whose weights the judge sees, when it looks, how much is written."""

from __future__ import annotations

import json
import os
import signal

import assembly_toy
import pytest
from assembly_toy import refl_recipe

from unifl.assembly import run
from unifl.assembly.recipe import load_recipe
from unifl.assembly.run import run_recipe
from unifl.assembly.validation import Validation
from unifl.testing import tiny_folder

VALIDATION = {"judge": "assembly_toy:Reader", "prompts": "prompts.txt", "every": 1}


def test_the_judge_sees_the_moving_average_that_is_saved(workspace):
    recipe = load_recipe(refl_recipe(validation=VALIDATION), ["training.ema_decay=0.9"])
    result = run_recipe(recipe, progress=False)
    rows = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    scores = {}
    for role in ("student", "ema"):
        validation = Validation.of(result.recipe, result.generator, result.folder, role=role)
        assert validation is not None
        scores[role] = validation.scores()
    assert rows[-1] == {"step": 2, **scores["ema"]}
    assert scores["ema"] != scores["student"]


def test_ctrl_c_while_the_judge_looks_leaves_a_checkpoint_and_the_run_ends_the_same(workspace, monkeypatch):
    def recipe(folder):
        changes = [f"output_dir={folder}", "training.max_train_steps=2"]
        return load_recipe(refl_recipe(validation=VALIDATION), changes)

    whole = run_recipe(recipe("runs/whole"), progress=False).folder
    folder, judge = workspace / "runs/stopped", assembly_toy.Reader.__call__

    def interrupted(self, images, prompts):
        if '"step": 1' in (folder / "metrics.jsonl").read_text():
            os.kill(os.getpid(), signal.SIGINT)
        return judge(self, images, prompts)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(assembly_toy.Reader, "__call__", interrupted)
        run_recipe(recipe("runs/stopped"), progress=False)
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-1"]
    run_recipe(recipe("runs/stopped"), progress=False)
    for name in ("metrics.jsonl", "model/pytorch_lora_weights.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


SAVED = {
    "lora and pipeline": ["save_pipeline=true"],
    "lora on a lora": ["model.lora=runs/refl"],
    "lora of a flow": ["model.pretrained_model_name_or_path=flow"],  # in one format alone
    "pipeline": ["model.train={kind: full}"],
}


@pytest.mark.parametrize("case", SAVED)
def test_the_loop_is_told_how_much_the_model_files_take(workspace, monkeypatch, case):
    told, train = [], run.train

    def listen(*arguments, **options):
        told.append(options["model_bytes"])
        return train(*arguments, **options)

    if case == "lora of a flow":
        tiny_folder("sd3", workspace / "flow")
    if case == "lora on a lora":
        run_recipe(load_recipe(refl_recipe(), ["training.max_train_steps=1"]), progress=False)
    monkeypatch.setattr(run, "train", listen)
    changes = ["training.max_train_steps=1", "output_dir=runs/mine", *SAVED[case]]
    folder = run_recipe(load_recipe(refl_recipe(), changes), progress=False).folder / "model"
    tensors = 0
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            tensors += path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")
    assert told[0] == pytest.approx(tensors, rel=0.05)
