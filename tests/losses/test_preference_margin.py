from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest
import torch

from unifl.losses.preference import logistic
from unifl.losses.preference_margin import bounded_score, mapo, pso, pso_hinge

POINTS = [0.0, 1e-12, 1e-5, 0.01, 0.3, 0.4999, 0.5, 0.5001, 1.0, 4.0, 30.0, 600.0, 2000.0]


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def by_sixty_digits(x: float) -> tuple[float, float]:
    """x / (e^x - 1) and its slope (e^x - 1 - x e^x) / (e^x - 1)^2."""
    if x == 0:
        return 1.0, -0.5
    with localcontext() as context:
        context.prec = 60
        value = Decimal(x)
        power = value.exp()
        return float(value / (power - 1)), float((power - 1 - value * power) / (power - 1) ** 2)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_the_score_and_its_slope_at_any_error(scale):
    error = doubles(*POINTS).requires_grad_()
    score = bounded_score(error, scale)
    (slope,) = torch.autograd.grad(score.sum(), error)
    expected = [by_sixty_digits(scale * point) for point in POINTS]
    assert score.tolist() == pytest.approx([value for value, _ in expected], rel=1e-10, abs=1e-300)
    assert slope.tolist() == pytest.approx([scale * value for _, value in expected], rel=1e-8, abs=1e-300)


def test_the_score_in_float32():
    error = torch.tensor([*POINTS, 1e30], requires_grad=True)
    score = bounded_score(error, 1.0)
    (slope,) = torch.autograd.grad(score.sum(), error)
    expected = [by_sixty_digits(point) for point in POINTS]
    assert score.tolist() == pytest.approx([value for value, _ in expected] + [0.0], abs=2e-7)
    assert slope.tolist() == pytest.approx([value for _, value in expected] + [0.0], abs=1e-6)


def test_mapo_by_hand():
    l_win, l_lose = doubles(0.2, 0.5, 0.9), doubles(0.5, 0.5, 0.1)
    found = mapo(l_win, l_lose, beta=0.1, scale=0.5, horizon=20)
    for loss, win, lose in zip(found.tolist(), l_win.tolist(), l_lose.tolist(), strict=True):
        ahead = 20 * (by_sixty_digits(0.5 * win)[0] - by_sixty_digits(0.5 * lose)[0])
        assert loss == pytest.approx(0.1 * softplus(-ahead), rel=1e-10)
    assert float(found[1]) == pytest.approx(0.1 * math.log(2))


def test_mapo_with_small_errors_is_preference_optimisation_without_a_reference():
    """phi(l) = 1 - s l / 2 + ..., so the logits are beta / 2 (rho_win - rho_lose) with rho = -l and beta = T s."""
    l_win, l_lose = doubles(2e-7, 5e-7), doubles(4e-7, 1e-7)
    found = mapo(l_win, l_lose, beta=1.0, scale=0.5, horizon=1e7)
    expected = logistic(1e7 * 0.5 / 2 * (-l_win + l_lose))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_mapo_as_the_paper_writes_it():
    """One beta: the margin is 1 / beta times -log sigmoid(beta l / (e^l - 1), winner minus loser)."""
    beta, win, lose = 30.0, 0.3, 0.8
    found = mapo(doubles(win), doubles(lose), beta=1 / beta, scale=1.0, horizon=beta)
    ahead = beta * win / math.expm1(win) - beta * lose / math.expm1(lose)
    assert float(found) == pytest.approx(softplus(-ahead) / beta, rel=1e-10)


def test_mapo_lowers_the_winners_error_and_forgets_about_large_ones():
    l_win, l_lose = doubles(0.3, 80.0).requires_grad_(), doubles(0.3, 80.0).requires_grad_()
    mapo(l_win, l_lose, beta=0.1, scale=0.5, horizon=1000).sum().backward()
    assert float(l_win.grad[0]) > 0 > float(l_lose.grad[0]) == -float(l_win.grad[0])
    assert abs(float(l_win.grad[1])) < 1e-10


def errors() -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    return list(torch.rand(4, 6, generator=draws, dtype=torch.float64))


def test_pso_whose_losers_count_in_full_is_diffusion_dpo_at_twice_the_beta():
    l_win, l_lose, l_win_ref, l_lose_ref = errors()
    found = pso(l_win, l_lose, l_win_ref, l_lose_ref, beta=3.0, negative_weight=1.0)
    rho_win, rho_lose = -l_win + l_win_ref, -l_lose + l_lose_ref
    torch.testing.assert_close(found, logistic(6.0 / 2 * (rho_win - rho_lose)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("k", [0.0, 0.1, 0.6])
def test_pso_by_hand(k):
    draws = errors()
    found = pso(*draws, beta=3.0, negative_weight=k)
    free = pso_hinge(*draws[:2], beta=3.0, negative_weight=k)
    for i in range(6):
        win, lose, win_ref, lose_ref = (float(tensor[i]) for tensor in draws)
        assert float(found[i]) == pytest.approx(softplus(-3 * ((win_ref - k * lose_ref) - (win - k * lose))))
        assert float(free[i]) == pytest.approx(max(0.0, 1 + 3 * (win - k * lose)))


def test_pso_scales_the_gradient_of_losers_by_their_weight():
    l_win, l_lose, *_ = (tensor.requires_grad_() for tensor in errors())
    reference = l_win.detach(), l_lose.detach()
    pso(l_win, l_lose, *reference, beta=4.0, negative_weight=0.25).sum().backward()
    assert l_win.grad.tolist() == pytest.approx([2.0] * 6)
    assert l_lose.grad.tolist() == pytest.approx([-0.5] * 6)


def against_a_reference(win, lose):
    references = torch.full_like(win, 0.4), torch.full_like(lose, 0.7)
    return pso(win, lose, *references, beta=2, negative_weight=0.3)


@pytest.mark.parametrize(
    "head",
    [
        lambda win, lose: mapo(win, lose, beta=0.1, scale=0.5, horizon=5),
        against_a_reference,
        lambda win, lose: pso_hinge(win, lose, beta=2, negative_weight=0.3),
    ],
)
def test_gradients_are_those_of_finite_differences_and_stay_finite(head):
    win, lose = doubles(0.2, 0.6, 3.0).requires_grad_(), doubles(0.1, 1.4, 0.55).requires_grad_()
    assert torch.autograd.gradcheck(head, (win, lose), atol=1e-7, rtol=1e-6)
    large = torch.tensor([1e20, 0.0], requires_grad=True)
    loss = head(large, large.detach().flip(0))
    (slope,) = torch.autograd.grad(loss.sum(), large)
    assert loss.isfinite().all() and slope.isfinite().all() and loss.dtype == torch.float32
