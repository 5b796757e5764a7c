"""Does voting help against wrong labels? Reward heads on pictures of the embedded world whose quality is known.

Scenes are rendered and damaged (`unifl.world.corruption`), so the mean of a picture's four qualities is known exactly.
Pairs prefer the better one, except for a share whose labels are turned around. A head on frozen features (means and
spreads of the packaged rewards' trunk) is fitted to them; what counts is how many clean pairs of other pictures, of
scenes whose combinations occur in no training scene, it orders right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from unifl.data.encoded_sample import EncodedSample
from unifl.data.pairs import EncodedPair
from unifl.feedback.fit import FitConfig, fit_reward, leads
from unifl.feedback.reward_models.model import MlpHead
from unifl.feedback.voting import Strength, Treatment, VotingConfig, treat, vote
from unifl.metrics.intervals import Interval, seed_prompt_interval
from unifl.world.assets import load_rewards
from unifl.world.corruption import damage
from unifl.world.preferences import TIE
from unifl.world.renderer import render
from unifl.world.scenes import sample_scenes

PLAIN, VOTING = "plain", "flip and margin"
_WATCHED = 50  # labelled pairs that a fit must keep back; nothing is chosen by them here
_CHUNK = 200


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to fit the final model.

    Attributes:
        steps: Optimiser steps of the final fit.
        voting: What becomes of pairs, or None to take labels as they are.
        label_noise: Label smoothing, for comparison.
    """

    steps: int
    voting: VotingConfig | None = None
    label_noise: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is fitted and judged.

    Attributes:
        pairs: Labelled pairs of a seed, of `pictures` pictures of its own.
        pictures: See above.
        held_out: Pictures for clean pairs, two each; the same ones for all seeds.
        wrong: Share of labels that are turned around.
        hidden: Width of the head.
        learning_rate: Of every fit.
        voter_steps: Steps of a voting model.
        arms: By name; those that vote share one vote per `folds`.
    """

    pairs: int = 2000
    pictures: int = 2000
    held_out: int = 4000
    wrong: float = 0.2
    hidden: int = 64
    learning_rate: float = 1e-2
    voter_steps: int = 150
    arms: Mapping[str, Arm] = field(default_factory=dict)


class _Head(nn.Module):
    """A head on features that were computed once, standardised."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, hidden: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.head = MlpHead(len(mean), hidden, halves=False)

    def forward(self, features: Float[Tensor, "b c 1 1"], prompts: Sequence[str]) -> Float[Tensor, " b"]:
        return self.head((features.flatten(1) - self.mean) / self.std)


def run_trial(
    trial: Trial, seeds: Sequence[int], *, world: int, told: Callable[[str], None] = print
) -> dict[str, Any]:
    """Fit every arm with every seed.

    Args:
        trial: What.
        seeds: Of pictures, labels and networks.
        world: Seed of the held-out pictures.
        told: Gets a line per seed.

    Returns:
        As JSON: accuracies by arm and seed, and the paired differences from `plain` with intervals over seeds and
        held-out pairs.
    """
    clean, truth = known_pictures(trial.held_out, seed=world, held_out=True)
    first, second = np.arange(0, trial.held_out, 2), np.arange(1, trial.held_out, 2)
    better, worse = _ordered(truth, first, second)
    right: dict[str, list[np.ndarray]] = {name: [] for name in trial.arms}
    votes: list[dict[str, float]] = []
    for seed in seeds:
        scores, said = _one_seed(trial, seed, clean)
        for name, score in scores.items():
            lead = score[better] - score[worse]
            right.setdefault(name, []).append((lead > 0) + 0.5 * (lead == 0))
        votes.append(said)
        told(
            f"seed {seed}: "
            + ", ".join(f"{name} {100 * rows[-1].mean():.1f}" for name, rows in right.items())
        )
    stacked = {name: np.stack(rows).astype(np.float64) for name, rows in right.items()}
    return {
        "trial": asdict(trial),
        "seeds": list(seeds),
        "held_out_pairs": len(better),
        "accuracy": {
            name: {**_plain(seed_prompt_interval(rows)), "seeds": rows.mean(1).round(4).tolist()}
            for name, rows in stacked.items()
        },
        "ahead_of_plain": {
            name: {
                **_plain(seed_prompt_interval(rows - stacked[PLAIN])),
                "seeds": (rows - stacked[PLAIN]).mean(1).round(4).tolist(),
            }
            for name, rows in stacked.items()
            if name != PLAIN
        },
        "votes": votes,
    }


def known_pictures(
    number: int, *, seed: int, held_out: bool
) -> tuple[Float[Tensor, "n d"], Float[np.ndarray, " n"]]:
    """Features of damaged scenes, and how good they are.

    Args:
        number: How many.
        seed: Of scenes and damage.
        held_out: Whether their combinations are those that occur in no training scene.
    """
    trunk = load_rewards()["global"].network.trunk
    assert isinstance(trunk, nn.Module)
    scenes = sample_scenes(number, seed=seed, held_out=held_out)
    rng = torch.Generator().manual_seed(seed)
    features, truth = [], []
    for start in range(0, number, _CHUNK):
        some = scenes[start : start + _CHUNK]
        drawn = torch.tensor([scene.quality for scene in some], dtype=torch.float32)
        images, left, _ = damage(render(some).images, drawn, rng)
        with torch.no_grad():
            maps = trunk(images)
        moments = [part for map_ in maps for part in (map_.mean((2, 3)), map_.var((2, 3)).add(1e-4).sqrt())]
        features.append(torch.cat(moments, 1))
        truth.append(left.mean(1).double().numpy())
    return torch.cat(features), np.concatenate(truth)


def _one_seed(
    trial: Trial, seed: int, clean: Float[Tensor, "m d"]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Scores of the held-out pictures by arm, and what the votes were worth."""
    features, truth = known_pictures(trial.pictures, seed=seed, held_out=False)
    pairs, flipped = _labelled(trial, seed, features, truth)
    shape = (features.mean(0), features.std(0) + 1e-6)
    watched = list(range(trial.pairs, trial.pairs + _WATCHED))

    def fitted(steps: int, number: int, treatment: Treatment | None, noise: float = 0.0) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1000 * seed + number)
            network = _Head(*shape, trial.hidden)
        config = FitConfig(
            steps=steps, learning_rate=trial.learning_rate, evaluate_every=steps, keep_best=False,
            label_noise=noise, seed=1000 * seed + number,
        )  # fmt: skip
        fit_reward(network, pairs, config=config, held_out=watched, treatment=treatment)
        return network

    scores: dict[str, np.ndarray] = {}
    said: dict[str, float] = {}
    strengths: dict[tuple[int, int], Strength] = {}
    for name, arm in trial.arms.items():
        treatment = None
        if arm.voting is not None:
            key = (arm.voting.models, arm.voting.folds)
            if key not in strengths:
                strengths[key], scores[f"mean of {key[0]} voters, {key[1]} folds"] = _vote(
                    trial, arm.voting, fitted, pairs, seed, clean
                )
                against = strengths[key].mean[: trial.pairs] < 0
                said[f"wrong after a flip, {key[1]} folds"] = float(
                    (against != flipped[: trial.pairs]).mean()
                )
            treatment = treat(strengths[key], arm.voting)
        network = fitted(arm.steps, 0, treatment, arm.label_noise)
        scores[name] = _score(network, clean)
    return scores, said


def _vote(
    trial: Trial,
    config: VotingConfig,
    fitted: Callable[[int, int, Treatment | None], nn.Module],
    pairs: Sequence[EncodedPair],
    seed: int,
    clean: Tensor,
) -> tuple[Strength, np.ndarray]:
    """Strength of every pair, and the mean of the voters' scores of held-out pictures."""
    total = np.zeros(len(clean))
    zeros = np.zeros(len(pairs), np.float32)

    def fit_and_judge(model: int, may: Bool[np.ndarray, " n"]) -> np.ndarray:
        network = fitted(trial.voter_steps, 1 + model, Treatment(zeros, zeros, may))
        total[:] += _score(network, clean)
        return leads(network, pairs, range(len(pairs)), batch_size=500)

    return vote(fit_and_judge, np.arange(len(pairs)), config, seed=seed), total


def _labelled(
    trial: Trial, seed: int, features: Tensor, truth: np.ndarray
) -> tuple[list[EncodedPair], Bool[np.ndarray, " n"]]:
    """Pairs as they are labelled, and which labels are wrong; the last ones are those that a fit keeps back."""
    rng, wanted = np.random.default_rng([seed, 1]), trial.pairs + _WATCHED
    drawn = rng.integers(0, trial.pictures, (2, 2 * wanted))
    better, worse = (side[:wanted] for side in _ordered(truth, *drawn))
    flipped = rng.random(wanted) < trial.wrong
    win, lose = np.where(flipped, worse, better), np.where(flipped, better, worse)
    rows = [EncodedSample("", row[:, None, None], torch.zeros(len(row), 1, 1)) for row in features]
    return [EncodedPair("", rows[a], rows[b]) for a, b in zip(win, lose, strict=True)], flipped


def _ordered(
    truth: np.ndarray, first: Int64[np.ndarray, " n"], second: Int64[np.ndarray, " n"]
) -> tuple[np.ndarray, np.ndarray]:
    """Better and worse picture of each pair that is no tie."""
    lead = truth[first] - truth[second]
    decided = np.abs(lead) >= TIE
    a, b, ahead = first[decided], second[decided], lead[decided] > 0
    return np.where(ahead, a, b), np.where(ahead, b, a)


@torch.no_grad()
def _score(network: nn.Module, features: Tensor) -> np.ndarray:
    return network(features[:, :, None, None], [""] * len(features)).double().numpy()


def _plain(interval: Interval) -> dict[str, float]:
    return {"value": round(interval.value, 5), "low": round(interval.low, 5), "high": round(interval.high, 5)}
