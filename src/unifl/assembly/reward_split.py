"""Which pairs a reward model is fitted to, which say where the fit ends, and which measure it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from unifl.assembly.reward_train_config import RewardTrainConfig
from unifl.data.preferences import PreferenceIndex
from unifl.errors import UserError
from unifl.feedback.fit import split_by_unit


@dataclass(frozen=True)
class Split:
    """Rows of pairs; a prompt is in one part only.

    Attributes:
        fitted: Those that are learnt from.
        ends: Those by which the course of the fit is measured and, with `keep_best`, its end is chosen.
        measured: Those on which the accuracy is told. They are `ends`, too, where nothing is chosen on these.
    """

    fitted: Int64[np.ndarray, " m"]
    ends: Int64[np.ndarray, " e"]
    measured: Int64[np.ndarray, " h"]


def split_pairs(index: PreferenceIndex, config: RewardTrainConfig) -> Split:
    """Keep a share of the prompts back; where some of them choose, half of them choose and the others measure.

    Args:
        index: All pairs.
        config: Its `fit` has the share and the seed.

    Raises:
        UserError: Too few prompts, or a part that holds nothing but ties.
    """
    prompts, fit = index.prompts.codes, config.fit
    held_out = np.array(split_by_unit(prompts, fit.held_out, seed=fit.seed))
    fitted = np.setdiff1d(np.arange(len(prompts)), held_out)
    _decided(index, fitted, "be learnt from")
    if not _chooses(config):
        _decided(index, held_out, "measure")
        return Split(fitted, held_out, held_out)
    number, total = len(np.unique(prompts[held_out])), len(np.unique(prompts))
    if number < 2:
        raise UserError(
            f"{number} of {total} prompts is held out, and it cannot both end the fit and measure it; raise "
            "fit.held_out, or set fit.keep_best=false (and voter_fit.keep_best=false, where there is a voter_fit)"
        )
    half = np.array(split_by_unit(prompts[held_out], 0.5, seed=fit.seed))
    measured, ends = held_out[half], np.delete(held_out, half)
    _decided(index, ends, "end the fit")
    _decided(index, measured, "measure")
    return Split(fitted, ends, measured)


def _chooses(config: RewardTrainConfig) -> bool:
    """Whether the model, or a voter that labels its pairs, ends where it is best on held-out pairs."""
    voter = config.voter_fit or config.fit
    return config.fit.keep_best or (config.voting is not None and voter.keep_best)


def _decided(index: PreferenceIndex, rows: Int64[np.ndarray, " m"], what: str) -> None:
    if index.tie[rows].all():
        raise UserError(
            f"every pair that is to {what} is a tie, which says nothing; take another fit.seed or fit.held_out, or "
            "more pairs"
        )
