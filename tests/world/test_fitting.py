"""The loop that trains the world's own networks: its learning rate, its memory of where it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from unifl.world.dataset import batch_rows, computed_once
from unifl.world.fitting import FitConfig, fit

CONFIG = FitConfig(steps=40, learning_rate=1e-2, warmup=4, save_every=10, restarts=(16,))


def _regression():
    torch.manual_seed(0)
    network = nn.Linear(3, 1)

    def loss(step: int) -> torch.Tensor:
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        return (network(x)[:, 0] - x.sum(1)).square().mean()

    return network, loss


def _rates(monkeypatch, tmp_path, config):
    network, loss = _regression()
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    fit(network, loss, config, tmp_path, name="net")
    return np.array(rates)


def test_the_learning_rate_warms_up_falls_and_starts_again(monkeypatch, tmp_path):
    rates = _rates(monkeypatch, tmp_path, CONFIG)
    assert rates[0] == pytest.approx(1e-2 / 4)
    for first, last in ((3, 15), (19, 39)):  # after each warm-up it falls to the end of its leg
        assert (np.diff(rates[first : last + 1]) < 0).all()
        assert rates[last] < 0.04 * 1e-2
    assert rates[16] == pytest.approx(rates[0])
    assert rates[19] > 0.9 * 1e-2


def test_a_fit_that_was_stopped_continues_to_the_same_weights(tmp_path):
    whole, loss = _regression()
    fit(whole, loss, CONFIG, tmp_path / "a", name="net", snapshots={16: tmp_path / "early.safetensors"})
    stopped, loss = _regression()

    def until_25(step: int) -> torch.Tensor:
        if step == 25:
            raise KeyboardInterrupt
        return loss(step)

    with pytest.raises(KeyboardInterrupt):
        fit(stopped, until_25, CONFIG, tmp_path / "b", name="net")
    resumed, loss = _regression()
    fit(resumed, loss, CONFIG, tmp_path / "b", name="net")
    assert torch.equal(resumed.weight, whole.weight)
    assert not torch.equal(load_file(tmp_path / "early.safetensors")["weight"], whole.weight)


def test_rows_follow_their_chances():
    chances = np.array([0.0, 0.25, 0.75])
    rows = np.concatenate([batch_rows(3, 64, step, 5, chances) for step in range(50)])
    assert np.bincount(rows, minlength=3) / len(rows) == pytest.approx(chances, abs=0.03)
    assert (batch_rows(3, 64, 7, 5, chances) == batch_rows(3, 64, 7, 5, chances)).all()


def test_an_array_is_computed_once_and_never_left_half_written(tmp_path):
    calls = []

    def squares(rows):
        calls.append(len(rows))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rows**2

    with pytest.raises(KeyboardInterrupt):
        computed_once(tmp_path / "x.npy", 10, squares, batch_size=4)
    assert not (tmp_path / "x.npy").exists()
    assert (computed_once(tmp_path / "x.npy", 10, squares, batch_size=4) == np.arange(10) ** 2).all()
    computed_once(tmp_path / "x.npy", 10, squares, batch_size=4)
    assert calls == [4, 4, 4, 4, 2]
