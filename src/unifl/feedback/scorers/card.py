"""What a user of a scorer should know before its numbers are believed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Card:
    """A scorer in words.

    Attributes:
        title: Name as in the literature.
        paper: Its source.
        weights: Hub name of the published weights; "" where there are none.
        licence: Of those weights, as far as their page says.
        scale: What numbers look like.
        sees: What part of a picture and of a prompt it gets.
        biases: What it is known to favour.
    """

    title: str
    paper: str
    weights: str
    licence: str
    scale: str
    sees: str
    biases: str
