"""The rule on made-up checkpoints in which the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from unifl.errors import UserError
from unifl.evaluation.overoptimisation import (
    FALL,
    OVER_OPTIMISED,
    SOUND,
    WORSE,
    Evidence,
    decide,
    standardised,
)

PROMPTS = 64


def _evidence(reward, held_out, *, noise=0.3, seed=0, drift=None, prompts=PROMPTS):
    """Prompts around given means; the start is 0 without noise, as it is compared with itself."""
    rng = np.random.default_rng(seed)
    curves = []
    for means in (reward, held_out):
        values = np.asarray(means)[:, None] + noise * rng.normal(size=(len(means), prompts))
        values[0] = 0.0
        curves.append(values)
    count = len(reward)
    names = ("the start", *(f"checkpoint-{10 * k}" for k in range(1, count)))
    return Evidence(names, *curves, np.arange(count, dtype=float) if drift is None else np.array(drift))


def test_a_reward_that_rises_while_the_held_out_score_falls_is_over_optimised():
    outcome = decide(_evidence([0, 1, 2, 3], [0, 0.6, 0.3, -0.5]))
    assert outcome.verdict == OVER_OPTIMISED and outcome.keep == outcome.best == 1
    assert outcome.fall.value == pytest.approx(1.1, abs=0.15) and outcome.rise.value == pytest.approx(
        2, abs=0.15
    )
    assert outcome.gain.value == pytest.approx(0.6, abs=0.15)
    assert outcome.reason.startswith("Keep checkpoint-10: its held-out score is +0.")
    assert "to checkpoint-30 the reward went on to rise by" in outcome.reason


def test_a_fall_from_the_very_start_keeps_the_start():
    outcome = decide(_evidence([0, 1, 2, 3], [0, -0.3, -0.6, -0.9]))
    assert outcome.verdict == OVER_OPTIMISED and outcome.keep == 0 and outcome.gain.value == 0
    assert outcome.reason.startswith("Keep the start: no checkpoint is clearly better")


def test_a_reward_at_its_top_that_still_costs_is_over_optimised():
    """It rose fast and stayed; from the start, which is best, it has risen."""
    assert decide(_evidence([0, 3, 3, 3], [0, -0.4, -0.8, -1.2])).verdict == OVER_OPTIMISED


def test_both_rising_is_sound_and_keeps_the_end():
    outcome = decide(_evidence([0, 1, 2, 3], [0, 0.4, 0.8, 1.2]))
    assert outcome.verdict == SOUND and outcome.keep == 3
    assert outcome.reason == (
        f"Keep checkpoint-30, the end of training: its held-out score is {outcome.gain.value:+.2f} deviations from the "
        "start, and nothing speaks against what its reward has gained. No other is more than 0.00 better, as far as 64 "
        "prompts tell."
    )


def test_what_prompts_leave_open_shrinks_with_their_number():
    """The start and the kept one differ by noise of 1, so that n prompts leave z / sqrt(n) open."""
    few, many = (
        decide(_evidence([0, 1, 2], [0, 0, -1], noise=1.0, seed=1, prompts=prompts)) for prompts in (64, 6400)
    )
    for outcome, prompts in ((few, 64), (many, 6400)):
        assert outcome.beyond[outcome.keep].value == outcome.beyond[outcome.keep].high == 0
        other = outcome.beyond[1 - outcome.keep]
        assert (other.high - other.low) / 2 == pytest.approx(norm.ppf(1 - 0.025 / 2) / prompts**0.5, rel=0.15)
        assert (
            f"No other is more than {max(0, other.high):.2f} better, as far as {prompts} prompts tell."
            in outcome.reason
        )


def test_a_real_fall_that_is_too_small_to_matter_is_sound():
    outcome = decide(_evidence([0, 1, 2], [0, 0.5, 0.5 - 0.8 * FALL], noise=0.01))
    assert outcome.fall.low > 0 and outcome.fall.value < FALL and outcome.verdict == SOUND


def test_a_large_fall_that_could_be_chance_is_sound():
    outcome = decide(_evidence([0, 1, 2], [0, 0.5, 0.3], noise=4.0, seed=3))
    assert outcome.fall.low < 0 < outcome.fall.value and outcome.verdict == SOUND


def test_both_falling_is_not_the_reward():
    outcome = decide(_evidence([0, 1, -2], [0, 0.6, -1]))
    assert outcome.verdict == WORSE and outcome.keep == 1 and "training broke down" in outcome.reason


def test_of_equally_good_checkpoints_of_a_hacked_run_the_one_that_drifted_least_is_kept():
    evidence = _evidence([0, 1, 2, 3, 4], [0, 0.5, 0.5, 0.5, -1], drift=[0, 3.0, 1.0, 2.0, 4.0], noise=0.0)
    outcome = decide(evidence)
    assert outcome.verdict == OVER_OPTIMISED and outcome.keep == 2
    assert outcome.fall.value == pytest.approx(1.5) and outcome.rise.value == pytest.approx(2)


def test_of_equally_good_checkpoints_of_a_sound_run_the_last_is_kept():
    flat = _evidence([0, 1, 2, 3], [0, 0.5, 0.5, 0.5], drift=[0, 3.0, 1.0, 2.0], noise=0.0)
    assert decide(flat).keep == 3
    noisy = _evidence([0, 1, 2, 3], [0, 0.5, 0.5, 0.5], drift=[0, 3.0, 1.0, 2.0])
    outcome = decide(noisy)
    behind = noisy.held_out[outcome.best] - noisy.held_out[outcome.keep]
    assert outcome.keep >= outcome.best and behind.mean() <= behind.std(ddof=1) / np.sqrt(PROMPTS)
    fell_a_little = _evidence([0, 1, 2, 3], [0, 0.5, 0.5, 0.5 - 0.8 * FALL], noise=0.01)
    assert decide(fell_a_little).verdict == SOUND and decide(fell_a_little).keep == 2
    assert "checkpoint-20: its held-out score" in decide(fell_a_little).reason
    assert "later ones are clearly below the best" in decide(fell_a_little).reason
    start = decide(_evidence([0, 1, 2], [0, -0.5 * FALL, -0.8 * FALL], noise=0.01))
    assert start.verdict == SOUND and start.keep == 0
    assert start.reason.startswith(
        "Keep the start: no checkpoint is clearly better by what was held out, and later ones are worse."
    )


@pytest.mark.parametrize("checkpoints", [2, 8, 60])
def test_noise_alone_rarely_fires(checkpoints):
    """The reward rises for certain, what is held out only jitters, by more than FALL: 5 % of runs at most."""
    verdicts = [
        decide(
            _evidence(np.linspace(0, 3, checkpoints + 1), np.zeros(checkpoints + 1), noise=1.5, seed=seed)
        ).verdict
        for seed in range(200)
    ]
    assert verdicts.count(OVER_OPTIMISED) <= 10


def test_without_a_checkpoint_or_a_score_there_is_nothing_to_say():
    with pytest.raises(UserError, match="no checkpoint to compare with the start"):
        decide(_evidence([0], [0]))
    with pytest.raises(UserError, match="no score to compare checkpoints by"):
        standardised([{}, {}], 2)
    with pytest.raises(UserError, match="mute says the same of every picture of the start"):
        standardised([{"mute": np.ones(4)}, {"mute": np.ones(4)}], 2)


def test_scores_of_any_scale_count_alike_and_samples_belong_to_their_prompt():
    rng = np.random.default_rng(0)
    small, moved = rng.normal(size=8), rng.normal(size=8)
    unit = small.std()
    start, now = {"a": small, "b": 100 * small + 7}, {"a": moved, "b": 100 * small + 7}
    found = standardised([start, now], 2)
    assert found.shape == (2, 4) and np.all(found[0] == 0)
    wanted = ((moved - small) / unit / 2).reshape(4, 2).mean(axis=1)  # b did not change
    np.testing.assert_allclose(found[1], wanted)
    scaled = {"a": moved, "b": 100 * moved + 7}
    np.testing.assert_allclose(standardised([start, scaled], 2)[1], 2 * wanted)
