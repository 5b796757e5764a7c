"""The loop, resume and the plan on a tiny Stable Diffusion with a method of the package."""

from __future__ import annotations

import pytest
import torch
from training_toy import run_folder_bytes, true_peak

from unifl.feedback import as_feedback
from unifl.methods.refl import ReFL, ReFLConfig
from unifl.models import (
    FullTraining,
    LoraTraining,
    UserTraining,
    make_generator,
    save_lora,
    save_user_adapter,
)
from unifl.testing import tiny_pipeline
from unifl.training.config import TrainingConfig
from unifl.training.loop import train
from unifl.training.plan import plan

PROMPTS = ["a red circle", "two cats", "a dog", "a small blue square"]


def _redness(images, prompts):
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


TRAINING = {"lora": LoraTraining(rank=2), "full": FullTraining(), "user": UserTraining(embedding_dim=6)}


def _method(kind):
    generator = make_generator(tiny_pipeline("sd15"), train=TRAINING[kind], roles=())
    config = ReFLConfig(num_steps=2, stop=(0, 1), grad_scale=1.0, reward="red")
    rewards = {"red": as_feedback(_redness, name="red")}
    return ReFL(generator, config, rewards=rewards, sources={"prompts": PROMPTS})


def _config(**changes):
    settings = {"max_train_steps": 4, "train_batch_size": 2, "learning_rate": 1e-3, "checkpointing_steps": 2}
    return TrainingConfig(**(settings | {"ema_decay": 0.9, "preview_steps": 2} | changes))


def _run(folder, kind, *, stop_after=None):
    method = _method(kind)

    def save(place):
        if kind != "full":
            {"lora": save_lora, "user": save_user_adapter}[kind](method.generator, place)

    steps = train(method, _config(), folder, save_model=save, resume_from_checkpoint="latest")
    for result in steps:
        if result.step == stop_after:
            break
    steps.close()
    return method


@pytest.mark.parametrize("kind", TRAINING)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, kind):
    _run(tmp_path / "parts", kind, stop_after=3)
    parts, whole = _run(tmp_path / "parts", kind), _run(tmp_path / "whole", kind)
    assert run_folder_bytes(tmp_path / "parts") == run_folder_bytes(tmp_path / "whole")
    start = _method(kind).generator.roles.state("student")
    for role in ("student", "ema"):
        mine, other = parts.generator.roles.state(role), whole.generator.roles.state(role)
        assert all(torch.equal(mine[name], other[name]) for name in other)
        assert any((other[name] != start[name]).any() for name in other)


@pytest.mark.parametrize("kind", TRAINING)
def test_the_plan_on_a_real_model(tmp_path, kind):
    config = _config(train_batch_size=4, preview_steps=0, max_train_steps=3, gradient_accumulation_steps=2)
    estimate = plan(_method(kind), config)
    assert estimate.copies == (1 if kind == "full" else 0)
    assert estimate.evaluations["unet forward+backward"] == 8
    method = _method(kind)
    held = sum(p.nbytes for module in method.generator.modules().values() for p in module.parameters())
    true = held + true_peak(method, config, tmp_path)
    assert estimate.total_memory == pytest.approx(true, rel=0.15)
