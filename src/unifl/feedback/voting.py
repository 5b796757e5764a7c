"""Which pairs are labelled wrong, by the vote of several reward models fitted to the same pairs.

    mu_i = mean over models of d_im,    sd_i their standard deviation,    d = r(labelled winner) - r(other)

mu is the strength of a pair. Where it is below 0 the label is probably wrong, and is flipped, softened or dropped; its
size then is the margin by which the final model is to tell the pair apart (Wang et al., Secrets of RLHF in Large
Language Models Part II, arXiv 2401.06080, section 2).

In the paper every model sees, and votes on, every pair. Models that can learn pairs by heart then agree with wrong
labels, so here they may be fitted crosswise: with `folds`, a model votes only on pairs of prompts that it was not
fitted to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from unifl.errors import UserError
from unifl.randomness import permutation

Wrong = Literal["keep", "flip", "soften", "drop"]


@dataclass(kw_only=True)
class VotingConfig:
    """Who votes, and what becomes of the pairs."""

    models: int = 10
    """How many are fitted, each with a seed of its own."""
    folds: int = 0
    """0: all see and judge all pairs, in an order of their own, as in the paper. k of 2 or more: prompts are cut into k
    parts, a model is fitted to all but one and judges that one; `models` must be a multiple of k."""
    wrong: Wrong = "flip"
    """What becomes of pairs with mu < 0."""
    softness: float = 0.2
    """Chance that a softened label is wrong, in (0, 1/2]."""
    soften_strongest: float = 0.0
    """Share of pairs with the largest mu whose labels are softened, too, in [0, 1): they are learnt by shortcuts."""
    margin: bool = True
    """Whether |mu| is the margin of a pair: a flipped pair has its own, a softened one none."""

    def __post_init__(self) -> None:
        if self.models < 1 or self.folds < 0 or self.folds == 1:
            raise UserError("voting needs at least one model, and folds of 0, or of 2 or more")
        if self.folds and self.models % self.folds:
            raise UserError(
                f"{self.models} models do not go round {self.folds} folds; choose a multiple of the folds"
            )
        if not 0 < self.softness <= 0.5:
            raise UserError(f"softness is {self.softness}; it must be above 0 and at most 0.5")
        if not 0 <= self.soften_strongest < 1:
            raise UserError(f"soften_strongest is {self.soften_strongest}; it must be in [0, 1)")


@dataclass(frozen=True)
class Strength:
    """What models say of n pairs.

    Attributes:
        mean: mu; below 0 where they prefer the other picture.
        std: sd over the models that voted, 0 where one did.
        votes: How many did.
    """

    mean: Float64[np.ndarray, " n"]
    std: Float64[np.ndarray, " n"]
    votes: Int64[np.ndarray, " n"]


@dataclass(frozen=True)
class Treatment:
    """How each pair enters the loss (`unifl.losses.labelled_pair`).

    Attributes:
        wrong: Chance that its label is wrong: 0 as labelled, 1 flipped, between them softened.
        margin: In units of the lead, at least 0.
        keep: Whether it is used at all.
    """

    wrong: Float[np.ndarray, " n"]
    margin: Float[np.ndarray, " n"]
    keep: Bool[np.ndarray, " n"]


def fold_of(
    units: Int64[np.ndarray, " n"], folds: int, *, seed: int, turn: int = 0
) -> Int64[np.ndarray, " n"]:
    """A part in 0, ..., folds - 1 for each pair, equal for pairs of one unit; parts hold about as many units.

    Args:
        units: What belongs together, such as numbers of prompts.
        folds: Parts.
        seed: Of the cut.
        turn: Another turn is another cut.

    Raises:
        UserError: Fewer units than parts.
    """
    _, unit = np.unique(units, return_inverse=True)
    number = int(unit.max()) + 1
    if number < folds:
        raise UserError(f"{number} prompts cannot be cut into {folds} folds; use fewer folds or more prompts")
    part = np.empty(number, np.int64)
    part[permutation(number, seed, "vote/folds", turn).numpy()] = np.arange(number) % folds
    return part[unit]


def vote(
    fit_and_judge: Callable[[int, Bool[np.ndarray, " n"]], Float[np.ndarray, " n"]],
    units: Int64[np.ndarray, " n"],
    config: VotingConfig,
    *,
    seed: int,
) -> Strength:
    """Fit the models one after the other and gather their votes.

    Args:
        fit_and_judge: Called with (number of the model, which pairs it may be fitted to); gives d of all pairs.
        units: Prompts of the pairs, by number.
        config: How many models, and folds.
        seed: Of the folds.
    """
    leads, voted = [], []
    for model in range(config.models):
        judges = np.ones(len(units), bool)
        if config.folds:
            turn, fold = divmod(model, config.folds)
            judges = fold_of(units, config.folds, seed=seed, turn=turn) == fold
        fitted = ~judges if config.folds else judges
        leads.append(np.asarray(fit_and_judge(model, fitted), np.float64))
        voted.append(judges)
    return strength(np.stack(leads), np.stack(voted))


def strength(leads: Float[np.ndarray, "m n"], voted: Bool[np.ndarray, "m n"] | None = None) -> Strength:
    """Mean and standard deviation over models.

    Args:
        leads: d of each model and pair.
        voted: Which of them count; all by default.

    Raises:
        UserError: A pair without a vote, or a vote that is not finite.
    """
    voted = np.ones(leads.shape, bool) if voted is None else voted
    votes = voted.sum(0)
    if not votes.all():
        raise UserError(f"{int((votes == 0).sum())} pairs have no vote; let every pair be judged by a model")
    counted = np.where(voted, leads, 0.0)
    if not np.isfinite(counted).all():
        raise UserError("a voting model gives scores that are not finite; lower its learning rate")
    mean = counted.sum(0) / votes
    squares = np.where(voted, (leads - mean) ** 2, 0.0).sum(0)
    return Strength(mean, np.sqrt(squares / np.maximum(votes - 1, 1)), votes)


def treat(found: Strength, config: VotingConfig) -> Treatment:
    """Labels and margins by strength.

    Pairs with mu = 0 keep their label.

    Args:
        found: Strength of every pair.
        config: What becomes of them.

    Raises:
        UserError: Every pair is dropped.
    """
    below = found.mean < 0
    wrong = np.zeros(len(below), np.float32)
    keep = np.ones(len(below), bool)
    if config.wrong == "flip":
        wrong[below] = 1.0
    elif config.wrong == "soften":
        wrong[below] = config.softness
    elif config.wrong == "drop":
        keep = ~below
    strongest = _largest(found.mean, config.soften_strongest)
    wrong[strongest] = config.softness
    margin = np.zeros(len(below), np.float32)
    if config.margin:
        # a label that is kept against the vote gets no margin: mu speaks against it
        sided = ~strongest & (~below if config.wrong != "flip" else True)
        margin[sided] = np.abs(found.mean[sided])
    if not keep.any():
        raise UserError(
            "the vote is against every label; look at the data, or flip labels in place of dropping"
        )
    return Treatment(wrong, margin, keep)


def _largest(values: Float64[np.ndarray, " n"], share: float) -> Bool[np.ndarray, " n"]:
    chosen = np.zeros(len(values), bool)
    number = round(share * len(values))
    if number:
        chosen[np.argsort(values, kind="stable")[-number:]] = True
    return chosen & (values > 0)
