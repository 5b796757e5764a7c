from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit, logit

from unifl.errors import UserError
from unifl.evaluation import ModelResult, ScoreTable, rank_models
from unifl.evaluation.compare import compare_models, margin_of

TRUE = {"strong@1": 0.8, "middle@1": 0.0, "weak@1": -0.8}


def result(values, metric="pickscore", prompts=None):
    prompts = prompts or tuple(f"prompt {i}" for i in range(len(values)))
    table = ScoreTable(prompts, tuple(range(values.shape[1])), {metric: values})
    return ModelResult({}, table, np.zeros(0), {}, torch.zeros(0, 3, 1, 1), 0.0)


def models(seed=0, n=2000):
    """Gumbel noise on strengths wins as Bradley and Terry say."""
    rng = np.random.default_rng(seed)
    return {name: result(strength + rng.gumbel(size=(n, 2))) for name, strength in TRUE.items()}


def test_known_strengths_are_found_in_their_order():
    ranking = rank_models(models(), metric="pickscore")
    assert ranking.names == tuple(TRUE)
    for name, one in zip(ranking.names, ranking.strengths, strict=True):
        assert one.low < TRUE[name] < one.high and one.high - one.low < 0.2 and one.n == 8000
    assert ranking.beats[0, 2] == pytest.approx(expit(1.6), abs=0.03)


def test_two_models_have_the_log_odds_of_their_win_rate():
    two = {name: found for name, found in models(1).items() if name != "middle@1"}
    ranking = rank_models(two, metric="pickscore")
    row = compare_models(two, [("strong@1", "weak@1")], judge="pickscore", metric="pickscore")[0]
    assert ranking.strengths[0].value - ranking.strengths[1].value == pytest.approx(logit(row.win), abs=1e-6)


def test_ties_have_a_margin_on_scores_of_judges_alone():
    assert margin_of("overall") == margin_of("structure") == margin_of("overall/Animals") == 0.01
    assert margin_of("pickscore") == margin_of("geneval") == 0.0
    near = {"a": result(np.full((4, 1), 0.2)), "b": result(np.full((4, 1), 0.205))}
    assert compare_models(near, [("b", "a")], judge="x", metric="pickscore")[0].win == 1.0
    with pytest.raises(UserError, match="won or lost every comparison"):
        rank_models(near, metric="pickscore")


def test_models_of_other_prompts_are_not_ranked():
    rng = np.random.default_rng(2)
    other = result(rng.normal(size=(2000, 2)), prompts=tuple(f"other {i}" for i in range(2000)))
    with pytest.raises(UserError, match="different prompts"):
        rank_models(models() | {"other@1": other}, metric="pickscore")
    with pytest.raises(UserError, match="no metric 'hps'"):
        rank_models(models(), metric="hps")
