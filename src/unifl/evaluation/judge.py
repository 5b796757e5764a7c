"""What a judge is: a network that reads a picture and says how much of the prompt it shows, and how well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

JUDGE_KEYS = (
    "alignment",  # 1 if every attribute and relation is read right, else 0
    "alignment_fraction",  # share of them that is read right
    "structure",
    "style",  # 1 if the named style is recognised, else 0
    "color",
    "layout",
    "lighting",
    "detail",
    "quality",  # mean of the four before it
)


@runtime_checkable
class Judge(Protocol):
    """Scores and features of pictures ``(b, 3, h, w)`` in [0, 1].

    Scores are ``(b,)`` per key, in [0, 1], higher is better; ``nan`` where a score does not apply to a
    prompt. Features are ``(b, d)`` with d <= 64, for distances and diversity.
    """

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Scores by key (``JUDGE_KEYS``), each ``(b,)``."""
        ...

    def features(self, images: Tensor) -> Tensor:
        """Features ``(b, d)``."""
        ...
