"""What an audit found: the rule's answer, curves of reward against drift, and a line of numbers per checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unifl.disk import write_atomically
from unifl.evaluation.audit_look import DISTANCE, HELD_OUT, REWARD, SIGNS, AuditLook
from unifl.evaluation.overoptimisation import Evidence, Outcome, decide, standardised
from unifl.evaluation.reward_curve import RewardCurve, fit_curve
from unifl.metrics.intervals import Interval, mean_interval

RECORD = "audit.json"
_SCHEMA = 1


@dataclass(frozen=True)
class CheckpointNumbers:
    """One checkpoint beside the start.

    Attributes:
        name: "the start", or the name of its folder.
        step: Training steps.
        drift: Root of the divergence from the start, in nats.
        distance: Root-mean-square pixel difference (of 1) from the start's pictures of the same noise.
        reward: Change of the reward in deviations of the start.
        held_out: Change of the held-out score, likewise.
        scores: Mean of every score by its name, on its own scale.
        ratios: High-frequency energy, saturation and seed diversity, divided by the start's.
    """

    name: str
    step: int
    drift: float
    distance: float
    reward: Interval
    held_out: Interval
    scores: dict[str, float]
    ratios: dict[str, float]


@dataclass(frozen=True)
class AuditFindings:
    """Everything that the page shows.

    Attributes:
        outcome: The verdict, the checkpoint to keep and the reason.
        checkpoints: The start, then all in the order of training.
        reward_curve: Of the reward against drift; None with too few checkpoints.
        held_out_curve: Of the held-out score.
    """

    outcome: Outcome
    checkpoints: tuple[CheckpointNumbers, ...]
    reward_curve: RewardCurve | None
    held_out_curve: RewardCurve | None

    @property
    def kept(self) -> CheckpointNumbers:
        """The checkpoint to keep."""
        return self.checkpoints[self.outcome.keep]


def find(
    names: Sequence[str], steps: Sequence[int], looks: Sequence[AuditLook], *, samples: int
) -> AuditFindings:
    """Apply the rule to looks.

    Args:
        names: Of the start and the checkpoints.
        steps: Of training behind each.
        looks: At each.
        samples: Pictures of each prompt.

    Raises:
        UserError: See `standardised` and `decide`.
    """
    evidence = Evidence(
        names=tuple(names),
        reward=standardised([look.scores(REWARD) for look in looks], samples),
        held_out=standardised([look.scores(HELD_OUT) for look in looks], samples),
        drift=np.array([look.drift for look in looks]),
    )
    rows = tuple(
        CheckpointNumbers(
            name=name,
            step=step,
            drift=look.drift,
            distance=float(look.numbers[DISTANCE].mean()),
            reward=mean_interval(evidence.reward[at]),
            held_out=mean_interval(evidence.held_out[at]),
            scores={
                key: float(values.mean())
                for key, values in look.numbers.items()
                if key.startswith((REWARD, HELD_OUT))
            },
            ratios=_ratios(look, looks[0]),
        )
        for at, (name, step, look) in enumerate(zip(names, steps, looks, strict=True))
    )
    curves = (fit_curve(evidence.drift, change) for change in (evidence.reward, evidence.held_out))
    return AuditFindings(decide(evidence), rows, *curves)


def write_record(path: Path, findings: AuditFindings) -> None:
    """Write the findings as JSON; infinite peaks are null."""
    record = {"schema_version": _SCHEMA, **asdict(findings)}
    write_atomically(path, (json.dumps(_finite(record), indent=1) + "\n").encode())


def _ratios(look: AuditLook, start: AuditLook) -> dict[str, float]:
    """Of what both have; left out where the start has none of it."""
    means = {
        name: (float(look.numbers[name].mean()), float(start.numbers[name].mean()))
        for name in SIGNS
        if name in start.numbers
    }
    return {name: now / then for name, (now, then) in means.items() if then > 0}


def _finite(value: Any) -> Any:
    """JSON knows no infinity."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
