from __future__ import annotations

import itertools
import math

import pytest
import torch

from unifl.errors import UserError
from unifl.losses.preference import bradley_terry, logistic, logistic_with_ties
from unifl.losses.reward_modelling import labelled_pair, plackett_luce, spread, two_views

LEADS = [-2.0, -0.3, 0.0, 1.1, 4.0]


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def nll(logit: float) -> float:
    return math.log1p(math.exp(-logit))


@pytest.mark.parametrize(("wrong", "margin"), [(0.0, 0.0), (0.0, 0.8), (1.0, 0.8), (0.3, 0.5)])
def test_a_pair_is_the_expectation_over_its_label(wrong, margin):
    lead = doubles(*LEADS)
    found = labelled_pair(lead, torch.full_like(lead, wrong), margin)
    for loss, d in zip(found.tolist(), LEADS, strict=True):
        expected = (1 - wrong) * nll(d - margin) + wrong * nll(-d - margin)
        assert loss == pytest.approx(expected, rel=1e-12)


def test_hard_labels_are_plain_and_small_errors_are_smoothing():
    lead = doubles(*LEADS)
    torch.testing.assert_close(labelled_pair(lead, torch.zeros_like(lead)), logistic(lead))
    smooth = labelled_pair(lead, torch.full_like(lead, 0.1))
    torch.testing.assert_close(smooth, logistic(lead, label_smoothing=0.1))


def test_a_flipped_pair_is_the_pair_the_other_way_round():
    lead, ones = doubles(*LEADS), torch.ones(5, dtype=torch.float64)
    margin = doubles(0.1, 0.5, 0.0, 2.0, 1.0)
    for theta in (None, 3.0):
        flipped = labelled_pair(lead, ones, margin, theta=theta)
        torch.testing.assert_close(flipped, labelled_pair(-lead, 0 * ones, margin, theta=theta))


def test_a_margin_asks_for_that_much_more():
    lead = torch.zeros(1, requires_grad=True)
    (slope,) = torch.autograd.grad(labelled_pair(lead, torch.zeros(1), 1.5).sum(), lead)
    assert slope.item() == pytest.approx(-1 / (1 + math.exp(-1.5)))  # -(1 - sigmoid(0 - m))


def test_ties_are_those_of_rao_and_kupper_and_have_no_margin():
    lead, tie = doubles(0.4, -1.0, 2.0), torch.tensor([True, False, True])
    found = labelled_pair(lead, doubles(0, 0, 1), doubles(9, 0.5, 9), tie=tie, theta=5.0)
    expected = logistic_with_ties(doubles(0.4, -1.5, 2.0), tie, 5.0)
    torch.testing.assert_close(found, expected)
    with pytest.raises(UserError, match="no probability for ties"):
        labelled_pair(lead, doubles(0, 0, 0), theta=1.0)


def test_probabilities_of_all_rankings_sum_to_one():
    rewards = doubles(0.3, -1.0, 2.0, 0.7)
    orders = torch.tensor(list(itertools.permutations(range(4))))
    assert torch.exp(-plackett_luce(rewards[orders])).sum().item() == pytest.approx(1.0, rel=1e-12)


def test_a_ranking_is_a_chain_of_choices():
    r = [1.0, -0.5, 0.25]
    expected = -sum(math.log(math.exp(r[i]) / sum(math.exp(v) for v in r[i:])) for i in range(3))
    assert plackett_luce(doubles(*r)[None]).item() == pytest.approx(expected, rel=1e-12)
    assert plackett_luce(torch.zeros(1, 5)).item() == pytest.approx(math.log(120), rel=1e-6)


def test_a_ranking_of_two_is_a_pair_and_padding_does_nothing():
    rewards = torch.tensor([[0.5, -0.2, 7.0], [1.0, 3.0, -2.0]], requires_grad=True)
    found = plackett_luce(rewards, torch.tensor([2, 3]))
    assert found[0].item() == pytest.approx(bradley_terry(rewards[:1, 0], rewards[:1, 1]).item(), rel=1e-6)
    (slope,) = torch.autograd.grad(found.sum(), rewards)
    assert slope[0, 2] == 0 and torch.isfinite(slope).all() and slope[1, 2] != 0
    assert slope.sum(1).tolist() == pytest.approx([0, 0], abs=1e-6)  # only differences count


def test_two_views_is_cross_entropy_over_cosines():
    first = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    second = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cosine = [[float(torch.cosine_similarity(a, b, dim=0)) / 0.2 for b in second] for a in first]
    expected = [-math.log(math.exp(row[i]) / sum(map(math.exp, row))) for i, row in enumerate(cosine)]
    assert two_views(first, 3 * second, temperature=0.2).tolist() == pytest.approx(expected, rel=1e-9)
    assert two_views(torch.ones(7, 2), torch.ones(7, 2)).tolist() == pytest.approx([math.log(7)] * 7)


def test_spread_is_the_mean_over_pairs_and_grows_with_differences():
    r = [0.2, 1.0, -0.4]
    expected = 2 / 9 * sum(1 / (1 + math.exp(-abs(a - b))) for a, b in itertools.combinations(r, 2))
    assert spread(doubles(*r)[None]).item() == pytest.approx(expected, rel=1e-12)
    assert spread(torch.zeros(1, 4)).item() == pytest.approx(3 / 8)
    rewards = doubles(*r)[None].requires_grad_()
    (slope,) = torch.autograd.grad(spread(rewards).sum(), rewards)
    assert slope[0, 1] > 0 > slope[0, 2]  # the best goes up, the worst down
