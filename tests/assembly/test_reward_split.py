"""Which prompts are learnt from, which end the fit, and which measure it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from preference_files import write_jsonl
from unifl import config as configs
from unifl.assembly.reward_split import split_pairs
from unifl.assembly.reward_train import train_reward
from unifl.assembly.reward_train_config import RewardTrainConfig
from unifl.data.preferences import read_preferences
from unifl.errors import UserError

QUICK = {"steps": 6, "batch_size": 4, "evaluate_every": 2, "held_out": 0.4, "learning_rate": 3e-3}


def write_pairs(folder, ties=(), *, prompts=10, turned=()):
    """Two pairs a prompt, the brighter picture first; those of some prompts are ties, or turned around."""
    rng, rows = np.random.default_rng(0), []
    folder.mkdir(parents=True)
    for number in range(2 * prompts):
        for side, level in (("a", 200), ("b", 60)):
            pixels = rng.normal(level, 40, (16, 16, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}{side}.png")
        better, worse = ("b", "a") if number // 2 in turned else ("a", "b")
        row = {"chosen": f"{number}{better}.png", "rejected": f"{number}{worse}.png"}
        rows.append({"prompt": f"p{number // 2}", **row, "tie": number // 2 in ties})
    write_jsonl(folder / "metadata.jsonl", rows)
    return str(folder)


def settings(**changes):
    fit = {**QUICK, **changes.pop("fit", {})}
    return configs.load({"fit": fit, "resolution": 16, **changes}, RewardTrainConfig)


def parts(folder, config):
    """Prompts of each part."""
    index = read_preferences(folder)
    split = split_pairs(index, config)
    return [set(index.prompts.codes[rows].tolist()) for rows in (split.fitted, split.ends, split.measured)]


def test_what_ends_a_fit_does_not_measure_it(tmp_path):
    folder = write_pairs(tmp_path / "pairs")
    fitted, ends, measured = parts(folder, settings())
    assert (len(fitted), len(ends), len(measured)) == (6, 2, 2)
    assert fitted | ends | measured == set(range(10))  # so that no two have a prompt in common
    plain = settings(fit={"keep_best": False})
    assert parts(folder, plain) == [fitted, ends | measured, ends | measured]


def test_voters_choose_too(tmp_path):
    folder = write_pairs(tmp_path / "pairs")
    last = {"keep_best": False}
    chooses = settings(fit=last, voting={}, voter_fit={"keep_best": True})
    assert parts(folder, chooses) == parts(folder, settings())
    assert parts(folder, settings(fit=last, voting={})) == parts(folder, settings(fit=last))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rankings": True},
        {"voting": {"models": 2, "folds": 2}},
        {"network": {"backbone": "latent", "timed": True}},
    ],
    ids=["pairs", "rankings", "voting", "latents"],
)
def test_labels_that_measure_change_nothing_but_the_measurement(changes, tmp_path):
    config = settings(**changes)
    _, ends, measured = parts(write_pairs(tmp_path / "pairs"), config)
    turned = write_pairs(tmp_path / "turned", turned=measured)
    found = [train_reward(config, str(folder), tmp_path / f"{folder.name}-reward") for folder in
             (tmp_path / "pairs", Path(turned))]  # fmt: skip
    assert found[1].decided.value == pytest.approx(1 - found[0].decided.value)
    assert found[0].pairs == 4 and found[0].decided.n == 2
    networks = [
        b"".join(path.read_bytes() for path in sorted((tmp_path / f"{name}-reward").rglob("*.safetensors")))
        for name in ("pairs", "turned")
    ]
    assert networks[0] == networks[1]
    courses = [(tmp_path / f"{name}-reward" / "metrics.jsonl").read_text() for name in ("pairs", "turned")]
    assert courses[0] == courses[1]
    against = write_pairs(tmp_path / "against", turned=ends)  # these do
    train_reward(config, against, tmp_path / "against-reward")
    course = [json.loads(line) for line in (tmp_path / "against-reward" / "metrics.jsonl").open()]
    assert course != [json.loads(line) for line in courses[0].splitlines()]


def test_too_few_prompts_and_parts_of_ties_are_told_before_work(tmp_path):
    few = write_pairs(tmp_path / "few", prompts=3)
    with pytest.raises(UserError, match="1 of 3 prompts is held out, and it cannot both end the fit and"):
        train_reward(settings(), few, tmp_path / "reward")
    assert (
        parts(few, settings(fit={"keep_best": False}))[2] == parts(few, settings(fit={"keep_best": False}))[1]
    )
    _, ends, measured = parts(write_pairs(tmp_path / "pairs"), settings())
    for ties, what in ((ends, "end the fit"), (measured, "measure")):
        folder = write_pairs(tmp_path / what, ties)
        with pytest.raises(UserError, match=f"every pair that is to {what} is a tie"):
            train_reward(settings(), folder, tmp_path / "reward")
        plain = settings(fit={"keep_best": False})
        assert parts(folder, plain)[2] == ends | measured  # the other half measures
    for name, ties, what in (
        ("held", ends | measured, "measure"),
        ("fitted", set(range(10)) - ends - measured, "be learnt from"),
    ):
        with pytest.raises(UserError, match=f"that is to {what} is a tie"):
            train_reward(plain, write_pairs(tmp_path / name, ties), tmp_path / "reward")
    assert not (tmp_path / "reward").exists()


def test_ties_of_the_measured_prompts_are_counted(tmp_path):
    config = settings(fit={"steps": 2})
    _, ends, measured = parts(write_pairs(tmp_path / "pairs"), config)
    folder = write_pairs(tmp_path / "tied", {min(measured), min(ends)})
    found = train_reward(config, folder, tmp_path / "reward")
    assert (found.ties, found.pairs, found.decided.n) == (2, 2, 1)
    assert "pairs of 1 held-out prompts" in (tmp_path / "reward" / "README.md").read_text(encoding="utf-8")
