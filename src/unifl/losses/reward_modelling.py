"""Losses that fit a reward model to what people preferred.

A lead is the difference of two rewards, r(preferred) - r(other): log-odds in the model of Bradley and Terry. Plain
pairs and smoothed labels are `bradley_terry` and `logistic` of `unifl.losses.preference`; here is what rewards need
beyond.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unifl.losses.precision import at_least_float32
from unifl.losses.preference import logistic, logistic_with_ties


def labelled_pair(
    lead: Float[Tensor, " b"],
    wrong: Float[Tensor, " b"],
    margin: float | Float[Tensor, " b"] = 0.0,
    *,
    tie: Bool[Tensor, " b"] | None = None,
    theta: float | None = None,
) -> Float[Tensor, " b"]:
    """Negative log-likelihood of labels each of which may be wrong, with a margin and perhaps ties.

    With e the chance that the label is wrong and m the margin,

        L = (1 - e) l(lead - m) + e l(-lead - m),        l(z) = -log sigmoid(z).

    e = 0 is a hard label, e = 1 a flipped one, anything between a soft one. The margin always belongs to the side that
    l calls the winner, so that flipping a pair flips everything. A tie has neither margin nor e; it and the pairs
    beside it then follow Rao and Kupper with theta (`logistic_with_ties`).

    Args:
        lead: r(labelled winner) - r(other).
        wrong: e in [0, 1], one per pair.
        margin: m, in units of the lead, one for all or one per pair: the strength of the pair (D1 below).
        tie: Where nobody was preferred; needs theta.
        theta: Above 1: pairs may be ties. VideoReward takes 5.

    Returns:
        One loss per pair; log 2 at lead 0 without margin and ties.

    Raises:
        UserError: theta is 1 or less.

    Reference:
        Wang et al., Secrets of RLHF in Large Language Models Part II, arXiv 2401.06080, section 2.3: flipped and
        smoothed labels, and -log sigmoid(lead - mu) with mu the strength of the pair.
        Rao and Kupper 1967, and VideoReward, arXiv 2501.13918, for ties.
    """
    lead = at_least_float32(lead)
    ahead, behind = lead - margin, -lead - margin
    if theta is None:
        return (1 - wrong) * logistic(ahead) + wrong * logistic(behind)
    never = torch.zeros_like(lead, dtype=torch.bool)
    decided = (1 - wrong) * logistic_with_ties(ahead, never, theta) + wrong * logistic_with_ties(
        behind, never, theta
    )
    return decided if tie is None else torch.where(tie, logistic_with_ties(lead, ~never, theta), decided)


def plackett_luce(
    rewards: Float[Tensor, "b k"], length: Int64[Tensor, " b"] | None = None
) -> Float[Tensor, " b"]:
    """Negative log-likelihood of a ranking: each place goes to the best of those that are left.

        L = sum_i log sum_{j >= i} exp r_j - r_i

    A ranking of two is Bradley and Terry's pair.

    Args:
        rewards: In the order of the ranking, the best first.
        length: How many of the k entries of each row count; all by default. What follows is ignored.

    Returns:
        One loss per ranking; log k! where all rewards are equal.

    Reference:
        Plackett, Applied Statistics 24 (1975), 193-202; Luce, Individual Choice Behavior, 1959.
    """
    rewards = at_least_float32(rewards)
    places = torch.arange(rewards.shape[1], device=rewards.device)
    counts = places < (rewards.shape[1] if length is None else length[:, None])
    counts = counts.expand(rewards.shape)
    left = rewards.masked_fill(~counts, -torch.inf).flip(1).logcumsumexp(1).flip(1)
    # padding is replaced before the difference: -inf minus a number has no gradient
    return torch.where(counts, left.masked_fill(~counts, 0) - rewards, 0).sum(1)


def two_views(
    first: Float[Tensor, "b d"], second: Float[Tensor, "b d"], temperature: float = 0.05
) -> Float[Tensor, " b"]:
    """SimCSE: of all second views, find the one of the same sample.

        L_i = -log exp(cos(f_i, s_i) / tau) / sum_j exp(cos(f_i, s_j) / tau)

    The views are two passes with other dropout. Beside the loss of pairs it keeps features of samples apart.

    Args:
        first: Features of one pass.
        second: Of the other.
        temperature: tau, above 0.

    Returns:
        One loss per sample; log b where all features are equal.

    Reference:
        Gao et al., SimCSE, arXiv 2104.08821, eq. 1; as an auxiliary loss of reward models in arXiv 2401.06080,
        section 3.1, where features of responses did better than features of differences.
    """
    first, second = (F.normalize(at_least_float32(view), dim=1) for view in (first, second))
    same = torch.arange(len(first), device=first.device)
    return F.cross_entropy(first @ second.T / temperature, same, reduction="none")


def spread(rewards: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """How far a reward model tells apart k samples of one prompt: MetaRM's difference loss, which it raises.

        J = 2 / k^2 sum_{i < j} sigmoid(|r_i - r_j|)

    Args:
        rewards: Of k >= 2 samples of each prompt.

    Returns:
        One value per prompt, between (k - 1) / (2 k) where all are equal and (k - 1) / k.

    Reference:
        Dou et al., MetaRM, arXiv 2405.00438; arXiv 2401.06080, section 4.
    """
    rewards = at_least_float32(rewards)
    k = rewards.shape[1]
    first, second = torch.triu_indices(k, k, offset=1, device=rewards.device)
    return 2 / k**2 * torch.sigmoid((rewards[:, first] - rewards[:, second]).abs()).sum(1)
