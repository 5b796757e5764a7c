"""Training reward against the validation judge, so that over-optimisation is visible.

A reward model that is optimised long enough is fooled: its score keeps rising while what it stands for falls.
The validation judge, which shares nothing with the reward models, shows when.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unifl.errors import UserError


@dataclass(frozen=True)
class Curve:
    """One logged number over training steps."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]

    def near(self, step: int, *, window: int = 5) -> float:
        """Mean of the ``window`` logged values nearest to a step; single training batches are noisy."""
        order = sorted(range(len(self.steps)), key=lambda i: abs(self.steps[i] - step))[:window]
        return sum(self.values[i] for i in order) / len(order)


@dataclass(frozen=True)
class Audit:
    """Rewards beside validation metrics.

    Attributes:
        rewards: training rewards, ``reward/<name>`` in the log.
        validation: validation judge, ``validation/<metric>`` in the log.
        best_step: the step at which ``judged_by`` was highest.
        judged_by: name of the validation metric that decides.
        over_optimised: it fell from there by more than the margin while some reward went on rising.
    """

    rewards: tuple[Curve, ...]
    validation: tuple[Curve, ...]
    best_step: int
    judged_by: str
    over_optimised: bool


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a ``metrics.jsonl``. A torn last line, left by a run that was killed, is skipped.

    Where a resumed run repeated steps, the later row replaces the earlier one key by key.
    """
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    rows: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows.setdefault(int(row["step"]), {}).update(row)
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                break
            raise UserError(
                f"{path}, line {number} is not a row with a step; repair or delete that line"
            ) from None
    return [rows[step] for step in sorted(rows)]


def curves(rows: Iterable[Mapping[str, Any]]) -> dict[str, Curve]:
    """Every finite number that was logged, by key, in the order of first appearance."""
    points: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for key, value in row.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if key != "step" and number and math.isfinite(value):
                points.setdefault(key, []).append((int(row["step"]), float(value)))
    return {k: Curve(k, tuple(s for s, _ in p), tuple(v for _, v in p)) for k, p in points.items()}


def audit(rows: Sequence[Mapping[str, Any]], *, margin: float = 0.01) -> Audit | None:
    """Compare rewards with the validation judge; None if the log lacks either.

    Args:
        rows: rows of ``metrics.jsonl``.
        margin: fall of the validation metric that counts, in its own unit.
    """
    logged = curves(rows)
    rewards = tuple(c for key, c in logged.items() if key.startswith("reward/"))
    validation = tuple(c for key, c in logged.items() if key.startswith("validation/"))
    if not rewards or not validation:
        return None
    judged = next((c for c in validation if c.name == "validation/overall"), validation[0])
    best = max(range(len(judged.values)), key=judged.values.__getitem__)
    fell = judged.values[-1] < judged.values[best] - margin
    rose = any(c.near(judged.steps[-1]) > c.near(judged.steps[best]) for c in rewards)
    return Audit(
        rewards, validation, judged.steps[best], judged.name.removeprefix("validation/"), fell and rose
    )
