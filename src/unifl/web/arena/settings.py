"""What an arena asks, and how often."""

from __future__ import annotations

from dataclasses import dataclass

from unifl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ArenaSettings:
    """Fixed when an arena is made.

    Attributes:
        question: Above the pictures.
        axes: What is asked of each pair; one axis is one keystroke.
        overlap: Annotators per pair.
        gold_every: Every so many pairs is one whose answer is known; 0 asks none.
        gold_axis: What that answer is about; None where it is about every axis.
        seed: Of the order of pairs and sides.
    """

    question: str = "Which picture is better?"
    axes: tuple[str, ...] = ("overall",)
    overlap: int = 1
    gold_every: int = 0
    gold_axis: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.axes or len(set(self.axes)) != len(self.axes) or not all(self.axes):
            raise UserError(f"axes are {list(self.axes)}; name one or more, each once")
        if self.overlap < 1:
            raise UserError(f"overlap is {self.overlap}; a pair needs 1 annotator or more")
        if self.gold_every < 0 or self.gold_every == 1:
            raise UserError(
                f"gold_every is {self.gold_every}; 0 asks no known pairs, 2 or more every so many"
            )
