from __future__ import annotations

import numpy as np
import pytest
import torch

from unifl.errors import UserError
from unifl.feedback import Feedback, as_feedback, calibrated, fit_score_map, require_gradient
from unifl.feedback.calibration import ScoreMap, map_of_scores

IMAGES = torch.linspace(0, 1, 5).view(5, 1, 1, 1).expand(5, 3, 2, 2).contiguous()
LIGHT = as_feedback(lambda images, prompts: images.mean((1, 2, 3)), name="light")


def drawn(n, shift, scale, seed=0):
    """Scores of which the chance to win is sigmoid((r - shift) / scale)."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(shift, 2 * scale, n)
    won = generator.random(n) < 1 / (1 + np.exp(-(scores - shift) / scale))
    return scores[won], scores[~won]


def test_the_logistic_map_finds_the_law_that_scores_were_drawn_from():
    found = map_of_scores(*drawn(20_000, shift=21.0, scale=0.7))
    assert found.shift == pytest.approx(21.0, abs=0.05) and found.scale == pytest.approx(0.7, rel=0.05)
    probability = found(torch.tensor([21.0, 21.7]))
    assert probability.tolist() == pytest.approx([0.5, 0.731], abs=0.02)


@pytest.mark.parametrize("kind", ["logistic", "isotonic"])
def test_probabilities_are_those_of_new_pictures(kind):
    found = map_of_scores(*drawn(4000, 0.0, 1.0), kind=kind)
    won, lost = drawn(20_000, 0.0, 1.0, seed=1)
    scores = torch.tensor(np.concatenate([won, lost]))
    happened = torch.cat([torch.ones(len(won)), torch.zeros(len(lost))])
    said = found(scores).float()
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        inside = (said >= low) & (said < low + 0.2)
        assert float((said - happened)[inside].mean()) == pytest.approx(0, abs=0.03)


def test_the_isotonic_map_never_falls_and_pools_as_its_definition_says():
    # sorted by score: won, lost, won, lost, lost, won -> levels 1/2 and 1/3 pool to 2/5, then 1
    won, lost = np.array([1.0, 3, 9] * 4), np.array([2.0, 4, 5] * 4)
    found = map_of_scores(won, lost, kind="isotonic")
    assert found.knots == (3.0, 9.0) and found.levels == pytest.approx((0.4, 1.0))
    assert found(torch.tensor([-9.0, 3.0, 6.0, 99.0])).tolist() == pytest.approx([0.4, 0.4, 0.7, 1.0])
    fine = map_of_scores(*drawn(500, 0.0, 1.0), kind="isotonic")
    assert np.all(np.diff(fine.knots) > 0) and np.all(np.diff(fine.levels) > 0)
    spread = torch.linspace(-4, 4, 200)
    assert torch.all(fine(spread).diff() >= 0)


def test_a_calibrated_feedback_is_a_feedback_with_a_gradient():
    found = calibrated(LIGHT, ScoreMap("logistic", shift=0.5, scale=0.1))
    assert isinstance(found, Feedback) and found.range == (0, 1) and found.name == "light"
    torch.testing.assert_close(
        found(IMAGES, [""] * 5), torch.sigmoid((torch.linspace(0, 1, 5) - 0.5) / 0.1), rtol=1e-5, atol=1e-6
    )
    require_gradient(found, method="ReFL", example=IMAGES[1:2])
    bent = calibrated(LIGHT, ScoreMap("isotonic", knots=(0.2, 0.4, 0.8), levels=(0.1, 0.5, 0.9)))
    leaf = IMAGES.clone().requires_grad_()
    bent(leaf, [""] * 5).sum().backward()
    slopes = leaf.grad.sum((1, 2, 3))  # of the lines between knots; level outside
    torch.testing.assert_close(slopes, torch.tensor([0.0, 2.0, 1.0, 1.0, 0.0]), rtol=1e-4, atol=1e-5)
    one = ScoreMap("isotonic", knots=(0.3,), levels=(0.5,))
    assert one(torch.tensor([0.0, 1.0])).tolist() == [0.5, 0.5]


def test_it_is_fitted_on_pairs():
    better, worse = IMAGES[2:], IMAGES[:3]
    found = fit_score_map(LIGHT, [(better, worse, ["a"] * 3)] * 8)
    assert 0.4 < found.shift < 0.6 and found.scale > 0
    assert np.isfinite(found.scale)  # also where scores separate both, but for one tie
    parted = map_of_scores(np.full(20, 2.0), np.full(20, 1.0))
    assert parted(torch.tensor([1.0, 2.0])).tolist() == pytest.approx([1 / 22, 21 / 22], abs=1e-3)


def test_what_cannot_be_fitted():
    with pytest.raises(UserError, match="from 3 pictures that won and 3 that lost says little; give 10"):
        fit_score_map(LIGHT, [(IMAGES[2:], IMAGES[:3], ["a"] * 3)])
    with pytest.raises(UserError, match="is not finite"):
        map_of_scores(np.full(10, np.nan), np.zeros(10))
    with pytest.raises(UserError, match="see whether pairs or scorer are turned around"):
        map_of_scores(np.zeros(10), np.ones(10))
