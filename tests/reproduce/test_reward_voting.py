"""The experiment on voting, smaller."""

from __future__ import annotations

import numpy as np
import pytest

from unifl.feedback.voting import VotingConfig
from unifl.reproduce.reward_voting import PLAIN, VOTING, Arm, Trial, known_pictures, run_trial
from unifl.world.scenes import sample_scenes


def test_what_is_good_is_known_and_features_are_those_of_the_picture():
    features, truth = known_pictures(30, seed=5, held_out=True)
    again, same = known_pictures(30, seed=5, held_out=True)
    assert (features == again).all() and (truth == same).all() and features.std(0).min() > 0
    assert 0 <= truth.min() < truth.max() <= 1
    # damage is known: before it, these scenes are better
    assert truth.mean() < np.mean([scene.quality for scene in sample_scenes(30, seed=5, held_out=True)])


@pytest.mark.slow
def test_voting_beats_plain_where_fits_are_long_and_labels_wrong():
    """Every fit of the same length, long enough that wrong labels are learnt by heart."""
    arms = {PLAIN: Arm(steps=300), VOTING: Arm(steps=300, voting=VotingConfig(models=6))}
    trial = Trial(pairs=800, pictures=800, held_out=2000, voter_steps=300, arms=arms)
    found = run_trial(trial, [9101, 9102, 9103], world=9900, told=lambda line: None)
    ahead = found["ahead_of_plain"][VOTING]
    assert ahead["value"] > 0 and np.mean([seed > 0 for seed in ahead["seeds"]]) >= 2 / 3
    assert found["accuracy"][PLAIN]["value"] > 0.65  # the heads do learn
    assert all(votes["wrong after a flip, 0 folds"] < 0.2 for votes in found["votes"])
