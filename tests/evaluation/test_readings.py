from __future__ import annotations

import numpy as np
import pytest
import torch

from unifl import as_feedback
from unifl.errors import TrainingStopped, UserError
from unifl.evaluation import Judge, Origin, Parts, Readings, differences
from unifl.evaluation.parts import Part
from unifl.evaluation.suite import evaluate_model
from unifl.feedback.scorers import Sharpness

from .fakes import PROMPTS, Sampler

GROUPS = ["x"] * 8 + ["y"] * 4


def light(images, prompts):
    return images.mean((1, 2, 3))


def readings(**settings):
    return Readings({"light": as_feedback(light), "sharp": Sharpness()}, **settings)


def evaluate(gain=0.0, **options):
    return evaluate_model(Sampler(gain), PROMPTS, readings(), seeds=(0, 1), diversity_prompts=0, **options)


def test_scores_stand_alone_and_groups_are_parts_of_them():
    judge = readings()
    assert isinstance(judge, Judge) and judge.names == ("light", "sharp")
    found = evaluate(groups=GROUPS)
    scores = found.scores.values["light"].mean(1)
    value = {name: one.value for name, one in found.metrics.items()}
    assert value["light"] == pytest.approx(scores.mean())
    assert value["light/x"] == pytest.approx(scores[:8].mean()) and found.metrics["light/y"].n == 4
    assert value["light/mean of groups"] == pytest.approx((scores[:8].mean() + scores[8:].mean()) / 2)
    assert not any(name.startswith(("overall", "quality", "diversity")) for name in value)
    changes = differences(evaluate(0.05, groups=GROUPS), found)
    assert changes.keys() == found.metrics.keys()
    assert changes["light/mean of groups"].value == pytest.approx(0.05, abs=0.01)
    assert changes["light/mean of groups"].low > 0
    with pytest.raises(UserError, match="2 groups for 12 prompts"):
        evaluate(groups=["x", "y"])


def test_features_make_diversity():
    judge = readings(features=lambda images: images.flatten(1)[:, :7])
    found = evaluate_model(Sampler(), PROMPTS, judge, seeds=(0, 1), diversity_prompts=3, diversity_seeds=2)
    assert found.metrics["diversity"].value > 0 and found.metrics["diversity"].n == 3
    assert readings().features(torch.zeros(2, 3, 4, 4)).shape == (2, 0)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(UserError, match="nothing to measure"):
        Readings({})
    for name in ("overall", "quality", "a/b"):
        with pytest.raises(UserError, match="a score cannot be called"):
            Readings({name: Sharpness()})
    broken = Readings({"broken": as_feedback(lambda images, prompts: images.mean((1, 2, 3)) * float("nan"))})
    with pytest.raises(TrainingStopped, match="broken"):
        broken(torch.rand(2, 3, 4, 4), ["a", "b"])


def test_parts_are_those_of_their_origin(tmp_path):
    origin = Origin(judge="a", judge_sees={}, drawn={"steps": 2})
    part = Part({"light": np.array([0.1, 0.2])}, np.ones((2, 3)), torch.rand(1, 3, 4, 4))
    parts = Parts(tmp_path / "m", origin, keep=False)
    parts.save(0, [0, 1], part)
    again = Parts(tmp_path / "m", origin, keep=True)
    found = again.load(0, [0, 1], 1)
    assert found is not None and found.scores.keys() == {"light"}
    np.testing.assert_array_equal(found.features, part.features)
    torch.testing.assert_close(found.previews, part.previews, atol=0.5 / 255 + 1e-6, rtol=0)
    assert again.load(1, [0, 1], 0) is None and again.load(0, [0], 0) is None
    assert again.load(0, [0, 1], 2) is None  # fewer pictures than are wanted now
    next((tmp_path / "m").glob("0-*.npz")).write_bytes(b"torn")
    assert again.load(0, [0, 1], 1) is None
    again.save(0, [0, 1], part)
    other = Parts(tmp_path / "m", Origin(judge="a", judge_sees={}, drawn={"steps": 3}), keep=True)
    assert other.load(0, [0, 1], 1) is None
    other.save(0, [0, 1], part)
    assert Parts(tmp_path / "m", other_origin(), keep=False).load(0, [0, 1], 1) is None


def other_origin():
    return Origin(judge="a", judge_sees={}, drawn={"steps": 3})
