"""What a paper's reproduction consists of: trainings, claims, and how each is decided from the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from unifl.reproduce.claims import Finding
from unifl.reproduce.figures import Table
from unifl.reproduce.parts import Training
from unifl.reproduce.readings import Readings, of_feedback

Decide = Callable[[Table, Path], Finding]
"""A claim: from all scores and the folder of what was prepared to a finding."""


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A reproduction.

    Attributes:
        name: Of files and folders, and of the command's argument.
        title: Of the page.
        trainings: Everything that is trained, those that others start from first.
        claims: By letter.
        needed: Trainings that each claim reads, by letter.
        seeds: Training seeds.
        num_prompts: Held-out prompts per training seed.
        readings: What is read off pictures beside the judge's scores.
        keeps_features: Whether the judge's features are kept too.
    """

    name: str
    title: str
    trainings: Callable[[], tuple[Training, ...]]
    claims: Mapping[str, Decide]
    needed: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    num_prompts: int
    readings: Readings = of_feedback
    keeps_features: bool = False
