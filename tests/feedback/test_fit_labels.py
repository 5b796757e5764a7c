"""What labels may be beside right: ties, soft, voted on; and what else a fit may look at."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from unifl.data.encoded_sample import EncodedSample
from unifl.data.pairs import EncodedPair, Pair
from unifl.errors import UserError
from unifl.feedback import FitConfig, fit_reward
from unifl.feedback.fit import _batch_loss, leads, measure_pairs
from unifl.feedback.fit_loop import Watch
from unifl.feedback.fit_rankings import Ranked, fit_rankings, ranking_loss
from unifl.feedback.reward_models import RewardModelConfig, make_reward_model
from unifl.feedback.voting import Treatment
from unifl.losses.preference import bradley_terry, logistic_with_ties
from unifl.losses.reward_modelling import plackett_luce, spread, two_views
from unifl.process import Flow
from unifl.randomness import Key


class Mean(nn.Module):
    """w times the mean of a picture, and the time if there is one."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(2.0))
        self.asked: list[torch.Tensor] = []

    def forward(self, images, prompts, t=None):
        if t is not None:
            self.asked.append(t)
        return self.w * images.flatten(1).mean(1)


def pair(win, lose, **changes):
    return Pair("x", torch.full((3, 4, 4), win), torch.full((3, 4, 4), lose), **changes)


PAIRS = [pair(0.9, 0.1), pair(0.4, 0.6, strength=0.5), pair(0.5, 0.3, tie=True)]
LEADS = torch.tensor([1.6, -0.4, 0.4])


def loss(config=None, **changes):
    return _batch_loss(Mean(), PAIRS, config or FitConfig(), **changes).item()


def nll(lead):
    return float(nn.functional.softplus(-torch.tensor(lead)))


def test_a_tie_is_won_by_either_side_or_follows_rao_and_kupper():
    halves = (nll(0.4) + nll(-0.4)) / 2
    assert loss() == pytest.approx((nll(1.6) + nll(-0.4) + halves) / 3, rel=1e-5)
    expected = logistic_with_ties(LEADS, torch.tensor([False, False, True]), 5.0).mean()
    assert loss(FitConfig(theta=5.0)) == pytest.approx(expected.item(), rel=1e-5)


def test_soft_labels_count_by_their_strength():
    found = loss(FitConfig(soft_labels=True))
    soft = 0.75 * nll(-0.4) + 0.25 * nll(0.4)
    assert found == pytest.approx((nll(1.6) + soft + (nll(0.4) + nll(-0.4)) / 2) / 3, rel=1e-5)


def test_a_vote_flips_and_gives_margins_but_leaves_ties_alone():
    made = Treatment(np.array([0, 1, 1], np.float32), np.array([0.5, 0.2, 9.0], np.float32), np.ones(3, bool))
    tie = (nll(0.4) + nll(-0.4)) / 2
    found = loss(rows=[0, 1, 2], treatment=made)
    assert found == pytest.approx((nll(1.6 - 0.5) + nll(0.4 - 0.2) + tie) / 3, rel=1e-5)
    again = loss(
        FitConfig(margin=0.1), rows=[1, 0, 2], treatment=made
    )  # rows name the treatment, not the place
    assert again == pytest.approx((nll(-1.6 - 0.3) + nll(-0.4 - 0.6) + tie) / 3, rel=1e-5)


def test_dropped_pairs_are_never_read():
    read = set()

    class Rows(list):
        def __getitem__(self, row):
            read.add(row)
            return super().__getitem__(row)

    rows, keep = Rows([pair(0.9, 0.1)] * 10), np.arange(10) % 2 == 0
    treatment = Treatment(np.zeros(10, np.float32), np.zeros(10, np.float32), keep)
    config = FitConfig(steps=20, batch_size=4, evaluate_every=20)
    fit_reward(Mean(), rows, config=config, held_out=[0], treatment=treatment)
    assert read == {0, 2, 4, 6, 8}
    with pytest.raises(UserError, match="drops every pair"):
        fit_reward(Mean(), rows, config=config, held_out=[0, 2, 4, 6, 8], treatment=treatment)
    with pytest.raises(UserError, match="give it both"):
        fit_reward(Mean(), rows, config=config, held_out=[])
    with pytest.raises(UserError, match="give held_out, too"):
        fit_reward(Mean(), rows, config=config, fitted=[0, 2])


def test_both_of_a_pair_have_the_same_time_and_noise_and_some_are_clean():
    network, latents = Mean(), torch.zeros(4, 2, 2)
    sample = EncodedSample("x", latents, latents)
    key, config = Key(0, 1, tuple(range(64))), FitConfig(clean_share=0.25)
    found = _batch_loss(network, [EncodedPair("x", sample, sample)] * 64, config, process=Flow(), key=key)
    assert found.item() == pytest.approx(np.log(2))  # the same latents, noised alike, are a coin
    first, second = network.asked[0].chunk(2)
    assert torch.equal(first, second) and 6 <= int((first == 0).sum()) <= 26 and len(first.unique()) > 30


def test_the_contrastive_loss_is_added_and_needs_features():
    network = make_reward_model(RewardModelConfig(dropout=0.5)).train()
    pairs = [Pair(str(n), torch.rand(3, 16, 16), torch.rand(3, 16, 16)) for n in range(2)]
    torch.manual_seed(0)
    found = _batch_loss(network, pairs, FitConfig(contrastive=0.5, temperature=0.1))
    torch.manual_seed(0)
    images = torch.stack([one.win for one in pairs] + [one.lose for one in pairs])
    features = network.features(images, ["0", "1"] * 2)
    win, lose = network.judge(network.drop(features)).chunk(2)
    extra = two_views(network.drop(features), network.drop(features), 0.1).mean()
    torch.testing.assert_close(found, bradley_terry(win, lose).mean() + 0.5 * extra)
    with pytest.raises(UserError, match="has no features with dropout"):
        _batch_loss(Mean(), PAIRS, FitConfig(contrastive=0.5))


def test_measurement_counts_ties_as_half_and_leads_are_those_of_labels():
    value, right = measure_pairs(Mean(), PAIRS, [0, 1, 2], 2)
    assert right == pytest.approx(0.5)
    assert value == pytest.approx((nll(1.6) + nll(-0.4) + (nll(0.4) + nll(-0.4)) / 2) / 3, rel=1e-5)
    assert leads(Mean(), PAIRS, [1, 0]).tolist() == pytest.approx([-0.4, 1.6], rel=1e-5)


def test_a_fit_goes_on_from_its_state_to_the_same_weights_dropout_included():
    pairs = [Pair(str(n), torch.rand(3, 16, 16), torch.rand(3, 16, 16)) for n in range(12)]
    config = FitConfig(steps=6, batch_size=4, evaluate_every=2, learning_rate=1e-2, keep_best=False)
    states = []
    whole = make_reward_model(RewardModelConfig(dropout=0.3))
    fit_reward(
        whole, pairs, config=config, held_out=[0, 1], watch=Watch(keep=lambda s: states.append(_copied(s)))
    )
    resumed = make_reward_model(RewardModelConfig(dropout=0.3), seed=9)
    result = fit_reward(resumed, pairs, config=config, held_out=[0, 1], watch=Watch(state=states[1]))
    assert [row.step for row in result.history] == [0, 2, 4, 6]
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def _copied(state):
    import copy

    return copy.deepcopy(state)


def test_rankings_of_different_lengths_and_samples_of_the_policy():
    network = Mean()
    some = [
        Ranked("a", torch.tensor([0.9, 0.2, 0.4])[:, None, None, None].expand(-1, 3, 2, 2)),
        Ranked("b", torch.tensor([0.1, 0.7])[:, None, None, None].expand(-1, 3, 2, 2)),
    ]
    expected = plackett_luce(
        2 * torch.tensor([[0.9, 0.2, 0.4], [0.1, 0.7, 0.0]]), torch.tensor([3, 2])
    ).mean()
    assert ranking_loss(network, some).item() == pytest.approx(expected.item(), rel=1e-5)
    config = FitConfig(steps=5, batch_size=2, evaluate_every=5, keep_best=False)
    asked = []

    def of_policy(step):
        asked.append(step)
        return spread(network.w * torch.tensor([[0.1, 0.5]])).mean()

    fit_rankings(network, some[:1], 1, PAIRS, config=config, spread=of_policy)
    assert asked == [1, 2, 3, 4, 5] and network.w > 2
    with pytest.raises(UserError, match="theta of a fit are for pairs"):
        fit_rankings(Mean(), some, 2, PAIRS, config=FitConfig(theta=5.0))
    with pytest.raises(UserError, match="no rankings"):
        fit_rankings(Mean(), [], 0, PAIRS, config=config)
