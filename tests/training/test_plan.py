"""The plan against what then happens."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from rich.console import Console
from training_toy import Toy, toy_config, true_peak

from unifl.training.clock import Clock, readable_seconds
from unifl.training.config import OptimizerConfig
from unifl.training.loop import train
from unifl.training.memory import optimizer_bytes
from unifl.training.plan import plan
from unifl.training.state import TrainingState
from unifl.training.statefile import state_bytes


@pytest.mark.parametrize(
    "changes", [{"train_batch_size": 64}, {"train_batch_size": 2}, {"gradient_accumulation_steps": 3}]
)
def test_memory_is_within_15_percent(tmp_path, changes):
    config = toy_config(**changes)
    estimate = plan(Toy(width=8000), config)
    toy = Toy(width=8000)
    held = [*toy.generator.network.parameters(), *toy.discriminator.parameters()]
    true = true_peak(toy, config, tmp_path) + sum(p.nbytes for p in held)
    assert estimate.total_memory == pytest.approx(true, rel=0.15)
    assert estimate.memory["optimizers"] == pytest.approx(2 * 4 * 72004, rel=0.01)


@pytest.mark.parametrize("kind", ["adamw", "sgd", "adafactor", "adamw8bit"])
def test_optimizer_state_is_found_by_kind(kind):
    if kind == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    parameters = [torch.nn.Parameter(torch.randn(80, 64)) for _ in range(3)] + [
        torch.nn.Parameter(torch.randn(5))
    ]
    settings = OptimizerConfig(kind=kind, learning_rate=0.1)
    toy = Toy()
    toy.parameters["student"] = parameters
    optimizer = TrainingState.new(toy, toy_config(optimizers={"student": settings})).optimizers["student"]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    assert optimizer_bytes(parameters, settings) == state_bytes(optimizer.state_dict()["state"])


def test_counts_and_copies():
    config = toy_config(train_batch_size=4, gradient_accumulation_steps=3)
    found = plan(Toy(), config, processes=2)
    assert found.rows == 24
    assert found.evaluations == {"net forward+backward": 24.0, "discriminator": 72.0}
    assert found.trained == {"student": 148, "discriminator": 49}
    assert found.copies == 1  # the average of a fully trained network
    assert plan(Toy(), toy_config(ema_decay=None)).copies == 0
    console = Console(width=100, record=True, file=open("/dev/null", "w"))
    found.show(console)
    text = console.export_text()
    assert "net forward+backward, samples per step" in text and "12 of 24 rows" in text


def test_a_plan_leaves_everything_as_it_was(tmp_path):
    toy = Toy()
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()
    plan(toy, toy_config())
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == np.random.get_state()[1].tolist()
    assert toy.running["count"] == 0 and int(toy.discriminator.seen) == 0
    assert all(p.grad is None for parameters in toy.parameters.values() for p in parameters)
    results = [result.numbers() for result in train(toy, toy_config(), tmp_path / "a")]
    assert results == [result.numbers() for result in train(Toy(), toy_config(), tmp_path / "b")]


def test_time_is_within_25_percent_after_10_steps():
    rng = random.Random(0)
    clock = Clock(total_steps=200, checkpointing_steps=50, preview_steps=20)
    clock.add_extra("preview", 2.0)  # before the first step
    durations = [5.0] + [rng.uniform(0.5, 1.5) for _ in range(199)]
    for step, seconds in enumerate(durations[:10], start=1):
        assert (clock.remaining(step - 1) is None) == (step <= 2)
        clock.add_step(seconds)
    true = sum(durations[10:]) + 10 * 2.0
    assert clock.remaining(10) == pytest.approx(true, rel=0.25)
    clock.add_extra("checkpoint", 30.0)
    assert clock.remaining(150) == pytest.approx(50 * 1.0 + 3 * 2.0 + 30.0, rel=0.25)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (3599.0, "59 min 59 s"), (7325.0, "2 h 2 min")]
)
def test_durations_in_words(seconds, text):
    assert readable_seconds(seconds) == text
