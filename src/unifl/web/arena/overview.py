"""What the admin page shows: how far everybody is, and the figures so far, ready to be drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unifl.metrics.bradley_terry import ELO
from unifl.metrics.intervals import Interval
from unifl.web.arena.database import Arena
from unifl.web.arena.results import read_results

WIDTH = 260
"""Of a drawn interval, in units of its picture."""
_FIGURES = """
SELECT annotators.id, annotators.name, COUNT(votes.id), COALESCE(MAX(votes.at), 0) FROM annotators
LEFT JOIN shown ON shown.annotator = annotators.id LEFT JOIN votes ON votes.shown = shown.id AND votes.withdrawn = 0
GROUP BY annotators.id ORDER BY annotators.id
"""
_MODELS = """
SELECT COUNT(DISTINCT model) FROM pictures JOIN pairs ON pictures.id IN (first, second) WHERE gold IS NULL
"""
_PACE = """
SELECT milliseconds FROM votes JOIN shown ON shown.id = votes.shown
WHERE annotator = ? AND withdrawn = 0 AND milliseconds > 0 ORDER BY milliseconds
"""


@dataclass(frozen=True, kw_only=True)
class Person:
    """A row of the table of annotators.

    Attributes:
        id: Number.
        name: As given.
        judged: Pairs, known ones included.
        seconds: Median of what a judgement took; None without any.
        right: Share of known pairs that were answered right; None where there were none.
        known: Number of these.
    """

    id: int
    name: str
    judged: int
    seconds: float | None
    right: float | None
    known: int


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A value with its interval on a line.

    Attributes:
        label: What it is of.
        text: The value in words.
        note: Interval and number in words.
        at: Place of the value on the line, in [0, WIDTH].
        low: Of the lower end.
        high: Of the upper one.
    """

    label: tuple[str, ...]
    text: str
    note: str
    at: float
    low: float
    high: float


def _people(arena: Arena, right: Mapping[str, tuple[float, int]]) -> list[Person]:
    """Everybody, in the order in which they came."""
    found = []
    for number, name, judged, _ in arena.rows(_FIGURES):
        paces = [row[0] for row in arena.rows(_PACE, (number,))]
        share, known = right.get(name, (None, 0))
        found.append(
            Person(
                id=number,
                name=name,
                judged=judged,
                seconds=paces[len(paces) // 2] / 1000 if paces else None,
                right=share,
                known=known,
            )
        )
    return found


def overview(arena: Arena, axis: str) -> dict[str, Any]:
    """Everything on the page, for one axis."""
    results = read_results(arena, axis)
    ((pairs,),) = arena.rows("SELECT COUNT(*) FROM pairs WHERE gold IS NULL")
    ((models,),) = arena.rows(_MODELS)
    return {
        "results": results,
        "wanted": pairs * arena.settings.overlap,
        "pairs": pairs,
        "models": models,
        "wins": [_share(names, wins) for names, wins in results.wins.items()],
        "ranks": _ranks(results.ranking.names, results.ranking.strengths) if results.ranking else [],
        "people": _people(arena, results.right),
        "axis": axis,
        "settings": arena.settings,
        "width": WIDTH,
    }


def _share(names: tuple[str, str], wins: Interval) -> Bar:
    return Bar(
        label=names,
        text=f"{wins.value:.0%}",
        note=f"{wins.low:.0%} to {wins.high:.0%}, {wins.n} prompt{'s' * (wins.n != 1)}",
        at=WIDTH * wins.value,
        low=WIDTH * wins.low,
        high=WIDTH * wins.high,
    )


def _ranks(names: tuple[str, ...], strengths: tuple[Interval, ...]) -> list[Bar]:
    """Strengths in Elo points around their mean, on one line from the least lower end to the greatest upper end."""
    low, high = min(one.low for one in strengths), max(one.high for one in strengths)
    scale = WIDTH / (high - low or 1.0)
    return [
        Bar(
            label=(name,),
            text=_signed(ELO * one.value),
            note=f"{_signed(ELO * one.low)} to {_signed(ELO * one.high)}, {one.n} votes",
            at=scale * (one.value - low),
            low=scale * (one.low - low),
            high=scale * (one.high - low),
        )
        for name, one in zip(names, strengths, strict=True)
    ]


def _signed(value: float) -> str:
    return f"{value:+.0f}".replace("-", "−")
