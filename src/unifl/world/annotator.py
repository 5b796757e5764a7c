"""Simulated people: the annotator judge's opinion, with noise, as preference pairs of pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from unifl.data import PreferencePairs
from unifl.world.judges import WorldJudge
from unifl.world.scenes import QUALITIES

OVERALL = "global"
AXES = (*QUALITIES, OVERALL)
NOISE = 0.08  # standard deviation of one person's error on a score in [0, 1]


def overall(scores: dict[str, Tensor]) -> Float[Tensor, " b"]:
    """The overall score: mean of alignment fraction, structure, style and mean quality."""
    return (scores["alignment_fraction"] + scores["structure"] + scores["style"] + scores["quality"]) / 4


def opinions(
    judge: WorldJudge,
    images: Float[Tensor, "b 3 h w"],
    prompts: Sequence[str],
    *,
    seed: int,
    noise: float = NOISE,
) -> dict[str, Float[Tensor, " b"]]:
    """Noisy scores per axis; the same seed gives the same people."""
    scores = judge(images, prompts)
    scores[OVERALL] = overall(scores)
    rng = torch.Generator().manual_seed(seed)
    return {axis: scores[axis] + noise * torch.randn(len(images), generator=rng) for axis in AXES}


def label_pairs(
    judge: WorldJudge,
    first: Float[Tensor, "n 3 h w"],
    second: Float[Tensor, "n 3 h w"],
    prompts: Sequence[str],
    *,
    seed: int,
) -> PreferencePairs:
    """One comparison per axis for every pair of pictures of the same prompt."""
    a, b = opinions(judge, first, prompts, seed=seed), opinions(judge, second, prompts, seed=seed + 1)
    rows = []
    for axis in AXES:
        for i, prompt in enumerate(prompts):
            win, lose = (first[i], second[i]) if a[axis][i] > b[axis][i] else (second[i], first[i])
            rows.append((prompt, win, lose, axis))
    return PreferencePairs(rows)
