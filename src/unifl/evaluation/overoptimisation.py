"""Was a reward followed too far? One rule, asked of the checkpoints of a run and of nothing else.

A score counts as its change from the start, picture by picture, in units of the deviation of the start's own scores, so
that rewards of any scale compare. The *reward* is the mean over the rewards that trained, the *held-out score* the mean
over the judges that did not. Then, with checkpoints c = 0 (the start), 1, ..., m (the end of training):

    best      the c of the highest held-out score
    equal     all c that are no more than one standard error (of the paired difference) below the best (Breiman et al.,
              Classification and Regression Trees, 1984: the one-standard-error rule)
    careful   the one of them that has drifted least
    fall      held-out score of careful - that of m
    rise      reward of m - that of careful

    over-optimised    fall >= FALL, and the intervals of fall and of rise lie above 0
    worse             fall as before, but the reward did not rise with it: training broke down, and not by its reward
    sound             anything else

    keep      careful; of a sound run the last of the equal ones: nothing speaks against its reward, so what that gained
              since decides where the held-out score does not

The two intervals are bootstrap intervals over prompts at the level 1 - (1 - LEVEL) / m, because careful was chosen
among m others. FALL keeps differences that are real but too small to matter from counting.

What the prompts leave open is told too: the *doubt* is the highest upper end among the intervals, at that level, of how
much better another checkpoint may be than the one that is kept. More prompts make it smaller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float, Int

from unifl.errors import UserError
from unifl.metrics.intervals import LEVEL, RESAMPLES, Interval, mean_interval

FALL = 0.1
"""In deviations of the start's scores."""
_PER_CHECKPOINT = (
    250  # resamples, so that a tail of the corrected level holds some, however many checkpoints there are
)
OVER_OPTIMISED, WORSE, SOUND = "over-optimised", "worse", "sound"


@dataclass(frozen=True)
class Evidence:
    """What the rule is asked of.

    Attributes:
        names: Of the start and of all checkpoints, in the order of training.
        reward: Change of the reward, by checkpoint and prompt; 0 for the start.
        held_out: Change of the held-out score, likewise.
        drift: Of each checkpoint from the start; 0 for the start.
    """

    names: tuple[str, ...]
    reward: Float[np.ndarray, "c p"]
    held_out: Float[np.ndarray, "c p"]
    drift: Float[np.ndarray, " c"]


@dataclass(frozen=True)
class Outcome:
    """What the rule says.

    Attributes:
        verdict: `OVER_OPTIMISED`, `WORSE` or `SOUND`.
        keep: Number of the checkpoint to keep; 0 is the start.
        best: Number of the one with the highest held-out score.
        gain: Held-out score of `keep` since the start.
        fall: Held-out score from the careful choice to the end.
        rise: Of the reward, over the same stretch.
        beyond: Held-out score of every checkpoint minus that of `keep`.
        reason: All of that in words.
    """

    verdict: str
    keep: int
    best: int
    gain: Interval
    fall: Interval
    rise: Interval
    beyond: tuple[Interval, ...]
    reason: str


def standardised(
    scores: Sequence[Mapping[str, Float[np.ndarray, " n"]]], samples: int
) -> Float[np.ndarray, "c p"]:
    """Change since the start in deviations of the start's scores, mean over scores and over pictures of a prompt.

    Args:
        scores: By checkpoint, the start first: scores of each picture by name, the samples of a prompt together.
        samples: Pictures of each prompt.

    Raises:
        UserError: There is no score, or one that says the same of every picture of the start.
    """
    if not scores[0]:
        raise UserError("there is no score to compare checkpoints by; name at least one")
    changes = []
    for name, start in scores[0].items():
        unit = start.std()
        if not unit > 0:
            raise UserError(
                f"{name} says the same of every picture of the start, so it has no unit; leave it out"
            )
        changes.append(np.stack([(one[name] - start) / unit for one in scores]))
    return np.mean(changes, axis=0).reshape(len(scores), -1, samples).mean(axis=2)


def decide(evidence: Evidence) -> Outcome:
    """Apply the rule; see the top of this file.

    Raises:
        UserError: There is no checkpoint beside the start.
    """
    last = len(evidence.names) - 1
    if last < 1:
        raise UserError(
            "there is no checkpoint to compare with the start; train with training.checkpointing_steps"
        )
    best = int(evidence.held_out.mean(axis=1).argmax())
    equal = _equal(evidence, best)
    careful = int(equal[evidence.drift[equal].argmin()])
    level = 1 - (1 - LEVEL) / last
    interval = partial(mean_interval, level=level, resamples=max(RESAMPLES, _PER_CHECKPOINT * last))
    fall = interval(evidence.held_out[careful] - evidence.held_out[last])
    rise = interval(evidence.reward[last] - evidence.reward[careful])
    fell = fall.value >= FALL and fall.low > 0
    verdict = SOUND if not fell else OVER_OPTIMISED if rise.low > 0 else WORSE
    keep = int(equal.max()) if verdict == SOUND else careful
    gain = interval(evidence.held_out[keep] - evidence.held_out[0])
    beyond = tuple(interval(one - evidence.held_out[keep]) for one in evidence.held_out)
    reason = _reason(evidence.names, verdict, keep, gain, fall, rise) + _doubt(beyond)
    return Outcome(verdict, keep, best, gain, fall, rise, beyond, reason)


def _equal(evidence: Evidence, best: int) -> Int[np.ndarray, " k"]:
    """Numbers of those that cannot well be told from the best."""
    behind = evidence.held_out[best] - evidence.held_out
    error = behind.std(axis=1, ddof=1) / np.sqrt(behind.shape[1])
    return np.flatnonzero(behind.mean(axis=1) <= error)


def _reason(
    names: Sequence[str], verdict: str, keep: int, gain: Interval, fall: Interval, rise: Interval
) -> str:
    kept = names[keep]
    score = f"its held-out score is {gain.value:+.2f} deviations from the start"
    nothing_better = "no checkpoint is clearly better by what was held out"
    if verdict == SOUND:
        last = len(names) - 1
        place = ", the end of training" if keep == last else ""
        later = "" if keep == last else ", later ones are clearly below the best"
        why = f"{score}{later}, and nothing speaks against what its reward has gained"
        return f"Keep {kept}{place}: {why if keep else f'{nothing_better}, and later ones are worse'}."
    why = f"{score}; no other of less drift is as good" if keep else nothing_better
    after = {
        OVER_OPTIMISED: f"went on to rise by {rise.value:.2f} while the held-out score fell by {fall.value:.2f} "
        f"[{fall.low:.2f}, {fall.high:.2f}]",
        WORSE: f"changed by {rise.value:+.2f} while the held-out score fell by {fall.value:.2f}: training broke down, "
        "and not by following its reward",
    }[verdict]
    return f"Keep {kept}: {why}; from there to {names[-1]} the reward {after}."


def _doubt(beyond: Sequence[Interval]) -> str:
    most = max(one.high for one in beyond)
    return f" No other is more than {most:.2f} better, as far as {beyond[0].n} prompts tell."
