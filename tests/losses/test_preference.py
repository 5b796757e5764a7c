from __future__ import annotations

import math

import pytest
import torch

from unifl.losses.preference import bradley_terry


def test_values_and_gradient():
    win, lose = torch.tensor([1.0, 0.0, -2.0], requires_grad=True), torch.tensor([1.0, 3.0, -5.0])
    loss = bradley_terry(win, lose)
    expected = [math.log(2), math.log1p(math.exp(3)), math.log1p(math.exp(-3))]
    assert loss.tolist() == pytest.approx(expected)
    (slope,) = torch.autograd.grad(loss.sum(), win)  # -(1 - p)
    assert slope.tolist() == pytest.approx([-0.5, -1 / (1 + math.exp(-3)), -1 / (1 + math.exp(3))])


def test_swapping_the_pair_gives_the_probability_of_the_other_outcome():
    a, b = torch.tensor([0.3, -1.2]), torch.tensor([0.9, 4.0])
    torch.testing.assert_close(
        torch.exp(-bradley_terry(a, b)) + torch.exp(-bradley_terry(b, a)), torch.ones(2)
    )


def test_large_differences_stay_finite():
    win = torch.tensor([-500.0, 500.0], requires_grad=True)
    loss = bradley_terry(win, -win.detach())
    assert loss.tolist() == [1000.0, 0.0]
    assert torch.autograd.grad(loss.sum(), win)[0].tolist() == [-1.0, 0.0]


def test_half_precision_scores_are_compared_in_float32():
    loss = bradley_terry(torch.tensor([10.0]).bfloat16(), torch.tensor([0.0]).bfloat16())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log1p(math.exp(-10)), rel=1e-5)
