from __future__ import annotations

import math

import pytest
import torch

from unifl.errors import UserError
from unifl.losses.preference import (
    beta_over_time,
    bradley_terry,
    hinge,
    ipo,
    logistic,
    logistic_with_ties,
)
from unifl.losses.preference_margin import pso
from unifl.process.prediction import from_x0_eps, to_eps

LOGITS = [-3.0, -0.4, 0.0, 0.7, 5.0]
BETA = 3.0
NEVER = torch.tensor([False])


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def probability(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


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


@pytest.mark.parametrize(("smoothing", "margin"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.57), (0.2, -1.3)])
def test_logistic_is_the_likelihood_of_a_label_that_may_be_wrong(smoothing, margin):
    found = logistic(doubles(*LOGITS), label_smoothing=smoothing, margin=margin)
    for loss, logit in zip(found.tolist(), LOGITS, strict=True):
        p = probability(logit - margin)
        expected = -(1 - smoothing) * math.log(p) - smoothing * math.log(1 - p)
        assert loss == pytest.approx(expected, rel=1e-12)


def test_plain_logistic_is_bradley_terry():
    r_win, r_lose = doubles(0.3, -2.0, 9.0), doubles(0.1, 4.0, -9.0)
    torch.testing.assert_close(logistic(r_win - r_lose), bradley_terry(r_win, r_lose), rtol=1e-9, atol=1e-9)


def test_a_smoothed_label_is_the_mean_over_both_labels():
    logits = doubles(*LOGITS)
    expected = 0.9 * logistic(logits) + 0.1 * logistic(-logits)
    torch.testing.assert_close(logistic(logits, label_smoothing=0.1), expected, rtol=1e-12, atol=0)


def test_the_smoothed_loss_is_least_where_the_winner_is_as_likely_as_the_label_is_right():
    least = doubles(0.4 + math.log(0.9 / 0.1)).requires_grad_()
    logistic(least, label_smoothing=0.1, margin=0.4).sum().backward()
    assert abs(float(least.grad)) < 1e-15


def test_margin_and_smoothing_may_differ_from_pair_to_pair():
    logits, margins, smoothings = doubles(0.5, -0.5), doubles(0.0, 1.0), doubles(0.3, 0.0)
    found = logistic(logits, label_smoothing=smoothings, margin=margins)
    for i in range(2):
        alone = logistic(logits[i : i + 1], label_smoothing=float(smoothings[i]), margin=float(margins[i]))
        assert found[i] == alone[0]


def rao_kupper(r_a: float, r_b: float, theta: float) -> tuple[float, float, float]:
    """Probabilities that a wins, that b wins, and of a tie, as the model states them: by strengths."""
    a, b = math.exp(r_a), math.exp(r_b)
    tie = (theta**2 - 1) * a * b / ((a + theta * b) * (b + theta * a))
    return a / (a + theta * b), b / (b + theta * a), tie


@pytest.mark.parametrize("theta", [1.01, 2.0, 5.0])
@pytest.mark.parametrize(("r_a", "r_b"), [(0.0, 0.0), (1.3, -0.4), (-4.0, 2.0)])
def test_ties_follow_the_model_and_its_three_outcomes_sum_to_one(r_a, r_b, theta):
    logits = doubles(r_a - r_b, r_b - r_a, r_a - r_b)
    loss = logistic_with_ties(logits, torch.tensor([False, False, True]), theta)
    expected = [-math.log(p) for p in rao_kupper(r_a, r_b, theta)]
    assert loss.tolist() == pytest.approx(expected, rel=1e-12)
    assert float(torch.exp(-loss).sum()) == pytest.approx(1, rel=1e-12)


def test_without_ties_the_model_is_logistic():
    logits = doubles(*LOGITS)
    found = logistic_with_ties(logits, torch.zeros(5, dtype=torch.bool), 1 + 1e-9)
    torch.testing.assert_close(found, logistic(logits), rtol=0, atol=2e-9)


def test_a_tie_pulls_the_two_together_whichever_is_ahead():
    logits = doubles(2.0, -2.0, 0.0).requires_grad_()
    logistic_with_ties(logits, torch.ones(3, dtype=torch.bool), 5.0).sum().backward()
    first, second, third = logits.grad.tolist()
    assert first == -second > 0.1 and third == 0.0
    # by hand: -(1 - P(win)) + (1 - P(lose)) with the probabilities of the model
    win, lose, _ = rao_kupper(2.0, 0.0, 5.0)
    assert first == pytest.approx(win - lose, rel=1e-12)


@pytest.mark.parametrize("theta", [1.0, 0.5])
def test_a_theta_without_ties_is_refused(theta):
    with pytest.raises(UserError, match="leaves no probability for ties; choose theta > 1"):
        logistic_with_ties(torch.zeros(1), torch.tensor([True]), theta)


@pytest.mark.parametrize("beta", [0.5, 2500.0])
def test_ipo_has_its_target_where_the_logits_are_a_quarter(beta):
    target = 1 / (2 * beta)
    assert ipo(doubles(target), beta).tolist() == [0.0]
    assert beta / 2 * target == 0.25
    off = doubles(target + 0.3, target - 0.3, 0.0)
    assert ipo(off, beta).tolist() == pytest.approx([0.09, 0.09, target**2], rel=1e-9)
    # the form that the docstring gives for a loss of order 1
    assert (beta**2 * ipo(off, beta)).tolist() == pytest.approx(
        [(beta * float(delta) - 0.5) ** 2 for delta in off], rel=1e-9
    )


def test_hinge_stops_at_the_margin():
    logits = doubles(-1.0, 0.0, 0.5, 1.0, 4.0).requires_grad_()
    loss = hinge(logits)
    assert loss.tolist() == [2.0, 1.0, 0.5, 0.0, 0.0]
    assert torch.autograd.grad(loss.sum(), logits)[0].tolist() == [-1.0, -1.0, -1.0, 0.0, 0.0]


def by_logits(head):
    return lambda win, lose: head(BETA / 2 * (win - lose))


def by_errors(win, lose):
    """PSO takes errors, not rho: those of the student are the reference's minus rho."""
    win_ref, lose_ref = torch.full_like(win, 0.4), torch.full_like(lose, 0.7)
    return pso(win_ref - win, lose_ref - lose, win_ref, lose_ref, beta=BETA / 2, negative_weight=1.0)


WITH_A_REFERENCE = {
    # head of (rho_win, rho_lose), its value at rho = 0, its slope in rho_win there
    "logistic": (by_logits(logistic), math.log(2), -BETA / 4),
    "smoothed": (
        by_logits(lambda logits: logistic(logits, label_smoothing=0.1)),
        math.log(2),
        -0.8 * BETA / 4,
    ),
    "margin": (
        by_logits(lambda logits: logistic(logits, margin=0.5)),
        math.log1p(math.exp(0.5)),
        -BETA / 2 * probability(0.5),
    ),
    "ties": (
        by_logits(lambda logits: logistic_with_ties(logits, NEVER, 5.0)),
        math.log(6),
        -BETA / 2 * 5 / 6,
    ),
    "ipo": (lambda win, lose: ipo(win - lose, BETA), 1 / (4 * BETA**2), -1 / BETA),
    "hinge": (by_logits(hinge), 1.0, -BETA / 2),
    "pso": (by_errors, math.log(2), -BETA / 4),
}


@pytest.mark.parametrize("name", WITH_A_REFERENCE)
def test_a_student_that_is_the_reference_has_the_closed_form_and_swapping_the_pair_mirrors_it(name):
    head, value, slope = WITH_A_REFERENCE[name]
    one, other = (torch.zeros(1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    loss = head(one, other)
    assert loss.item() == pytest.approx(value, rel=1e-12)
    here = torch.autograd.grad(loss.sum(), (one, other))
    assert [float(g) for g in here] == pytest.approx([slope, -slope], rel=1e-12)
    swapped = torch.autograd.grad(head(other, one).sum(), (one, other))
    assert [float(g) for g in swapped] == [-float(g) for g in here]


@pytest.mark.parametrize("name", WITH_A_REFERENCE)
def test_gradients_are_those_of_finite_differences(name):
    head = WITH_A_REFERENCE[name][0]
    for win, lose in ((0.2, -0.1), (-0.3, 0.25)):
        assert torch.autograd.gradcheck(
            head, (doubles(win).requires_grad_(), doubles(lose).requires_grad_()), atol=1e-7, rtol=1e-6
        )


@pytest.mark.parametrize(
    ("head", "slope"),
    [
        (logistic, -1.0),
        (lambda logits: logistic(logits, label_smoothing=0.25), -0.75),
        (lambda logits: logistic_with_ties(logits, torch.tensor([False, False]), 5.0), -1.0),
        (lambda logits: logistic_with_ties(logits, torch.tensor([True, True]), 5.0), -1.0),
        (hinge, -1.0),
    ],
)
def test_logits_of_any_size_leave_loss_and_gradient_finite(head, slope):
    logits = torch.tensor([-1e30, 1e30], requires_grad=True)
    loss = head(logits)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.isfinite().all() and gradient.isfinite().all()
    assert float(gradient[0]) == pytest.approx(slope)


def test_half_precision_logits_become_float32():
    logits = torch.tensor([0.1]).bfloat16()
    for loss in (logistic(logits), hinge(logits), ipo(logits, 1.0), logistic_with_ties(logits, NEVER, 2.0)):
        assert loss.dtype == torch.float32


def test_beta_over_time_turns_errors_of_eps_into_errors_of_the_velocity():
    """On the straight path, whose velocity is eps - x0, at the same x_t."""
    draws = torch.Generator().manual_seed(0)
    x0, eps, error = torch.randn(3, 4, 8, generator=draws, dtype=torch.float64)
    t = doubles(0.1, 0.4, 0.7, 0.95)
    alpha, sigma = 1 - t, t
    x_t = alpha[:, None] * x0 + sigma[:, None] * eps
    raw = from_x0_eps(x0, eps, alpha, sigma, "flow") + error
    in_velocity = error.square().mean(1)
    in_eps = (to_eps(raw, x_t, alpha, sigma, "flow") - eps).square().mean(1)
    torch.testing.assert_close(
        beta_over_time(7.0, t, "quadratic") * in_velocity, 7.0 * in_eps, rtol=1e-10, atol=0
    )
    assert beta_over_time(7, t, "constant").tolist() == [7.0] * 4
