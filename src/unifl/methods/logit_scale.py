"""Beta, and what it makes of the logits of a preference loss.

A published beta belongs to one reduction, one space and one model. What carries over is the scale of the logits: near 0
the loss is a plain difference that no pair ever leaves, far from 0 most pairs have no gradient left.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from unifl.errors import UserError
from unifl.methods.running import StepMean

Beta = float | Literal["auto"]

BUCKETS = 4
"""Equal parts of [0, 1] in which logits are logged by time."""
_PATIENCE = 50
"""Training steps before anything is said about the scale."""
_FLAT, _SATURATED = 1e-3, 10.0
"""Mean |logit| below which the loss is linear, and above which it has hardly a gradient left."""


@dataclass(kw_only=True)
class LogitConfig:
    """What `beta: auto` aims at."""

    scale: float = 0.5
    """Mean |logit| at the end of the first steps."""
    steps: int = 20
    """Training steps until beta stays as it is."""
    initial: float = 5000.0
    """Beta of the first step, in which all logits are 0; the gradient at 0 stays that of this beta."""

    def __post_init__(self) -> None:
        for name in ("scale", "initial"):
            if not getattr(self, name) > 0:
                raise UserError(f"auto.{name} is {getattr(self, name)}; it must be above 0")
        if self.steps < 1:
            raise UserError(f"auto.steps is {self.steps}; it must be at least 1")


class LogitScale:
    """Settles beta and watches the logits.

    logit = beta / 2 * delta. With `beta: auto`, beta is 2 scale / mean |delta| of the training step before, until it is
    kept after `config.steps`; the loss is then divided by beta / initial, which leaves the size of the gradient at
    delta = 0, and so the moments of an optimiser, as they were.

    Args:
        beta: A number, or "auto".
        config: What "auto" aims at.
    """

    def __init__(self, beta: Beta, config: LogitConfig) -> None:
        if beta != "auto" and not beta > 0:
            raise UserError(f"beta is {beta}; it must be above 0, or auto")
        self._given, self._config = beta, config
        self._kept: float | None = None
        self._deltas, self._logits = StepMean(), StepMean()
        self._told = False

    @property
    def beta(self) -> float:
        """Beta now."""
        if self._given != "auto":
            return float(self._given)
        if self._kept is not None:
            return self._kept
        mean = self._deltas.value
        return self._config.initial if not mean else 2 * self._config.scale / mean

    @property
    def relative(self) -> float:
        """What the loss is divided by."""
        return self.beta / self._config.initial if self._given == "auto" else 1.0

    def enter(self, step: int) -> None:
        """Begin a micro-batch of a training step."""
        self._deltas.enter(step)
        self._logits.enter(step)
        if self._given == "auto" and self._kept is None and self._deltas.steps >= self._config.steps:
            self._kept = self.beta
        self._warn()

    def observe(
        self, delta: Float[Tensor, " b"], logits: Float[Tensor, " b"], t: Float[Tensor, " b"]
    ) -> dict[str, float | Tensor]:
        """Take in the differences and logits of a micro-batch; the figures to record.

        Args:
            delta: rho of the winner minus rho of the loser.
            logits: The same times beta / 2.
            t: Times.
        """
        delta, logits = delta.detach(), logits.detach()
        self._deltas.add(delta.abs())
        self._logits.add(logits.abs())
        found: dict[str, float | Tensor] = {
            "logit/mean": logits.mean(),
            "logit/deviation": logits.std(correction=0),
            "logit/saturated": (logits.abs() > 4).float().mean(),
        }
        bucket = (t * BUCKETS).long().clamp(max=BUCKETS - 1)
        for number in range(BUCKETS):
            inside = logits[bucket == number]
            if len(inside):
                found[f"logit/abs/{number / BUCKETS:g}-{(number + 1) / BUCKETS:g}"] = inside.abs().mean()
        if self._given == "auto":
            found["beta"] = self.beta
        return found

    def _warn(self) -> None:
        mean, steps = self._logits.value, self._logits.steps
        if self._told or mean is None or steps < _PATIENCE or _FLAT <= mean <= _SATURATED:
            return
        self._told = True
        if mean < _FLAT:
            said, change = "flat: the loss is linear in them, and no pair ever counts as learnt", "larger"
        else:
            said, change = "saturated: most pairs have no gradient left", "smaller"
        warnings.warn(
            f"after {steps} steps the logits are {said} (mean |logit| {mean:.2g}, beta {self.beta:.4g}); choose a "
            f"{change} beta, or beta: auto",
            stacklevel=2,
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything."""
        return {
            "kept": self._kept,
            "told": self._told,
            "deltas": self._deltas.state_dict(),
            "logits": self._logits.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._kept, self._told = state["kept"], state["told"]
        self._deltas.load_state_dict(state["deltas"])
        self._logits.load_state_dict(state["logits"])
