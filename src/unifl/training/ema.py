"""Moving average of the student's weights. The average itself is the role "ema" of the generator."""

from __future__ import annotations


def ema_decay(step: int, decay: float) -> float:
    """Decay of one EMA update, with a warm-up.

    The average starts at the initial weights. A constant decay of 0.999 would still hold a third of them after
    1000 steps; growing the window with the run forgets them.

    Args:
        step: Training step that was just made, from 1.
        decay: The decay that is approached, in (0, 1).

    Returns:
        min(decay, (1 + step) / (10 + step)), the rule of `tf.train.ExponentialMovingAverage(num_updates)`.
    """
    return min(decay, (1 + step) / (10 + step))
