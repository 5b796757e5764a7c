"""Combinations of rewards, as recipes name them: `{path: ensemble, parts: {a: ..., b: ...}, kwargs: {...}}`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from unifl.assembly.part import Part
from unifl.errors import UserError, nearest
from unifl.feedback import (
    Feedback,
    ScoreMap,
    calibrated,
    clipped,
    ensemble,
    normalised,
    one_at_random,
    towards,
    weighted_sum,
)


def _calibrated(feedback: Feedback, *, shift: float, scale: float) -> Feedback:
    if not scale > 0:
        raise UserError(f"scale is {scale}; it must be positive")
    return calibrated(feedback, ScoreMap("logistic", shift, scale))


_OF_SEVERAL: dict[str, Callable[..., Feedback]] = {
    "weighted_sum": weighted_sum,
    "ensemble": ensemble,
    "one_at_random": one_at_random,
}
_OF_ONE: dict[str, Callable[..., Feedback]] = {
    "towards": towards,
    "normalised": normalised,
    "clipped": clipped,
    "calibrated": _calibrated,
}


def combined(part: Part, opened: Mapping[str, Feedback], *, name: str) -> Feedback:
    """Rewards as one.

    Args:
        part: How, with the arguments of the function of that name in `unifl.feedback`; `calibrated` takes `shift` and
            `scale` of a logistic map.
        opened: Its parts.
        name: What the method calls the combination.

    Raises:
        UserError: No such combination, another number of parts, or arguments that do not fit.
    """
    if part.path not in (known := [*_OF_SEVERAL, *_OF_ONE]):
        guess = nearest(part.path, known)
        hint = f"did you mean {guess!r}?" if guess else f"there are {', '.join(known)}"
        raise UserError(f"{name} has parts, and no combination is called {part.path!r}; {hint}")
    if part.path in _OF_ONE and len(opened) != 1:
        raise UserError(f"{name}: {part.path} is of one reward, and parts has {', '.join(opened)}; name one")
    try:
        if part.path in _OF_SEVERAL:
            return _OF_SEVERAL[part.path](opened, name=name, **part.kwargs)
        (alone,) = opened.values()
        return _OF_ONE[part.path](alone, **{key: float(value) for key, value in part.kwargs.items()})
    except (TypeError, ValueError, AttributeError) as error:  # and what they refuse themselves, with its name
        raise UserError(f"{name}: {part.path} cannot be made with {part.kwargs}: {error}") from error
