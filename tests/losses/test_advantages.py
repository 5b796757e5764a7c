from __future__ import annotations

import numpy as np
import pytest
import torch

from unifl.errors import UserError
from unifl.losses.advantages import decoupled_advantage, group_advantage

GROUP = torch.tensor([7, 3, 7, 3, 7, 3])


def by_hand(reward, group, whole=False):
    reward, group = np.asarray(reward, np.float64), np.asarray(group)
    found = np.zeros_like(reward)
    for one in np.unique(group):
        rows = group == one
        spread = reward.std() if whole else reward[rows].std()
        found[rows] = (reward[rows] - reward[rows].mean()) / spread
    return found


def test_each_group_is_centred_and_scaled():
    reward = torch.tensor([1.0, 10, 2, 30, 6, 80])
    torch.testing.assert_close(
        group_advantage(reward, GROUP).double(), torch.tensor(by_hand(reward, GROUP)), rtol=1e-5, atol=1e-6
    )
    whole = group_advantage(reward, GROUP, spread="batch").double()
    torch.testing.assert_close(whole, torch.tensor(by_hand(reward, GROUP, whole=True)), rtol=1e-5, atol=1e-6)
    assert (
        whole[[0, 2, 4]].abs().max() < 0.2 < whole[[1, 3, 5]].abs().max()
    )  # little differs, so it pulls little


def test_where_nothing_differs_there_is_no_advantage():
    reward = torch.tensor([0.1, 1, 0.1, 2, 0.1, 3])  # 0.1 has no exact mean in float32
    found = group_advantage(reward, GROUP)
    assert found[[0, 2, 4]].abs().max() == 0 and found[[1, 3, 5]].abs().max() > 1
    assert group_advantage(torch.full((6,), 0.1), GROUP, spread="batch").abs().max() == 0
    assert group_advantage(torch.zeros(6), GROUP).abs().max() == 0
    assert group_advantage(torch.tensor([5.0]), torch.tensor([0])).tolist() == [0]


def test_scale_and_offset_of_a_reward_do_not_matter_and_no_gradient_passes():
    reward = torch.randn(6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    found = group_advantage(reward, GROUP)
    assert not found.requires_grad
    torch.testing.assert_close(group_advantage(1e4 * reward - 3, GROUP), found, rtol=1e-3, atol=1e-3)


def test_rewards_are_normalised_before_the_sum():
    generator = torch.Generator().manual_seed(1)
    group = torch.arange(4).repeat_interleave(6)
    large, small = 100 * torch.randn(24, generator=generator), 0.01 * torch.randn(24, generator=generator)
    found = decoupled_advantage({"large": large, "small": small}, {"large": 1.0, "small": 1.0}, group)
    total = by_hand(large, group) + by_hand(small, group)
    torch.testing.assert_close(
        found.double(), torch.tensor((total - total.mean()) / total.std()), rtol=1e-4, atol=1e-5
    )
    assert float(found.mean()) == pytest.approx(0, abs=1e-5)
    assert float(found.std(correction=0)) == pytest.approx(1, abs=1e-4)

    def agreement(advantage, reward):
        return float(torch.corrcoef(torch.stack([advantage, reward.double()]))[0, 1])

    both = group_advantage(large + small, group).double()
    assert (
        abs(agreement(both, small)) < 0.4 < agreement(found.double(), small)
    )  # a sum hears the large one alone


def test_different_mixtures_keep_different_advantages():
    """GDPO's example: two rewards in {0, 1}; in the sum, (0, 1) and (0, 2) become one advantage."""
    group = torch.tensor([0, 0, 1, 1])
    first, second = torch.tensor([0.0, 1, 0, 1]), torch.tensor([0.0, 0, 0, 1])
    summed = group_advantage(first + second, group)
    assert summed[1] == summed[3]
    found = decoupled_advantage({"a": first, "b": second}, {"a": 1.0, "b": 1.0}, group)
    assert found[3] > 1.5 * found[1] > 0


def test_names_have_to_match():
    with pytest.raises(UserError, match=r"weights are given for \['b'\] but the rewards are \['a'\]"):
        decoupled_advantage({"a": torch.zeros(2)}, {"b": 1.0}, torch.zeros(2, dtype=torch.long))
