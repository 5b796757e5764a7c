from __future__ import annotations

import math

import pytest
import torch

from unifl.errors import UserError
from unifl.losses.preference import logistic
from unifl.losses.preference_single import kto, kto_baseline, reward_weights

UTILITIES = {
    "kahneman_tversky": lambda z: 1 / (1 + math.exp(-z)),
    "loss_averse": lambda z: -math.log(1 + math.exp(-z)),
    "risk_seeking": lambda z: math.log(1 + math.exp(z)),
}
RHO = torch.tensor([0.4, -0.2, 0.1, -0.6, 0.0], dtype=torch.float64)
LIKED = torch.tensor([True, True, False, False, True])


@pytest.mark.parametrize("utility", UTILITIES)
def test_kto_is_a_weight_times_one_minus_the_utility_of_the_gain(utility):
    weights = {True: 1.3, False: 0.7}
    found = kto(
        RHO,
        LIKED,
        beta=4,
        baseline=0.1,
        weight_liked=weights[True],
        weight_disliked=weights[False],
        utility=utility,
    )
    for loss, rho, liked in zip(found.tolist(), RHO.tolist(), LIKED.tolist(), strict=True):
        z = (1 if liked else -1) * 4 * (rho - 0.1)
        assert loss == pytest.approx(weights[liked] * (1 - UTILITIES[utility](z)), rel=1e-12)


@pytest.mark.parametrize(
    ("utility", "value", "slope"),
    [
        ("kahneman_tversky", 0.5, 0.25),
        ("loss_averse", 1 + math.log(2), 0.5),
        ("risk_seeking", 1 - math.log(2), 0.5),
    ],
)
def test_a_student_that_is_the_reference(utility, value, slope):
    """Closed forms, and likes pull where dislikes push."""
    rho = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    loss = kto(rho, torch.tensor([True, False]), beta=8.0, baseline=kto_baseline(rho), utility=utility)
    assert loss.tolist() == pytest.approx([value, value], rel=1e-12)
    (gradient,) = torch.autograd.grad(loss.sum(), rho)
    assert gradient.tolist() == pytest.approx([-8 * slope, 8 * slope], rel=1e-12)


def test_like_and_dislike_of_the_same_sample_share_one_weight():
    both = [kto(RHO, torch.full((5,), liked), beta=4.0, baseline=0.0) for liked in (True, False)]
    torch.testing.assert_close(both[0] + both[1], torch.ones(5, dtype=torch.float64), rtol=1e-12, atol=0)


def test_the_loss_averse_utility_is_logistic_on_each_sample():
    found = kto(RHO, LIKED, beta=4.0, baseline=0.0, utility="loss_averse")
    torch.testing.assert_close(found, 1 + logistic(torch.where(LIKED, RHO, -RHO) * 4.0))


@pytest.mark.parametrize("utility", UTILITIES)
def test_gradients_are_those_of_finite_differences(utility):
    rho = RHO.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda rho: kto(rho, LIKED, beta=3.0, baseline=0.2, utility=utility), (rho,), atol=1e-7, rtol=1e-6
    )


@pytest.mark.parametrize("utility", UTILITIES)
def test_gains_of_any_size_leave_loss_and_gradient_finite(utility):
    rho = torch.tensor([1e20, -1e20, 1e20, -1e20], requires_grad=True)
    liked = torch.tensor([True, True, False, False])
    loss = kto(rho, liked, beta=1000, baseline=0.0, utility=utility)
    (slope,) = torch.autograd.grad(loss.sum(), rho)
    assert loss.isfinite().all() and slope.isfinite().all()


def test_the_baseline_is_the_mean_when_that_is_positive_and_has_no_gradient():
    rho = torch.tensor([0.5, -0.1, 0.2], requires_grad=True)
    assert float(kto_baseline(rho)) == pytest.approx(0.2)
    assert float(kto_baseline(-rho)) == 0.0
    assert not kto_baseline(rho).requires_grad
    assert kto_baseline(rho.detach().bfloat16()).dtype == torch.float32


def test_equal_scores_are_plain_fine_tuning():
    losses = torch.tensor([0.2, 0.7, 0.4], requires_grad=True)
    weights = reward_weights(torch.full((3,), 21.7), temperature=0.3, normalise=True)
    assert torch.equal((weights * losses).mean(), losses.mean())
    assert weights.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("temperature", [1, 0.5])
def test_weights_are_exponentials_of_scores(temperature):
    scores = torch.tensor([0.0, 1.0, -2.0, 0.5], dtype=torch.float64)
    plain = reward_weights(scores, temperature=temperature, normalise=False)
    exact = [math.exp(score / temperature) for score in scores.tolist()]
    assert plain.tolist() == pytest.approx(exact, rel=1e-12)
    scaled = reward_weights(scores + 300.0, temperature=temperature, normalise=True)
    assert scaled.tolist() == pytest.approx([4 * value / sum(exact) for value in exact], rel=1e-10)
    assert float(scaled.mean()) == pytest.approx(1.0)


def test_weighted_regression_lands_on_the_distribution_tilted_by_the_reward():
    """The least squares of a constant under p with weights exp(R / T) is the mean of p exp(R / T) / Z."""
    p, x, reward = [0.5, 0.3, 0.2], [1.0, -2.0, 4.0], [0.0, 1.0, 0.4]
    tilted = [share * math.exp(r / 0.7) for share, r in zip(p, reward, strict=True)]
    expected = sum(t * value for t, value in zip(tilted, x, strict=True)) / sum(tilted)
    rows = [i for i, share in enumerate(p) for _ in range(round(10 * share))]
    weights = reward_weights(torch.tensor(reward, dtype=torch.float64)[rows], temperature=0.7, normalise=True)
    data = torch.tensor(x, dtype=torch.float64)[rows]
    guess = torch.zeros((), dtype=torch.float64, requires_grad=True)
    loss = (weights * (guess - data).square()).mean()
    (slope,) = torch.autograd.grad(
        loss, guess
    )  # the loss is guess^2 + slope guess + ..., as the weights' mean is 1
    assert float(-slope / 2) == pytest.approx(expected, rel=1e-12)


def test_scores_of_any_size_leave_weights_finite():
    scores = torch.tensor([-1e6, 0.0, 1e6])
    assert reward_weights(scores, temperature=0.01, normalise=True).tolist() == [0.0, 0.0, 3.0]
    plain = reward_weights(scores, temperature=0.01, normalise=False)
    assert plain.isfinite().all() and plain[:2].tolist() == [0.0, 1.0] and plain[2] > 1e34


def test_weights_are_constants_in_float32():
    weights = reward_weights(
        torch.tensor([1.0, 2.0]).half().requires_grad_(), temperature=1.0, normalise=True
    )
    assert not weights.requires_grad and weights.dtype == torch.float32


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_that_is_none_is_refused(temperature):
    with pytest.raises(UserError, match="temperature of the reward weights is .*choose one above 0"):
        reward_weights(torch.zeros(2), temperature=temperature, normalise=True)
