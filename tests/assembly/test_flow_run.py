"""A recipe on a flow-matching transformer, from its folder to the run folder and back."""

from __future__ import annotations

import json

import diffusers
import pytest
import torch
from assembly_toy import refl_recipe

from unifl.assembly.open_model import open_model
from unifl.assembly.recipe import load_recipe
from unifl.assembly.run import run_recipe
from unifl.errors import UserError
from unifl.randomness import Key
from unifl.sampling import sample
from unifl.testing import tiny_folder

PROMPTS = ["a red circle"]
METHODS = {
    "refl": ["training.ema_decay=0.1", "model.gradient_checkpointing=true", "save_pipeline=true"],
    "finetune": ["method={kind: finetune, source: images}", "data={images: pictures}", "rewards={}"],
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("train", ["lora", "full"])
def test_a_run_of_a_flow_model_is_opened_again_and_drawn_by_diffusers(workspace, method, train):
    tiny_folder("sd3_t5", workspace / "flow")
    changes = [
        "model.pretrained_model_name_or_path=flow",
        f"model.train={{kind: {train}}}",
        "training.learning_rate=0.1",
        *METHODS[method],
    ]
    recipe = load_recipe(refl_recipe(), changes)
    result = run_recipe(recipe, progress=False)
    rows = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) >= 2 and result.plan is not None
    assert result.plan.memory["weights, transformer"] > 0

    role = "ema" if method == "refl" else "student"
    drawn = sample(result.generator, PROMPTS, num_steps=3, guidance=2.0, role=role)
    start = sample(open_model("flow").generator, PROMPTS, num_steps=3, guidance=2.0)
    assert (drawn - start).abs().max() > 1e-4
    opened = open_model(str(result.folder))
    assert opened.sampling.spacing == "trailing"
    assert (sample(opened.generator, PROMPTS, num_steps=3, guidance=2.0) - drawn).abs().max() < 2e-5
    if train == "lora":
        plain = diffusers.StableDiffusion3Pipeline.from_pretrained(workspace / "flow")
        plain.load_lora_weights(result.folder / "model")
    else:
        plain = diffusers.StableDiffusion3Pipeline.from_pretrained(result.folder / "model")
    noise = Key(0, 0, (0,)).normal("sample", (16, 8, 8))
    settings = {"num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "pt"}
    assert (plain(PROMPTS, latents=noise, **settings).images - drawn).abs().max() < 2e-5
    assert torch.isfinite(drawn).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sampling.spacing=leading", "spacing is 'leading', and flow models.*set spacing to trailing"),
        ("sampling.consistency={kind: lcm}", "a consistency sampler counts in the timesteps"),
    ],
)
def test_sampling_that_a_flow_model_cannot_follow_is_refused_before_training(workspace, change, message):
    tiny_folder("sd3", workspace / "flow")
    recipe = load_recipe(refl_recipe(), ["model.pretrained_model_name_or_path=flow", change])
    with pytest.raises(UserError, match=message):
        run_recipe(recipe, progress=False)
    assert not (workspace / "runs/refl").exists()
