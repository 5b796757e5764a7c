"""Reward models on latents are asked about pictures through their own autoencoder."""

from __future__ import annotations

import contextlib
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from preference_files import write_jsonl
from unifl import config as configs
from unifl.assembly import resolve
from unifl.assembly.audit_judges import _judge
from unifl.assembly.on_pictures import on_pictures
from unifl.assembly.reward_eval import evaluate_reward
from unifl.assembly.reward_split import split_pairs
from unifl.assembly.reward_train import train_reward
from unifl.assembly.reward_train_config import RewardTrainConfig
from unifl.assembly.scoring import score_folder
from unifl.data.preferences import PreferenceSet, read_preferences
from unifl.errors import UserError
from unifl.feedback.reward_models import TrainedReward, load_reward_model
from unifl.models import load_generator
from unifl.testing import tiny_pipeline


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A reward model on latents, its pairs, its settings, what it found, and the model that draws its latents."""
    folder, rows = tmp_path_factory.mktemp("latent"), []
    tiny_pipeline("sd15").save_pretrained(folder / "model")
    side, rng = load_generator(folder / "model").image_size[0], np.random.default_rng(0)
    (folder / "pairs").mkdir()
    for number in range(12):
        for name, level in (("a", 190), ("b", 70)):
            pixels = rng.normal(level, 20, (side, side, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "pairs" / f"{number}{name}.png")
        rows.append({"prompt": f"p{number}", "chosen": f"{number}a.png", "rejected": f"{number}b.png"})
    write_jsonl(folder / "pairs" / "metadata.jsonl", rows)
    fit = {"steps": 4, "batch_size": 4, "evaluate_every": 4, "held_out": 0.5}
    config = configs.load(
        {"network": {"backbone": "latent"}, "autoencoder": "model", "fit": fit}, RewardTrainConfig
    )
    with contextlib.chdir(folder):  # it is found from elsewhere, too
        found = train_reward(config, "pairs", folder / "reward")
    return folder, config, found, side


def opened(folder):
    return on_pictures(resolve.feedback(str(folder / "reward"), name="mine"))


def test_it_orders_pictures_as_it_ordered_their_latents(trained):
    folder, config, found, side = trained
    reward = opened(folder)
    assert reward.space == "pixel" and not reward.differentiable and "prompt" in reward.needs
    index = read_preferences(str(folder / "pairs"))
    measured = index.take(split_pairs(index, config).measured)
    again = evaluate_reward(reward, PreferenceSet(measured, resolution=side))
    assert again.decided == found.decided
    assert again.scale == pytest.approx(found.scale, rel=1e-3)
    images = torch.rand(2, 3, side, side)
    inner = resolve.feedback(str(folder / "reward"), name="mine")
    latents = load_generator(folder / "model").encode(images)
    assert torch.allclose(reward(images, ["a", "b"]), inner(latents, ["a", "b"]))
    assert "latents of: " in (folder / "reward" / "README.md").read_text(encoding="utf-8")
    assert resolve.networks_of({"mine": reward})[0] is reward.network


def test_folders_and_audits_take_it(trained, tmp_path):
    folder, _, _, side = trained
    Image.new("RGB", (side, side), (9, 9, 9)).save(tmp_path / "a.png")
    write_jsonl(tmp_path / "metadata.jsonl", [{"file_name": "a.png", "prompt": "x"}])
    score_folder(tmp_path, {"mine": opened(folder)})
    score = json.loads((tmp_path / "metadata.jsonl").read_text(encoding="utf-8"))["scores"]["mine"]
    image = torch.full((1, 3, side, side), 9 / 255)
    assert score == pytest.approx(float(opened(folder)(image, ["x"])), rel=1e-4)
    judge, _ = _judge(str(folder / "reward"), "mine", "cpu")
    assert float(judge(image, ["x"])) == pytest.approx(score, rel=1e-4)


def test_other_sizes_and_other_autoencoders_are_refused(trained):
    folder, _, _, side = trained
    with pytest.raises(
        UserError, match=f"of {side} x {side} px, and these are of {side} x 8; .*--resolution {side}"
    ):
        opened(folder)(torch.rand(1, 3, side, 8), ["x"])
    pipeline = tiny_pipeline("sd15")
    with torch.no_grad():
        next(pipeline.vae.encoder.parameters()).add_(0.1)
    (folder / "model").rename(folder / "gone")
    try:
        with pytest.raises(UserError, match="judges latents of .*, and no model at"):
            opened(folder)
        pipeline.save_pretrained(folder / "model")
        with pytest.raises(UserError, match="has another autoencoder or resolution now"):
            opened(folder)
    finally:
        shutil.rmtree(folder / "model", ignore_errors=True)
        (folder / "gone").rename(folder / "model")


def test_what_is_no_such_model_stays_as_it_is(trained):
    folder = trained[0]
    told = json.loads((folder / "reward" / "reward.json").read_text(encoding="utf-8"))
    assert told["found"]["autoencoder"]["model"] == str(folder / "model")
    reward = resolve.feedback("world:rewards/color", name="color")
    assert on_pictures(reward) is reward
    unknown = TrainedReward(load_reward_model(folder / "reward").network, name="mine")
    assert on_pictures(unknown) is unknown
