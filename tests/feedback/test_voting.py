from __future__ import annotations

import numpy as np
import pytest

from unifl.errors import UserError
from unifl.feedback.voting import Strength, VotingConfig, fold_of, strength, treat, vote


def found(*mean: float) -> Strength:
    values = np.array(mean)
    return Strength(values, np.zeros(len(values)), np.ones(len(values), np.int64))


def test_strength_is_mean_and_deviation_of_those_who_voted():
    leads = np.array([[1.0, -2.0], [3.0, 5.0], [5.0, 0.0]])
    both = strength(leads)
    assert both.mean.tolist() == [3.0, 1.0] and both.votes.tolist() == [3, 3]
    np.testing.assert_allclose(both.std, leads.std(0, ddof=1))
    some = strength(leads, np.array([[True, True], [True, False], [False, True]]))
    assert some.mean.tolist() == [2.0, -1.0] and some.votes.tolist() == [2, 2]
    np.testing.assert_allclose(some.std, [np.std([1, 3], ddof=1), np.std([-2, 0], ddof=1)])
    assert strength(leads[:1]).std.tolist() == [0.0, 0.0]


def test_what_nobody_judged_or_nobody_can_read_is_an_error():
    with pytest.raises(UserError, match="1 pairs have no vote"):
        strength(np.ones((2, 2)), np.array([[True, False], [True, False]]))
    with pytest.raises(UserError, match="not finite"):
        strength(np.array([[np.nan, 1.0]]))


def test_folds_keep_prompts_together_and_cut_evenly():
    units = np.repeat(np.arange(20), 3) * 7
    folds = fold_of(units, 4, seed=0)
    assert all(len(set(folds[units == unit])) == 1 for unit in units)
    assert np.bincount(folds).tolist() == [15] * 4
    assert (folds != fold_of(units, 4, seed=0, turn=1)).any() and (folds == fold_of(units, 4, seed=0)).all()
    with pytest.raises(UserError, match="2 prompts cannot be cut into 3 folds"):
        fold_of(np.array([1, 1, 5]), 3, seed=0)


def test_crosswise_models_never_judge_what_they_were_fitted_to():
    units, fitted_to = np.repeat(np.arange(10), 2), []

    def fit_and_judge(model, fitted):
        fitted_to.append(fitted)
        return np.where(fitted, 100.0, float(model))  # a vote on its own pairs would show

    said = vote(fit_and_judge, units, VotingConfig(models=6, folds=2), seed=1)
    assert said.votes.tolist() == [3] * 20 and said.mean.max() < 6
    assert all(np.array_equal(a, ~b) for a, b in zip(fitted_to[::2], fitted_to[1::2], strict=True))
    said = vote(fit_and_judge, units, VotingConfig(models=3), seed=1)  # as in the paper
    assert said.votes.tolist() == [3] * 20 and said.mean.tolist() == [100.0] * 20


def test_flips_turn_label_and_margin():
    made = treat(found(-2.0, -0.1, 0.0, 0.5, 3.0), VotingConfig())
    assert made.wrong.tolist() == [1, 1, 0, 0, 0] and made.keep.all()
    assert made.margin.tolist() == pytest.approx([2.0, 0.1, 0.0, 0.5, 3.0])


def test_softened_labels_have_no_margin_and_the_strongest_may_be_softened():
    config = VotingConfig(wrong="soften", softness=0.3, soften_strongest=0.25)
    made = treat(found(-2.0, 3.0, 0.2, 0.5), config)
    assert made.wrong.tolist() == pytest.approx([0.3, 0.3, 0, 0])
    assert made.margin.tolist() == pytest.approx([0, 0, 0.2, 0.5])
    assert treat(found(-2.0, 3.0), VotingConfig(wrong="keep", margin=False)).wrong.tolist() == [0, 0]


def test_pairs_can_be_dropped_but_not_all():
    assert treat(found(-1.0, 1.0), VotingConfig(wrong="drop")).keep.tolist() == [False, True]
    with pytest.raises(UserError, match="against every label"):
        treat(found(-1.0, -2.0), VotingConfig(wrong="drop"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": 0}, "at least one model"),
        ({"folds": 1}, "folds of 0, or of 2"),
        ({"models": 5, "folds": 2}, "multiple of the folds"),
        ({"softness": 0.0}, "softness is 0.0"),
        ({"soften_strongest": 1.0}, "soften_strongest is 1.0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(UserError, match=message):
        VotingConfig(**settings)
