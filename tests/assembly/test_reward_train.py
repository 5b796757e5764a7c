"""Reward models trained from preference data, on pictures whose order is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from preference_files import write_jsonl
from unifl import config as configs
from unifl.assembly import resolve
from unifl.assembly.reward_eval import evaluate_reward
from unifl.assembly.reward_split import split_pairs
from unifl.assembly.reward_train import train_reward
from unifl.assembly.reward_train_config import RewardTrainConfig
from unifl.data.preferences import Filters, PreferenceSet, read_preferences, select
from unifl.errors import UserError
from unifl.feedback.fit import split_by_unit

FIT = {
    "steps": 40,
    "batch_size": 16,
    "learning_rate": 3e-3,
    "warmup_steps": 5,
    "evaluate_every": 20,
    "held_out": 0.2,
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """The brighter of two pictures wins; four pairs of each of 25 prompts, every eleventh a tie."""
    folder = tmp_path_factory.mktemp("pairs")
    rng, rows = np.random.default_rng(0), []
    for number in range(100):
        names = []
        for side, level in enumerate(sorted(rng.uniform(30, 220, 2), reverse=True)):
            names.append(f"{number}-{side}.png")
            noise = rng.normal(level, 12, (16, 16, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noise).save(folder / names[-1])
        row = {"prompt": f"picture {number // 4}", "chosen": names[0], "rejected": names[1]}
        rows.append({**row, "tie": number % 11 == 10})
    write_jsonl(folder / "metadata.jsonl", rows)
    return str(folder)


def settings(**changes):
    return configs.load({"fit": FIT, "resolution": 16, **changes}, RewardTrainConfig)


def weights(folder):
    return (folder / "weights.safetensors").read_bytes()


@pytest.fixture(scope="module")
def trained(pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "reward"
    return folder, train_reward(settings(), pairs, folder)


def test_it_learns_and_opens_by_its_path(trained, pairs):
    folder, found = trained
    assert found.decided.value > 0.85
    reward = resolve.feedback(str(folder), name="mine")
    index, _ = select(read_preferences(pairs), Filters(), ties="keep")
    measured = split_pairs(index, settings()).measured
    again = evaluate_reward(reward, PreferenceSet(index.take(measured), resolution=16))
    assert again.ties == found.ties and again.pairs == found.pairs
    assert again.decided.value == pytest.approx(found.decided.value)
    assert again.log_loss == pytest.approx(found.log_loss, rel=1e-3)


def test_everything_is_in_the_folder(trained):
    folder, found = trained
    told = json.loads((folder / "reward.json").read_text())["found"]
    assert told["prompts"] == 20 and told["accuracy"]["value"] == found.decided.value
    assert json.loads((folder / "evaluation.json").read_text())["pairs"] == found.pairs
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [20, 40] and lines[-1]["held_out_loss"] < 0.5
    assert Image.open(folder / "calibration.png").size[0] > 300
    assert "20 prompts" in (folder / "README.md").read_text() and not (folder / "work").exists()


def test_prompts_stay_on_one_side():
    units = [3, 3, 5, 5, 5, 9, 9, 1]
    held = split_by_unit(units, 0.5, seed=2)
    assert {units[row] for row in held}.isdisjoint({units[row] for row in range(8) if row not in held})
    assert len({units[row] for row in held}) == 2
    with pytest.raises(UserError, match="of 1 prompts"):
        split_by_unit([4, 4], 0.5, seed=0)


@pytest.mark.parametrize("stop_at", [6, 31])
def test_an_interrupted_training_goes_on_to_the_same_result(stop_at, pairs, tmp_path):
    """With voters: once in the middle of a voter, once in the middle of the model."""
    fit = {**FIT, "steps": 12, "batch_size": 4, "evaluate_every": 4}
    config = settings(voting={"models": 2, "folds": 2}, fit=fit)

    def stop(what, done, total):
        assert total == 36
        if done == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_reward(config, pairs, tmp_path / "stopped", progress=stop)
    seen = []
    train_reward(config, pairs, tmp_path / "stopped", progress=lambda what, done, total: seen.append(done))
    assert seen[0] == stop_at // 4 * 4 + 1  # from the last measurement
    train_reward(config, pairs, tmp_path / "whole")
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(4, 37, 4))  # the last of every voter, too
    for name in ("metrics.jsonl", "votes.jsonl", "evaluation.json"):
        assert (tmp_path / "stopped" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_a_training_does_not_go_on_with_other_pairs(pairs, tmp_path):
    text = Path(f"{pairs}/metadata.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    for row in rows:
        row["chosen"], row["rejected"] = (f"{pairs}/{row[key]}" for key in ("chosen", "rejected"))
    data = tmp_path / "pairs" / "metadata.jsonl"
    write_jsonl(data, rows)

    def stop(what, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_reward(settings(), str(data.parent), tmp_path / "reward", progress=stop)
    write_jsonl(data, rows[1:])
    with pytest.raises(UserError, match="has changed since the training in .* began"):
        train_reward(settings(), str(data.parent), tmp_path / "reward")


def test_the_vote_finds_labels_that_are_turned_around(pairs, tmp_path):
    rows = [json.loads(line) for line in open(f"{pairs}/metadata.jsonl", encoding="utf-8")]
    wrong = {number for number in range(0, 100, 7) if not rows[number]["tie"]}
    for number, row in enumerate(rows):
        row["chosen"], row["rejected"] = (f"{pairs}/{row[key]}" for key in ("chosen", "rejected"))
        if number in wrong:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    write_jsonl(tmp_path / "pairs" / "metadata.jsonl", rows)
    config = settings(voting={"models": 4, "folds": 2}, fit={**FIT, "keep_best": False})
    train_reward(config, str(tmp_path / "pairs"), tmp_path / "reward")
    votes = [json.loads(line) for line in (tmp_path / "reward" / "votes.jsonl").read_text().splitlines()]
    numbers = [int(line["pair"].split("row ")[1].split()[0]) - 1 for line in votes[:6]]
    assert len(wrong & set(numbers)) >= 5  # of the pairs most against their label
    assert len(votes) == 80 - sum(row["tie"] for row in _kept(rows))
    assert votes[0]["wrong"] == 1 and votes[0]["strength"] == pytest.approx(-votes[0]["margin"])


def _kept(rows):
    """Rows whose prompts are not held out."""
    held = split_by_unit([int(row["prompt"].split()[1]) for row in rows], 0.2, seed=0)
    return [row for number, row in enumerate(rows) if number not in held]


def test_rankings_and_samples_of_the_policy_are_learnt_from(pairs, tmp_path):
    write_jsonl(
        tmp_path / "drawn" / "metadata.jsonl",
        [{"prompt": f"p{n // 3}", "file_name": f"{pairs}/{n}-0.png"} for n in range(9)],
    )
    policy = {"folder": str(tmp_path / "drawn"), "samples": 3, "prompts": 2}
    plain = train_reward(settings(rankings=True), pairs, tmp_path / "ranked")
    meta = train_reward(settings(rankings=True, policy=policy), pairs, tmp_path / "meta")
    assert plain.decided.value > 0.85 and meta.decided.value > 0.85
    assert weights(tmp_path / "ranked") != weights(tmp_path / "meta")


def test_noisy_latents_are_judged_with_their_time(pairs, tmp_path):
    fit = {**FIT, "steps": 4, "evaluate_every": 4}
    config = configs.load({"fit": fit, "network": {"backbone": "latent", "timed": True}}, RewardTrainConfig)
    train_reward(config, pairs, tmp_path / "latent")
    reward = resolve.feedback(str(tmp_path / "latent"), name="mine")
    latents = torch.randn(2, *_latent_shape())
    scores = [reward(latents, ["a", "b"], torch.full((2,), t)) for t in (0.0, 0.9)]
    assert reward.space == "latent" and not torch.allclose(*scores)


def _latent_shape():
    from unifl.models import load_generator

    return load_generator(resolve.world_names.pipeline("world:pipeline"), roles=()).latent_shape


def test_mistakes_are_told_before_work(trained, pairs, tmp_path):
    folder, _ = trained
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    train = [
        (settings(), pairs, folder, "a reward model whose training is complete"),
        (settings(), pairs, tmp_path / "full", "is not empty"),
        (settings(policy={"folder": str(tmp_path)}), pairs, tmp_path / "a", "draw samples of the policy"),
    ]
    for config, data, place, message in train:
        with pytest.raises(UserError, match=message):
            train_reward(config, data, place)
    assert not (tmp_path / "a").exists()  # a mistake does not claim the folder
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.yaml").write_text("other")
    with pytest.raises(UserError, match="holds a training of other settings"):
        train_reward(settings(ties="drop"), pairs, tmp_path / "b")
    for change, message in (
        ({"voters": {}}, "voting, which is off"),
        ({"rankings": True, "voting": {}}, "without voting"),
        ({"network": {"backbone": "latent"}, "policy": {"folder": "x"}}, "this backbone reads latents"),
        ({"policy": {"folder": "x", "samples": 1}}, "at least 2 samples"),
        ({"voting": {}, "voters": {"backbone": "latent"}}, "must read what the network reads"),
        ({"fit": {"theta": 0.5}}, "no probability for ties"),
    ):
        with pytest.raises(UserError, match=message):
            configs.load(change, RewardTrainConfig)
