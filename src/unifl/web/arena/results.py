"""What came of an arena: votes, win rates, ranks, agreement."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from unifl.errors import UserError
from unifl.metrics import Interval, Ranking, bradley_terry, mean_interval
from unifl.metrics.agreement import krippendorff_alpha
from unifl.web.arena.database import Arena

_VOTES = """
SELECT pairs.id, a.prompt, a.model, b.model, a.file, b.file, a.id, b.id, annotators.name, votes.answers, pairs.gold,
       votes.at, votes.milliseconds
FROM votes JOIN shown ON shown.id = votes.shown JOIN pairs ON pairs.id = shown.pair
JOIN pictures AS a ON a.id = pairs.first JOIN pictures AS b ON b.id = pairs.second
JOIN annotators ON annotators.id = shown.annotator
WHERE votes.withdrawn = 0 ORDER BY votes.id
"""


@dataclass(frozen=True, kw_only=True)
class Vote:
    """One judgement of one pair.

    Attributes:
        pair: Number.
        prompt: Of both pictures.
        models: That drew the first and the second.
        files: As seen from the arena's folder.
        pictures: Numbers.
        annotator: Name.
        answers: 1 where the first picture is better, 0.5 for a tie, 0 otherwise, by axis.
        gold: The known answer; None for a real question.
        at: When, in seconds since 1970.
        milliseconds: That it took; 0 where that is not known.
    """

    pair: int
    prompt: str
    models: tuple[str, str]
    files: tuple[str, str]
    pictures: tuple[int, int]
    annotator: str
    answers: dict[str, float]
    gold: float | None
    at: float
    milliseconds: int


@dataclass(frozen=True, kw_only=True)
class ArenaResults:
    """Figures of one axis.

    Attributes:
        votes: Counted, without known pairs.
        wins: Share of wins of the first over the second model, a tie being half a one, by their names.
        ranking: Of all models; None where comparisons do not settle one, with the reason in `unranked`.
        unranked: Why there is no ranking; "" where there is one.
        agreement: Krippendorff's alpha over pairs that several judged (ordinal); None where there are none.
        right: Share of known pairs that each annotator got right, with how many there were; empty for an axis of which
            their answers say nothing.
    """

    votes: int
    wins: dict[tuple[str, str], Interval]
    ranking: Ranking | None
    unranked: str
    agreement: float | None
    right: dict[str, tuple[float, int]]


def read_votes(arena: Arena) -> Iterator[Vote]:
    """All votes that stand, known pairs included, in their order."""
    for row in arena.rows(_VOTES):
        yield Vote(
            pair=row[0],
            prompt=row[1],
            models=(row[2], row[3]),
            files=(row[4], row[5]),
            pictures=(row[6], row[7]),
            annotator=row[8],
            answers=json.loads(row[9]),
            gold=row[10],
            at=row[11],
            milliseconds=row[12],
        )


def read_results(arena: Arena, axis: str | None = None) -> ArenaResults:
    """The figures of one axis, the first by default.

    Raises:
        UserError: An axis that is not asked for.
    """
    axis = known_axis(arena, axis)
    every = list(read_votes(arena))
    votes = [vote for vote in every if vote.gold is None]
    known = [vote for vote in every if vote.gold is not None and arena.settings.gold_axis in (None, axis)]
    ranking, unranked = _ranking(votes, axis)
    return ArenaResults(
        votes=len(votes),
        wins=_wins(votes, axis),
        ranking=ranking,
        unranked=unranked,
        agreement=_agreement(votes, axis),
        right=_right(known, axis),
    )


def known_axis(arena: Arena, axis: str | None) -> str:
    """An axis that is asked for, the first by default.

    Raises:
        UserError: Another one.
    """
    if axis is not None and axis not in arena.settings.axes:
        raise UserError(
            f"this arena asks for {', '.join(arena.settings.axes)}, not for {axis!r}; name one of these"
        )
    return arena.settings.axes[0] if axis is None else axis


def _wins(votes: list[Vote], axis: str) -> dict[tuple[str, str], Interval]:
    """By pair of models; several votes on one prompt count as one, with their mean."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for vote in votes:
        one, other = vote.models
        value = vote.answers[axis]
        if one > other:
            one, other, value = other, one, 1 - value
        found.setdefault((one, other), {}).setdefault(vote.prompt, []).append(value)
    return {
        models: mean_interval(np.array([np.mean(values) for values in by_prompt.values()]))
        for models, by_prompt in sorted(found.items())
        if models[0] != models[1]
    }


def _ranking(votes: list[Vote], axis: str) -> tuple[Ranking | None, str]:
    between = [vote for vote in votes if vote.models[0] != vote.models[1]]
    if not between:
        return None, "no vote compares two models"
    names = sorted({name for vote in between for name in vote.models})
    number = {name: at for at, name in enumerate(names)}
    prompts = {prompt: at for at, prompt in enumerate(dict.fromkeys(vote.prompt for vote in between))}
    try:
        ranking = bradley_terry(
            names,
            np.array([number[vote.models[0]] for vote in between], dtype=int),
            np.array([number[vote.models[1]] for vote in between], dtype=int),
            np.array([vote.answers[axis] for vote in between]),
            units=np.array([prompts[vote.prompt] for vote in between], dtype=int),
        )
    except UserError as error:
        return None, str(error)
    return ranking, ""


def _agreement(votes: list[Vote], axis: str) -> float | None:
    try:
        return krippendorff_alpha(
            np.array([vote.pair for vote in votes], dtype=int),
            np.array([vote.answers[axis] for vote in votes]),
            level="ordinal",
        )
    except UserError:
        return None


def _right(votes: list[Vote], axis: str) -> dict[str, tuple[float, int]]:
    found: dict[str, list[bool]] = {}
    for vote in votes:
        found.setdefault(vote.annotator, []).append(vote.answers[axis] == vote.gold)
    return {name: (float(np.mean(right)), len(right)) for name, right in sorted(found.items())}
