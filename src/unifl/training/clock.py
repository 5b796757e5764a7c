"""How long the rest of a run will take."""

from __future__ import annotations

from collections import deque
from statistics import fmean


class Clock:
    """Durations of past steps, checkpoints and previews, and what they say about the rest.

    The mean is used, not the median: steps of one run differ in length (a rollout of a random number of
    evaluations), and what counts is their sum. The first step pays for warm-up and is left out.
    """

    def __init__(self, *, total_steps: int, checkpointing_steps: int, preview_steps: int) -> None:
        """Take the beat of the run: its last step, and how often files are written (0: never)."""
        self._total = total_steps
        self._beats = {"checkpoint": checkpointing_steps, "preview": preview_steps}
        self._steps: deque[float] = deque(maxlen=200)
        self._extras: dict[str, list[float]] = {"checkpoint": [], "preview": []}
        self._warm = False

    def add_step(self, seconds: float) -> None:
        """Record the duration of a training step alone."""
        if self._warm:
            self._steps.append(seconds)
        self._warm = True

    def add_extra(self, kind: str, seconds: float) -> None:
        """Record the duration of a "checkpoint" or a "preview"."""
        self._extras[kind].append(seconds)

    def remaining(self, step: int) -> float | None:
        """Seconds from the end of `step` to the end of the run; None before there is anything to go by."""
        if not self._steps:
            return None
        seconds = (self._total - step) * fmean(self._steps)
        for kind, every in self._beats.items():
            if every and self._extras[kind]:
                seconds += (self._total // every - step // every) * fmean(self._extras[kind])
        return seconds


def readable_seconds(seconds: float) -> str:
    """A duration such as "42 s", "12 min 5 s" or "3 h 20 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
