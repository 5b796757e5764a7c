"""How much better a picture is than others of its prompt, from one reward or several; numbers without gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unifl.errors import UserError
from unifl.losses.precision import at_least_float32

Spread = Literal["group", "batch"]


def group_advantage(
    reward: Float[Tensor, " b"], group: Int[Tensor, " b"], *, spread: Spread = "group"
) -> Float[Tensor, " b"]:
    """(r - mean over the group) / standard deviation; 0 where nothing differs.

    Args:
        reward: one score per sample, higher is better.
        group: which samples belong together, such as the number of their prompt.
        spread: group: each group has its own standard deviation (GRPO). batch: all share that of the batch
            (Flow-GRPO's `global_std`), so that a group in which little differs pulls little.

    Reference:
        Liu et al., Flow-GRPO, arXiv 2505.05470, eq. 4; its published code for `batch`.
    """
    reward = at_least_float32(reward.detach())
    _, row = torch.unique(group, return_inverse=True)
    size = torch.bincount(row).to(reward)
    centred = reward - (torch.zeros_like(size).index_add(0, row, reward) / size)[row]
    if spread == "group":
        square = (torch.zeros_like(size).index_add(0, row, centred.square()) / size)[row]
    else:
        square = reward.var(correction=0).expand_as(reward)
    # rounding is no difference
    differs = square.sqrt() > 1e-6 * reward.abs().amax()
    return torch.where(differs, centred / square.sqrt().clamp(min=torch.finfo(reward.dtype).tiny), 0.0)


def decoupled_advantage(
    rewards: Mapping[str, Float[Tensor, " b"]],
    weights: Mapping[str, float],
    group: Int[Tensor, " b"],
    *,
    spread: Spread = "group",
) -> Float[Tensor, " b"]:
    """Advantages of each reward by itself, summed with weights, and brought to unit spread over the batch.

        A = (S - mean S) / std S,   S = sum_k w_k (r_k - mean_group r_k) / std r_k

    A sum of rewards before the normalisation leaves the word to the one with the largest spread, and lets different
    mixtures end at one number.

    Args:
        rewards: scores by name.
        weights: by the same names.
        group: see `group_advantage`.
        spread: see `group_advantage`.

    Raises:
        UserError: names that do not match, or none.

    Reference:
        Liu et al., GDPO, arXiv 2601.05242, section 3.
    """
    if rewards.keys() != weights.keys() or not rewards:
        raise UserError(f"weights are given for {sorted(weights)} but the rewards are {sorted(rewards)}")
    total = torch.stack(
        [weights[name] * group_advantage(reward, group, spread=spread) for name, reward in rewards.items()]
    ).sum(0)
    return group_advantage(total, torch.zeros_like(group))
