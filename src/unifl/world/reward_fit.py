"""Training of the packaged rewards: one Bradley-Terry model per axis around one shared trunk.

They learn from a few thousand noisy pairs of generated pictures, so they can be hacked, as real ones are.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from unifl.data import PreferencePairs
from unifl.feedback.networks import RewardNetwork, SharedTrunk, save_family
from unifl.losses.preference import bradley_terry
from unifl.world.annotator import AXES
from unifl.world.dataset import batch_rows
from unifl.world.fitting import FitConfig, fit

_SEED = 41
_HELD_OUT_PAIRS = 500


def fit_rewards(
    pairs: PreferencePairs, folder: Path, *, steps: int, batch_size: int = 48
) -> dict[str, RewardNetwork]:
    """Fit all axes together and write the family with its accuracies and hinge levels.

    The last 500 picture pairs of every axis are the validation set: a hinge level is the mean reward of its
    preferred pictures (UniFL, 2404.05595, section 5.3).
    """
    torch.manual_seed(_SEED)
    trunk = SharedTrunk()
    networks = {axis: RewardNetwork(trunk) for axis in AXES}
    by_axis = {axis: pairs.of_axis(axis) for axis in AXES}
    number = len(by_axis[AXES[0]]) - _HELD_OUT_PAIRS
    # Every axis compares the same pictures, so one evaluation of the trunk serves all of them.
    images = _pictures(by_axis[AXES[0]])
    signs = {axis: _signs(by_axis[axis], by_axis[AXES[0]]) for axis in AXES}
    prompts = [by_axis[AXES[0]][i].prompt for i in range(number + _HELD_OUT_PAIRS)]

    def margins(rows: list[int]) -> dict[str, tuple[Tensor, Tensor]]:
        both = torch.cat([images[rows, 0], images[rows, 1]])
        words = [prompts[row] for row in rows] * 2
        features = trunk(both)
        out = {}
        for axis, network in networks.items():
            first, second = network.score(features, words).chunk(2)
            better = signs[axis][rows]
            out[axis] = (torch.where(better, first, second), torch.where(better, second, first))
        return out

    def loss(step: int) -> Tensor:
        rows = batch_rows(number, batch_size, step, _SEED).tolist()
        return torch.stack([bradley_terry(*pair).mean() for pair in margins(rows).values()]).mean()

    family = nn.ModuleDict(networks)
    config = FitConfig(steps=steps, learning_rate=1e-3, weight_decay=0.05, ema_decay=0.99)
    fit(family, loss, config, folder, name="rewards")
    family.eval().requires_grad_(False)
    with torch.no_grad():
        held_out = margins(list(range(number, number + _HELD_OUT_PAIRS)))
    numbers = {
        axis: {
            "accuracy": float((win > lose).float().mean()),
            "level": float(win.mean()),
            "std": float(win.std()),
        }
        for axis, (win, lose) in held_out.items()
    }
    save_family(trunk, dict(networks), folder / "final")
    (folder / "final" / "levels.json").write_text(json.dumps(numbers, indent=1))
    return networks


def _pictures(pairs: PreferencePairs) -> Tensor:
    return torch.stack([torch.stack([pairs[i].win, pairs[i].lose]) for i in range(len(pairs))])


def _signs(pairs: PreferencePairs, reference: PreferencePairs) -> Tensor:
    """Whether an axis prefers the same picture of each pair as the reference axis does."""
    return torch.tensor(
        [
            pairs[i].win is reference[i].win or torch.equal(pairs[i].win, reference[i].win)
            for i in range(len(pairs))
        ]
    )
