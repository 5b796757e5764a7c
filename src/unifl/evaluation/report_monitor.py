"""The part of the report about the over-optimisation monitor: what it saw, and why it ended a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from unifl.evaluation.audit import Curve, curves
from unifl.evaluation.plots import NUM_COLORS, Chart, line_chart

PREFIX = "monitor/"
_CHARTS = {
    "detail and diversity, ratios to the start": ("high_frequency_ratio", "diversity_ratio"),
    "distance from the start's pictures": ("base_distance",),
    "rewards that train, change from the start": ("trained_change/",),
    "held-out rewards, change from the start": ("reward_change/",),
}


@dataclass(frozen=True)
class MonitorPanel:
    """What the monitor of one training run saw.

    Attributes:
        name: The run; empty for the run folder itself.
        stopped: Why it ended the run; empty if it did not.
        step: The last look.
        last: The ratios and the distance at that look, in words.
        charts: Curves over training steps.
    """

    name: str
    stopped: str
    step: int
    last: str
    charts: list[Chart]


def monitor_panels(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[MonitorPanel]:
    """A panel for each run that has been monitored.

    Args:
        logs: Rows of `metrics.jsonl` by run, in the order of steps.
    """
    panels = []
    for name, rows in logs.items():
        looks = [row for row in rows if f"{PREFIX}high_frequency_ratio" in row]
        if not looks:
            continue
        # a reason that stands before the end was overruled: the run went on with other rules
        stopped = str(rows[-1].get(f"{PREFIX}stop", ""))
        last = looks[-1]
        panels.append(MonitorPanel(name, stopped, int(last["step"]), _in_words(last), _charts(name, rows)))
    return panels


def _in_words(look: Mapping[str, Any]) -> str:
    told = [f"energy of fine detail {look[PREFIX + 'high_frequency_ratio']:.2f} times the start's"]
    if PREFIX + "diversity_ratio" in look:
        told.append(f"seed diversity {look[PREFIX + 'diversity_ratio']:.2f} times")
    told.append(f"pictures {look[PREFIX + 'base_distance']:.3f} away from the start's")
    return ", ".join(told)


def _charts(run: str, rows: Iterable[Mapping[str, Any]]) -> list[Chart]:
    logged = {key.removeprefix(PREFIX): c for key, c in curves(rows).items() if key.startswith(PREFIX)}
    charts = []
    for title, wanted in _CHARTS.items():
        families = tuple(name for name in wanted if name.endswith("/"))
        found = [
            Curve(key.partition("/")[2] or key, curve.steps, curve.values)
            for key, curve in logged.items()
            if len(curve.values) > 1 and (key in wanted or key.startswith(families))
        ]
        for part in range(0, len(found), NUM_COLORS):
            shown = title + (" (continued)" if part else "")
            # drawn under a title of its own, which keeps ids apart; shown without the run
            chart = line_chart(f"{run} monitor {shown}", found[part : part + NUM_COLORS])
            charts.append(replace(chart, title=shown))
    return charts
