from __future__ import annotations

import math

import pytest
import torch

from unifl.losses.proxy import PAIRS, contrastive, pairwise_agreement, pairwise_fit


def softmax2(a, b):
    return math.exp(a) / (math.exp(a) + math.exp(b))


def kl(q, p):
    return sum(x * math.log(x / y) for x, y in ((q, p), (1 - q, 1 - p)) if x > 0)


def by_hand(proxy, expert, temperature):
    pairs = [(0, 1), (0, 2), (1, 2)]
    p = [softmax2(proxy[i], proxy[j]) for i, j in pairs]
    q = [softmax2(expert[i] / temperature, expert[j] / temperature) for i, j in pairs]
    return q, p


PROXY = torch.tensor([[0.4, -0.3, 1.1], [2.0, 0.5, -0.5]])
EXPERT = torch.tensor([[0.2, 0.3, 0.1], [-1.0, 0.0, 0.25]])


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_the_loss_is_the_sum_of_three_divergences(temperature):
    found = pairwise_fit(PROXY, EXPERT, temperature=temperature)
    for row in range(2):
        q, p = by_hand(PROXY[row].tolist(), EXPERT[row].tolist(), temperature)
        assert float(found[row]) == pytest.approx(sum(kl(x, y) for x, y in zip(q, p, strict=True)), rel=1e-5)


def test_it_is_zero_exactly_where_both_prefer_alike_and_positive_elsewhere():
    assert torch.equal(pairwise_fit(EXPERT / 0.25, EXPERT, temperature=0.25), torch.zeros(2))
    assert torch.equal(pairwise_fit(EXPERT + 7, EXPERT, temperature=1.0).round(decimals=5), torch.zeros(2))
    assert (pairwise_fit(PROXY, EXPERT, temperature=1.0) > 1e-3).all()


def test_the_gradient_raises_what_the_expert_prefers():
    proxy = torch.zeros(1, 3, requires_grad=True)
    pairwise_fit(proxy, torch.tensor([[1.0, 0.0, -1.0]]), temperature=1.0).sum().backward()
    assert float(proxy.grad[0, 0]) < 0 < float(proxy.grad[0, 2])
    assert float(proxy.grad[0, 1]) == pytest.approx(0.0, abs=1e-7)
    # by hand: d KL / d S_i = p - q, summed over the pairs of i
    expected = sum(0.5 - softmax2(1.0, other) for other in (0.0, -1.0))
    assert float(proxy.grad[0, 0]) == pytest.approx(expected, rel=1e-5)


def test_no_gradient_reaches_the_expert():
    expert = EXPERT.clone().requires_grad_()
    pairwise_fit(PROXY.clone().requires_grad_(), expert, temperature=1.0).sum().backward()
    assert expert.grad is None


def test_smoothing_makes_only_beaten_real_latents_undecided():
    expert = torch.tensor([[2.0, -1.0, 1.0]])  # the student beats the real one, the target does not
    proxy = torch.tensor([[0.3, 0.1, -0.2]])
    q, p = by_hand(proxy[0].tolist(), expert[0].tolist(), 1.0)
    q[1] = 0.5
    found = pairwise_fit(proxy, expert, temperature=1.0, smooth_real=True)
    assert float(found[0]) == pytest.approx(sum(kl(x, y) for x, y in zip(q, p, strict=True)), rel=1e-5)
    assert q[2] < 0.5


def test_hard_labels_go_along_pairs_and_let_the_real_latent_win():
    expert = torch.tensor([[2.0, 3.0, 1.0], [2.0, -3.0, 9.0], [1.0, 1.0, 0.0]])
    proxy = torch.tensor([[0.3, 0.1, -0.2], [0.3, 0.1, -0.2], [0.3, 0.1, -0.2]])
    found = pairwise_fit(proxy, expert, temperature=1.0, hard=True)
    log = [math.log(softmax2(a, b)) for a, b in ((0.1, 0.3), (-0.2, 0.3), (-0.2, 0.1))]
    first = math.log(softmax2(0.3, 0.1))
    assert float(found[0]) == pytest.approx(-sum(log), rel=1e-5)
    assert float(found[1]) == pytest.approx(-first - log[1] - log[2], rel=1e-5)
    assert float(found[2]) == pytest.approx(-(first + log[0]) / 2 - log[1] - log[2], rel=1e-5)


def test_a_low_temperature_is_hard_between_the_generated_latents():
    expert = torch.tensor([[0.2, 0.1, 5.0]])
    proxy = torch.tensor([[0.3, 0.9, 0.4]])
    soft = pairwise_fit(proxy, expert, temperature=1e-4)
    assert torch.allclose(soft, pairwise_fit(proxy, expert, temperature=1.0, hard=True), atol=1e-5)


def test_a_saturated_hinge_teaches_indifference():
    rewards = torch.tensor([[2.5, 3.0, 2.0]])
    expert = -torch.relu(2 - rewards)
    assert torch.equal(pairwise_fit(torch.zeros(1, 3), expert, temperature=0.01), torch.zeros(1))
    assert float(pairwise_fit(torch.tensor([[1.0, 0.0, 0.0]]), expert, temperature=0.01)) > 0.1
    assert torch.equal(pairwise_agreement(PROXY[:1], expert), torch.full((1, 3), 0.5))


def test_far_apart_scores_stay_finite():
    proxy = torch.tensor([[300.0, -300.0, 0.0]], requires_grad=True)
    loss = pairwise_fit(proxy, torch.tensor([[-1e4, 1e4, 0.0]]), temperature=0.01)
    assert float(loss.detach()) == pytest.approx(600 + 300 + 300, rel=1e-5)
    loss.sum().backward()
    assert proxy.grad.isfinite().all()


def test_agreement_counts_pairs_and_ties_as_half():
    proxy = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 1.0, 2.0]])
    expert = torch.tensor([[30.0, 20.0, 10.0], [1.0, 2.0, 0.0], [5.0, 4.0, 5.0]])
    expected = [[1.0, 1.0, 1.0], [0.0, 1.0, 1.0], [0.5, 0.5, 1.0]]
    assert pairwise_agreement(proxy, expert).tolist() == expected
    assert PAIRS == ((0, 1), (0, 2), (1, 2))


def test_contrastive_is_the_mean_of_both_directions():
    logits = torch.tensor([[2.0, 0.0], [1.0, 0.5]])
    rows = [-math.log(softmax2(2.0, 0.0)), -math.log(softmax2(0.5, 1.0))]
    columns = [-math.log(softmax2(2.0, 1.0)), -math.log(softmax2(0.5, 0.0))]
    expected = [(a + b) / 2 for a, b in zip(rows, columns, strict=True)]
    assert contrastive(logits).tolist() == pytest.approx(expected, rel=1e-5)
    assert contrastive(torch.zeros(5, 5)).tolist() == pytest.approx([math.log(5)] * 5)


def test_equal_captions_are_no_negatives():
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    same = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    moved = logits.clone()
    moved[0, 1] = moved[1, 0] = 50.0
    assert torch.allclose(contrastive(logits, same), contrastive(moved, same))
    assert not torch.allclose(contrastive(logits), contrastive(moved))
    assert torch.allclose(contrastive(logits, torch.eye(3, dtype=torch.bool)), contrastive(logits))
