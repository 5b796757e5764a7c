"""Settings of the over-optimisation monitor: what it looks at, how often, and what ends a run.

monitor:
  every: 50
  rewards: {detail: "world:rewards/detail"}        # none of these may train
  stop:
    high_frequency_ratio: {above: 1.5}
    reward/detail: {fall: 0.1, patience: 3}
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from unifl.assembly.part import Part, as_part
from unifl.errors import UserError, nearest

_OF_PICTURES = ("high_frequency", "high_frequency_ratio", "base_distance")
_OF_SEEDS = "diversity_ratio"  # needs two pictures of a prompt
_OF_REWARDS = ("reward", "reward_change")
_OF_TRAINED = ("trained", "trained_change")
_LIMITS = ("above", "below", "fall")


@dataclass(kw_only=True)
class StopRule:
    """When a metric of the monitor ends the run: beyond one limit, at so many looks in a row."""

    above: float | None = None
    """It exceeds this."""
    below: float | None = None
    """It is less than this."""
    fall: float | None = None
    """It is less than its best look so far, the start included, by more than this."""
    patience: int = 1
    """Looks in a row at which this has to hold."""

    def __post_init__(self) -> None:
        given = [name for name in _LIMITS if getattr(self, name) is not None]
        if len(given) != 1:
            raise UserError(
                f"a stop rule has {' and '.join(given) or 'no limit'}; give exactly one of above, below and fall"
            )
        limit = getattr(self, given[0])
        if not math.isfinite(limit) or (self.fall is not None and limit < 0):
            wanted = "0 or more" if self.fall is not None else "a finite number"
            raise UserError(f"{given[0]} of a stop rule is {limit}; it must be {wanted}")
        if self.patience < 1:
            raise UserError(f"patience of a stop rule is {self.patience}; it must be at least 1")

    def broken_by(self, metric: str, values: Mapping[int, float]) -> str | None:
        """What breaks the rule, in words; None if nothing does.

        Args:
            metric: Name of the metric, for the words.
            values: Its value at every look so far, by training step, in order.
        """
        series = list(values.values())
        best = list(accumulate(series, max))
        recent = list(zip(series, best, strict=True))[-self.patience :]
        if len(recent) < self.patience or not all(self._beyond(value, top) for value, top in recent):
            return None
        step, value, top = list(values)[-1], series[-1], best[-1]
        often = f", at {self.patience} looks in a row" if self.patience > 1 else ""
        if self.fall is not None:
            where = list(values)[series.index(top)]
            return (
                f"{metric} is {value:.4g} at step {step}, more than {self.fall:g} below its best of {top:.4g} at step "
                f"{where}{often}"
            )
        side, limit = ("above", self.above) if self.above is not None else ("below", self.below)
        return f"{metric} is {value:.4g} at step {step}, {side} its limit of {limit:g}{often}"

    def beyond_at_once(self, value: float) -> bool:
        """Whether a single look of this value is beyond the limit, as if it were the first."""
        return self._beyond(value, value)

    def _beyond(self, value: float, best: float) -> bool:
        if self.above is not None:
            return value > self.above
        if self.below is not None:
            return value < self.below
        assert self.fall is not None
        return best - value > self.fall


@dataclass(kw_only=True)
class MonitorConfig:
    """Looks at the model in training beside the model that it started from, on equal prompts and noise."""

    every: int = 50
    """Training steps from one look to the next; the start and the end always have one."""
    prompts: str = "world:validation"
    """As in `data`."""
    num_prompts: int = 16
    """The first so many of them."""
    seeds: int = 2
    """Pictures of each prompt; seed diversity needs two."""
    cut: float = 0.5
    """Frequencies above it are high; a fraction of Nyquist."""
    rewards: dict[str, str | Part] = field(default_factory=dict)
    """Held-out rewards by name, written as in the recipe's `rewards`; none of them may train."""
    stop: dict[str, StopRule] = field(default_factory=dict)
    """What ends the run, by metric (without `monitor/`): the first rule that is broken does. Empty: nothing."""
    batch_size: int = 8
    """Pictures drawn and scored at once."""

    def __post_init__(self) -> None:
        for name in ("every", "num_prompts", "seeds", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"monitor.{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 < self.cut < 1:
            raise UserError(f"monitor.cut is {self.cut}; it must lie between 0 and 1 (1 is Nyquist)")
        for name, given in self.rewards.items():
            if any(part.path == "world:judges/gold" for part in as_part(given).leaves()):
                raise UserError(
                    f"monitor.rewards.{name} is the gold judge, which gives final figures and nothing else; use a "
                    "reward that does not train"
                )

    def check(self, trained: Mapping[str, str | Part]) -> None:
        """Check the monitor against the rewards of its recipe.

        Raises:
            UserError: A held-out reward is one of them, or a stop rule names a metric that the log will not have.
        """
        for name, given in self.rewards.items():
            parts = list(as_part(given).leaves())
            same = [
                other for other, its in trained.items() if any(one in parts for one in as_part(its).leaves())
            ]
            if same:
                alike = (
                    "is the same as" if as_part(trained[same[0]]) == as_part(given) else "shares a part with"
                )
                raise UserError(
                    f"monitor.rewards.{name} {alike} rewards.{same[0]}, which trains; name a reward that does not "
                    "(those that train are logged as trained/<name> anyway)"
                )
        self.check_stop(self.metrics(trained))

    def check_stop(self, known: Sequence[str]) -> None:
        """Check that every stop rule names one of these metrics.

        Raises:
            UserError: One names another, with the nearest.
        """
        for metric in self.stop:
            if metric in known:
                continue
            if metric == _OF_SEEDS:
                raise UserError(f"monitor.stop names {metric}, which needs monitor.seeds of 2 or more")
            guess = nearest(metric, known)
            hint = f"did you mean {guess!r}?" if guess else f"there are {', '.join(known)}"
            raise UserError(f"monitor.stop names {metric!r}, which the monitor does not measure; {hint}")

    def metrics(self, trained: Sequence[str] | Mapping[str, str | Part]) -> list[str]:
        """What will be logged, without the prefix `monitor/`, given the names of the rewards that train."""
        names = [*_OF_PICTURES, *([_OF_SEEDS] if self.seeds > 1 else [])]
        names += [f"{kind}/{name}" for kind in _OF_REWARDS for name in self.rewards]
        return names + [f"{kind}/{name}" for kind in _OF_TRAINED for name in trained]
