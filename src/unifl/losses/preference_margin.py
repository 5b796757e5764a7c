"""Losses on pairs with a margin of their own: MaPO, without a reference, and PSO, whose losers count less.

l is the squared error of a prediction, a mean over all dimensions but the batch, as in `unifl.losses.preference`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from unifl.losses.precision import at_least_float32
from unifl.losses.preference import hinge, logistic

# x / (e^x - 1) = sum B_n x^n / n! with Bernoulli's numbers. Below 1/2 the next term, x^10 / 47900160, is under 3e-11.
_SERIES = ((2, 1 / 12), (4, -1 / 720), (6, 1 / 30240), (8, -1 / 1209600))
_SERIES_BELOW = 0.5


def bounded_score(error: Float[Tensor, " b"], scale: float) -> Float[Tensor, " b"]:
    """A score of an error that has bounds: phi(l) = s l / (exp(s l) - 1), 1 at l = 0 and falling to 0.

    Args:
        error: l, not negative.
        scale: s, above 0.

    Returns:
        Values in [0, 1], higher is better; the slope at l = 0 is -s / 2.

    Reference:
        Hong et al., MaPO, arXiv 2406.06424, eq. 11, where s = 1; the published code takes s = 0.5.
    """
    x = scale * at_least_float32(error)
    small = x < _SERIES_BELOW
    # Each branch gets arguments that it can bear: a NaN in the branch not taken would reach the gradient.
    near = torch.where(small, x, 0)
    far = torch.where(small, 1, x)
    series = 1 - near / 2 + sum(factor * near**power for power, factor in _SERIES)
    return torch.where(small, series, far * torch.exp(-far) / -torch.expm1(-far))


def mapo(
    l_win: Float[Tensor, " b"],
    l_lose: Float[Tensor, " b"],
    *,
    beta: int | float,
    scale: float,
    horizon: int | float,
) -> Float[Tensor, " b"]:
    """The margin of MaPO: -beta log sigmoid(T (phi(l_win) - phi(l_lose))), without the term l_win that goes with it.

    Args:
        l_win: errors of the preferred samples.
        l_lose: errors of the others.
        beta: weight of the margin beside l_win. Published code: 0.1.
        scale: s of `bounded_score`. Published code: 0.5.
        horizon: T. Published code: the number of training timesteps, 1000.

    Returns:
        One loss per pair; beta log 2 where the errors are equal.

    Reference:
        Hong et al., MaPO, arXiv 2406.06424, eq. 9 to 11, and the code that accompanies it. The paper has one number
        for what are three here: its beta is T, with scale 1 and weight 1 / T.
    """
    return beta * logistic(horizon * (bounded_score(l_win, scale) - bounded_score(l_lose, scale)))


def pso(
    l_win: Float[Tensor, " b"],
    l_lose: Float[Tensor, " b"],
    l_win_ref: Float[Tensor, " b"],
    l_lose_ref: Float[Tensor, " b"],
    *,
    beta: int | float,
    negative_weight: float,
) -> Float[Tensor, " b"]:
    """Pairwise sample optimisation: -log sigmoid(beta ((l_win_ref - k l_lose_ref) - (l_win - k l_lose))).

    That is -log sigmoid(beta (rho_win - k rho_lose)): with k = 1 the head of Diffusion-DPO at twice this beta.

    Args:
        l_win: errors of the student on targets.
        l_lose: errors of the student on what the distilled model draws itself.
        l_win_ref: errors of the reference on the same samples, without gradient.
        l_lose_ref: likewise.
        beta: without the factor 1/2 of Diffusion-DPO.
        negative_weight: k in [0, 1]. Published code: 0.1.

    Returns:
        One loss per pair; log 2 where the student is the reference.

    Reference:
        Miao et al., PSO, arXiv 2410.03190, offline, and the personalisation script that accompanies it.
    """
    rho_win = at_least_float32(l_win_ref) - at_least_float32(l_win)
    rho_lose = at_least_float32(l_lose_ref) - at_least_float32(l_lose)
    return logistic(beta * (rho_win - negative_weight * rho_lose))


def pso_hinge(
    l_win: Float[Tensor, " b"],
    l_lose: Float[Tensor, " b"],
    *,
    beta: int | float,
    negative_weight: float,
) -> Float[Tensor, " b"]:
    """Pairwise sample optimisation without a reference: ReLU(1 - beta (k l_lose - l_win)).

    Args:
        l_win: errors of the student on targets.
        l_lose: errors of the student on what the distilled model draws itself.
        beta: without the factor 1/2 of Diffusion-DPO. Published launchers of subject personalisation: 5.
        negative_weight: k in [0, 1]. Published code: 0.1.

    Returns:
        One loss per pair; the term that keeps l_lose small is the caller's.

    Reference:
        Miao et al., PSO, arXiv 2410.03190; `pso_db` in the personalisation script that accompanies it.
    """
    return hinge(beta * (negative_weight * at_least_float32(l_lose) - at_least_float32(l_win)))
