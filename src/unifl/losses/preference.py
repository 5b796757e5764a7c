"""Losses on pairs of which one sample was preferred.

What a head compares is, for each of the two samples, rho = s_student - s_reference with s = -l, where l is the squared
error of the prediction, a mean over all dimensions but the batch. Without a reference rho = -l of the student. The two
samples of a pair share their time and their noise. Heads return one loss per pair; a method takes their mean.

    delta  = rho_win - rho_lose
    logits = beta / 2 * delta

The scale of beta belongs to that mean: with a sum over D dimensions in its place, the same objective has beta / D.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from unifl.errors import UserError
from unifl.losses.precision import at_least_float32

BetaKind = Literal["constant", "quadratic"]
"""How beta depends on the time."""


def bradley_terry(r_win: Float[Tensor, " b"], r_lose: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Negative log-probability that the winner is preferred: -log sigmoid(r_win - r_lose).

    Args:
        r_win: scores of the preferred samples.
        r_lose: scores of the others.

    Returns:
        One loss per pair; log 2 where the scores are equal.

    Reference:
        UniFL, arXiv 2404.05595, eq. 2.
    """
    return F.softplus(at_least_float32(r_lose) - at_least_float32(r_win))


def logistic(
    logits: Float[Tensor, " b"],
    *,
    label_smoothing: float | Float[Tensor, " b"] = 0.0,
    margin: float | Float[Tensor, " b"] = 0.0,
) -> Float[Tensor, " b"]:
    """Negative log-likelihood of a preference, -log sigmoid(logits): the head of DPO and of its diffusion variants.

    With z = logits - margin and e the label smoothing it is -(1 - e) log sigmoid(z) - e log sigmoid(-z). The margin
    belongs to the probability p = sigmoid(z) of the labelled winner, the smoothing says how often the label is wrong;
    the least loss lies where p = 1 - e, that is at logits = margin + log((1 - e) / e).

    Args:
        logits: beta / 2 * (rho_win - rho_lose).
        label_smoothing: probability in [0, 1/2) that the label is wrong (cDPO), one for all or one per pair.
        margin: by how much the logits have to be ahead, on their scale, one for all or one per pair.

    Returns:
        One loss per pair; log 2 at logits 0 without margin and at any smoothing.

    Reference:
        Wallace et al., Diffusion-DPO, arXiv 2311.12908, eq. 14; its beta T omega, times a sum over D dimensions, is
        beta / (2 D) here.
        Mitchell, A note on DPO with noisy preferences, 2023, eq. 3, for the smoothing.
    """
    z = at_least_float32(logits) - margin
    return -(1 - label_smoothing) * F.logsigmoid(z) - label_smoothing * F.logsigmoid(-z)


def logistic_with_ties(
    logits: Float[Tensor, " b"], tie: Bool[Tensor, " b"], theta: float
) -> Float[Tensor, " b"]:
    """Negative log-likelihood of win or tie in the model of Rao and Kupper, a Bradley-Terry model that knows ties.

    With D the logits,

        P(win) = sigmoid(D - log theta),    P(lose) = sigmoid(-D - log theta),
        P(tie) = (theta^2 - 1) P(win) P(lose),

    which sum to 1. At theta = 1 there are no ties, and P(win) is that of `logistic`.

    Args:
        logits: beta / 2 * (rho_win - rho_lose), or a difference of rewards. Its sign does not matter for a tie.
        tie: where neither sample was preferred.
        theta: above 1; larger means more ties. VideoReward takes 5.

    Raises:
        UserError: if theta is 1 or less.

    Reference:
        Rao and Kupper, Journal of the American Statistical Association 62 (1967), 194-204.
        VideoReward, arXiv 2501.13918, and its published trainer (`btt`), for rewards.
    """
    if theta <= 1:
        raise UserError(
            f"theta is {theta}, which leaves no probability for ties; choose theta > 1, such as 5."
        )
    logits = at_least_float32(logits)
    threshold = math.log(theta)
    win, lose = F.logsigmoid(logits - threshold), F.logsigmoid(-logits - threshold)
    return torch.where(tie, -win - lose - math.log(theta**2 - 1), -win)


def ipo(delta: Float[Tensor, " b"], beta: int | float) -> Float[Tensor, " b"]:
    """Squared distance of the difference from a target: (delta - 1 / (2 beta))^2.

    The gradient vanishes at the target instead of pushing on for ever. The target is in units of delta, so that beta
    keeps the scale that it has in `logistic`: whatever beta is, the logits beta / 2 * delta are to reach 1/4.
    The loss is tiny where beta is large, 1 / (4 beta^2) at delta = 0; times beta^2 it is (beta delta - 1/2)^2.

    Args:
        delta: rho_win - rho_lose, not scaled by beta.
        beta: above 0.

    Reference:
        Azar et al., arXiv 2310.12036, eq. 17 (tau there is beta here), with delta for the difference of log-ratios as
        in diffusers' example of Diffusion-DPO.
    """
    return (at_least_float32(delta) - 1 / (2 * beta)).square()


def hinge(logits: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """How far a pair stays below a margin of 1: ReLU(1 - logits).

    Args:
        logits: beta / 2 * (rho_win - rho_lose).

    Returns:
        One loss per pair; pairs at or beyond the margin give no gradient.

    Reference:
        Zhao et al., SLiC-HF, arXiv 2305.10425; with a reference as in Liu et al., arXiv 2309.06657.
    """
    return torch.relu(1 - at_least_float32(logits))


def beta_over_time(beta: int | float, t: Float[Tensor, " b"], kind: BetaKind) -> Float[Tensor, " b"]:
    """Beta per sample: the constant, or beta (1 - t)^2.

    On the straight path x_t = (1 - t) x0 + t eps an error of the velocity is one of (1 - t) times that in eps, so the
    squared errors of eps, for which Diffusion-DPO is derived, are (1 - t)^2 times those of the velocity. VideoReward
    derives this beta and finds the constant to work better.

    Args:
        beta: for t = 0.
        t: times in [0, 1], 1 is noise.
        kind: "constant" or "quadratic".

    Reference:
        Flow-DPO, arXiv 2501.13918.
    """
    t = at_least_float32(t)
    return torch.full_like(t, beta) if kind == "constant" else beta * (1 - t).square()
