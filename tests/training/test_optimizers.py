"""Optimisers by name, by path, and refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unifl.errors import UserError
from unifl.training.config import OptimizerConfig
from unifl.training.optimizers import OPTIMIZERS, build_lr_scheduler, build_optimizer, optimizer_class


def _build(kind, parameters=None, **kwargs):
    parameters = [nn.Parameter(torch.randn(4, 3))] if parameters is None else parameters
    return build_optimizer(parameters, OptimizerConfig(kind=kind, learning_rate=0.1, kwargs=kwargs))


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd", "adafactor", "muon", "torch.optim:RMSprop"])
def test_each_trains(kind):
    parameter = nn.Parameter(torch.randn(4, 3))
    optimizer = _build(kind, [parameter])
    before = parameter.square().sum().item()
    for _ in range(20):
        optimizer.zero_grad()
        parameter.square().sum().backward()
        optimizer.step()
    assert parameter.square().sum().item() < 0.9 * before
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("kind", ["adamw8bit", "lion8bit"])
def test_eight_bit_states_are_eight_bit(kind):
    pytest.importorskip("bitsandbytes")
    parameter = nn.Parameter(torch.randn(80, 64))
    optimizer = _build(kind, [parameter])
    before = parameter.square().sum().item()
    parameter.square().sum().backward()
    optimizer.step()
    assert parameter.square().sum().item() < before
    assert optimizer.state[parameter]["state1"].dtype == torch.uint8


def test_arguments_reach_the_optimizer():
    assert _build("adamw", weight_decay=0.3, betas=(0.5, 0.6)).param_groups[0]["weight_decay"] == 0.3
    with pytest.raises(UserError, match=r"'adamw' refuses its settings \{'momentum': 0.9\}"):
        _build("adamw", momentum=0.9)


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "prodigy", "a_package_that_nobody_has:Prodigy")
    with pytest.raises(UserError, match="install it with: pip install a_package_that_nobody_has"):
        _build("prodigy")


def test_wrong_names():
    with pytest.raises(UserError, match="unknown optimizer 'adam_w'; did you mean 'adamw'"):
        optimizer_class("adam_w")
    with pytest.raises(UserError, match="has no class 'AdamZ'"):
        optimizer_class("torch.optim:AdamZ")
    with pytest.raises(UserError, match="not a torch optimiser"):
        _build("unittest.mock:Mock")


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(UserError, match="there is nothing to train"):
        _build("adamw", [])
    with pytest.raises(UserError, match="1 of 1 parameters of an update are frozen"):
        _build("adamw", [nn.Parameter(torch.zeros(2), requires_grad=False)])
    with pytest.raises(UserError, match="muon.* trains matrices only, and 1 of 2"):
        _build("muon", [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))])


def test_warm_up_turns_constant_into_a_rise():
    optimizer = _build("sgd")
    settings = OptimizerConfig(learning_rate=0.1, lr_scheduler="constant")
    scheduler = build_lr_scheduler(optimizer, settings, warmup_steps=4, total_steps=10)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.0, 0.025, 0.05, 0.075, 0.1, 0.1])
