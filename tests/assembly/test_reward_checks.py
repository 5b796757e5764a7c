"""Mistakes in a reward training are told before it begins, and before it claims its folder."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from preference_files import write_jsonl
from unifl import config as configs
from unifl.assembly.reward_train import train_reward
from unifl.assembly.reward_train_config import RewardTrainConfig
from unifl.errors import UserError
from unifl.testing import tiny_pipeline

QUICK = {"steps": 2, "batch_size": 2, "evaluate_every": 2, "held_out": 0.4}
TOWERS = {"channels": 3, "size": 8, "tower": "resnet", "width": 32, "depth": 2, "text": "hashed"}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Ten prompts with a pair each."""
    folder, rows = tmp_path_factory.mktemp("pairs"), []
    for number in range(20):
        Image.fromarray(np.full((16, 16, 3), 12 * number, np.uint8)).save(folder / f"{number}.png")
    for number in range(10):
        names = {"chosen": f"{number + 10}.png", "rejected": f"{number}.png"}
        rows.append({"prompt": f"p{number}", **names})
    write_jsonl(folder / "metadata.jsonl", rows)
    return str(folder)


def settings(**changes):
    return configs.load({"fit": QUICK, "resolution": 16, **changes}, RewardTrainConfig)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "cuda:99"}, "there is no device 'cuda:99' here"),
        ({"voting": {"models": 20, "folds": 10}}, "6 prompts cannot be cut into 10 folds"),
        ({"network": {"backbone": "latent"}, "autoencoder": "no/where/x"}, "cannot|no model"),
        ({"network": {"backbone": "latent", "latents": TOWERS}}, "network.latents.channels is 3, and .* is 12"),
        (
            {"network": {"backbone": "latent"}, "voting": {}, "voters": {"backbone": "latent", "latents": TOWERS}},
            "voters.latents.channels is 3",
        ),
    ],
)  # fmt: skip
def test_what_cannot_work_claims_no_folder(changes, message, pairs, tmp_path):
    with pytest.raises(UserError, match=message):
        train_reward(settings(**changes), pairs, tmp_path / "reward")
    assert not (tmp_path / "reward").exists()


@pytest.mark.parametrize("who", ["network", "voters"])
def test_weights_that_are_missing_are_told_before_voters_are_fitted(who, pairs, tmp_path):
    base = tmp_path / "clip"
    tiny_pipeline("sd15").tokenizer.save_pretrained(base)
    looks = {"do_resize": True, "size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": 32}
    kind = {"image_processor_type": "CLIPImageProcessor", "do_rescale": True, "do_normalize": False}
    (base / "preprocessor_config.json").write_text(json.dumps({**kind, **looks}))
    config = settings(voting={"models": 2}, **{who: {"backbone": "clip", "base": str(base)}})
    with pytest.raises(UserError, match="cannot read .*clip, as a folder or on the hub"):
        train_reward(config, pairs, tmp_path / "reward", progress=lambda *_: pytest.fail("it began"))
    assert not (tmp_path / "reward").exists()


def test_a_folder_that_cannot_be_written(pairs, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file; name a folder"):
        train_reward(settings(), pairs, tmp_path / "file")
    with pytest.raises(UserError, match="cannot write"):
        train_reward(settings(), pairs, tmp_path / "file" / "reward")


def test_rankings_take_no_settings_of_pairs():
    with pytest.raises(UserError, match="theta of a fit are for pairs"):
        settings(rankings=True, fit={**QUICK, "theta": 5.0})


def test_contrastive_needs_dropout():
    fit = {**QUICK, "contrastive": 0.1}
    for changes in (
        {"fit": fit, "network": {"dropout": 0.0}},
        {"voting": {}, "voters": {"dropout": 0.0}, "voter_fit": fit},
    ):
        with pytest.raises(UserError, match="are made by dropout, and it is 0"):
            settings(**changes)


@pytest.mark.parametrize("timed", ["network", "voters"])
def test_voters_know_a_time_or_not_by_themselves(timed, pairs, tmp_path):
    shapes = {who: {"backbone": "latent", "timed": who == timed} for who in ("network", "voters")}
    train_reward(settings(voting={"models": 1}, **shapes), pairs, tmp_path / "reward")
    lines = (tmp_path / "reward" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["fit"] for line in lines] == ["voter 1", "model"]
