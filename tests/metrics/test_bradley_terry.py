from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from unifl.errors import UserError
from unifl.metrics.bradley_terry import ELO, bradley_terry

NAMES = ("a", "b", "c", "d")
TRUE = np.array([0.9, 0.2, -0.3, -0.8])


def drawn(number, seed, *, ties=0.0):
    """Comparisons of random pairs."""
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 4, number)
    b = (a + rng.integers(1, 4, number)) % 4
    won = rng.random(number) < expit(TRUE[a] - TRUE[b])
    return a, b, np.where(rng.random(number) < ties, 0.5, won)


def by_name(ranking):
    found = dict(zip(ranking.names, ranking.strengths, strict=True))
    return [found[name] for name in NAMES]


def test_two_models_are_the_log_odds_of_their_wins():
    outcome = np.array([1, 1, 1, 0, 0.5])
    found = bradley_terry(("x", "y"), np.zeros(5, int), np.ones(5, int), outcome)
    rate = outcome.mean()
    assert found.strengths[0].value - found.strengths[1].value == pytest.approx(np.log(rate / (1 - rate)))
    assert found.beats[0, 1] == pytest.approx(rate) and found.beats[1, 0] == pytest.approx(1 - rate)
    assert found.strengths[0].n == 5


def test_equals_a_general_optimiser():
    a, b, outcome = drawn(300, 1, ties=0.2)

    def loss(s):
        lead = s[a] - s[b]
        return (
            outcome * np.logaddexp(0, -lead) + (1 - outcome) * np.logaddexp(0, lead)
        ).sum() + s.mean() ** 2

    expected = minimize(loss, np.zeros(4), tol=1e-12).x
    found = by_name(bradley_terry(NAMES, a, b, outcome))
    np.testing.assert_allclose([one.value for one in found], expected - expected.mean(), atol=1e-4)
    # sides are names for the same thing
    swapped = by_name(bradley_terry(NAMES, b, a, 1 - outcome))
    np.testing.assert_allclose([one.value for one in swapped], [one.value for one in found], atol=1e-8)


def test_known_strengths_are_found_and_ordered():
    ranking = bradley_terry(NAMES, *drawn(20_000, 2))
    assert ranking.names == NAMES
    for one, true in zip(ranking.strengths, TRUE, strict=True):
        assert one.low < true < one.high and one.high - one.low < 0.15
    assert pytest.approx(173.72, abs=0.01) == ELO


def test_intervals_cover_as_often_as_they_say():
    """Of 4,000 intervals of 1,000 simulations: 95 % within two points."""
    inside = []
    for seed in range(1000):
        found = by_name(bradley_terry(NAMES, *drawn(400, seed)))
        inside += [one.low <= true <= one.high for one, true in zip(found, TRUE, strict=True)]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)


def test_votes_of_one_prompt_widen_the_interval():
    """Ten people who all see one prompt alike know no more than one of them."""
    a, b, outcome = drawn(200, 3)
    alone = by_name(bradley_terry(NAMES, a, b, outcome))
    many = [np.repeat(x, 10) for x in (a, b, outcome, np.arange(200))]
    together = by_name(bradley_terry(NAMES, *many[:3], units=many[3]))
    naive = by_name(bradley_terry(NAMES, *many[:3]))
    for one, ten, wrong in zip(alone, together, naive, strict=True):
        assert ten.value == pytest.approx(one.value, abs=1e-6)
        assert ten.high - ten.low == pytest.approx(one.high - one.low, rel=1e-3)
        assert wrong.high - wrong.low < 0.5 * (one.high - one.low)


@pytest.mark.parametrize(
    ("sides", "outcome", "message"),
    [
        (([0, 0], [1, 1]), [1, 1], "a won or lost every comparison"),
        (([0, 0, 2, 2], [1, 1, 3, 3]), [1, 0, 1, 0], "no chain of comparisons connects a, b"),
        (([0], [0]), [1], "one with itself"),
        (([0], [4]), [1], "outside 0 to 3"),
        (([0], [1]), [2], "outside 0 \\(lost\\) to 1"),
        (([], []), [], "and some"),
    ],
)
def test_what_has_no_answer_is_refused(sides, outcome, message):
    names = NAMES[:2] if "every" in message else NAMES
    with pytest.raises(UserError, match=message):
        bradley_terry(names, *(np.array(side, int) for side in sides), np.array(outcome))


def test_names_are_told_apart():
    with pytest.raises(UserError, match="two or more models of different names"):
        bradley_terry(("a", "a"), np.array([0]), np.array([1]), np.array([1]))
