"""The rules of GenEval: is everything there that a prompt asks for, in number, colour and place?

    there      at least so many detections of the class, surer than the threshold
    counting   a threshold of its own, and no detection beyond the number (an `exclude` clause)
    colour     each of the surest so many is read as that colour
    position   each of them lies there from each of those of the earlier clause, see `relations`

A picture is right if all of it is (Ghosh et al., arXiv 2310.11513, and its code).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from unifl.data.suites import Entry, Wanted
from unifl.feedback.detectors import Detection

COUNTING = "counting"
_MOST = 16  # detections of a class that are looked at
_NOTHING = 1e-3  # px


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Numbers of the rules, as published for Mask2Former; another detector is calibrated otherwise.

    Attributes:
        score: A detection counts if it is surer.
        counting: The same for prompts of the task `counting`.
        position: Share of the sides of both boxes by which centres must differ to count as apart.
    """

    score: float = 0.3
    counting: float = 0.9
    position: float = 0.1


@dataclass(frozen=True)
class Verdict:
    """Whether a picture shows what was asked for, and if not, why."""

    correct: bool
    reasons: tuple[str, ...]


Colors = Callable[[Sequence[Detection], str], Sequence[str]]
"""The colour of each of some objects of one class."""


def judge_picture(
    detections: Sequence[Detection], entry: Entry, colors: Colors, thresholds: Thresholds
) -> Verdict:
    """Hold the detections of one picture against its prompt.

    Args:
        detections: Of any classes, in any order.
        entry: What should be there.
        colors: Reads the colours of objects of this picture.
        thresholds: See there.
    """
    least = thresholds.counting if entry.group == COUNTING else thresholds.score
    by_class = _by_class(detections, least)
    reasons: list[str] = []
    matched: list[Sequence[Detection] | None] = []
    for wanted in entry.include:
        there = by_class.get(wanted.kind, ())[: wanted.count]
        wrong = _wrong(wanted, there, matched, colors, thresholds)
        reasons += wrong
        matched.append(None if wrong else there)
    for wanted in entry.exclude:
        number = len(by_class.get(wanted.kind, ()))
        if number >= wanted.count:
            reasons.append(f"fewer than {wanted.count} of {wanted.kind} were asked for, {number} found")
    return Verdict(not reasons, tuple(reasons))


def relations(
    a: tuple[float, float, float, float], b: tuple[float, float, float, float], *, apart: float = 0.1
) -> set[str]:
    """Where box a lies from box b: none, one or two of "left of", "right of", "above", "below".

    Centres count as apart along an axis by what exceeds `apart` times the sum of the two sides there; a direction holds
    if that is more than half of the whole distance.
    """
    offsets, beyond = [], []
    for axis in (0, 1):
        offset = (a[axis] + a[axis + 2] - b[axis] - b[axis + 2]) / 2
        sides = abs(a[axis + 2] - a[axis]) + abs(b[axis + 2] - b[axis])
        offsets.append(offset)
        beyond.append(math.copysign(max(abs(offset) - apart * sides, 0.0), offset))
    if all(abs(value) < _NOTHING for value in beyond):
        return set()
    x, y = (value / math.hypot(*offsets) for value in beyond)
    found = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {name for name, holds in found.items() if holds}


def _by_class(detections: Sequence[Detection], least: float) -> Mapping[str, Sequence[Detection]]:
    """Of each class the surest, those above the threshold alone."""
    found: dict[str, list[Detection]] = {}
    for one in sorted(detections, key=lambda one: -one.score):
        if one.score > least and len(found.setdefault(one.label, [])) < _MOST:
            found[one.label].append(one)
    return found


def _wrong(
    wanted: Wanted,
    there: Sequence[Detection],
    matched: Sequence[Sequence[Detection] | None],
    colors: Colors,
    thresholds: Thresholds,
) -> list[str]:
    """What is wrong with a clause; nothing if it holds."""
    if len(there) < wanted.count:
        return [f"{wanted.count} of {wanted.kind} were asked for, {len(there)} found"]
    if wanted.color is not None:
        seen = list(colors(there, wanted.kind))
        if seen.count(wanted.color) < wanted.count:
            return [f"{wanted.kind} was asked for in {wanted.color}, found in {', '.join(seen)}"]
    if wanted.position is None:
        return []
    place, number = wanted.position
    targets = matched[number]
    if targets is None:
        return [f"nothing for {wanted.kind} to be {place}"]
    for one in there:
        for target in targets:
            seen_places = relations(one.box, target.box, apart=thresholds.position)
            if place not in seen_places:
                where = " and ".join(sorted(seen_places)) or "nowhere clear from"
                return [f"{wanted.kind} should be {place} {target.label}, and is {where} it"]
    return []
