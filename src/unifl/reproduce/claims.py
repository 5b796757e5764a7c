"""What a claim comes to: a statement, the rule by which it is decided, the figures, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass, field

from unifl.metrics.result import Claim
from unifl.reproduce.figures import Figure
from unifl.reproduce.parts import PromptSet

Curves = dict[str, dict[str, list[tuple[float, float, float, float]]]]
"""Title of a plot, name of a line, points (x, y, lower and upper end)."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of figures under a claim."""

    what: str
    figure: Figure
    unit: str = ""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A claim with everything that is shown of it.

    Attributes:
        claim: For `result.json`.
        rule: When it holds; written before anything was measured.
        rows: The figures; the first is that of the claim.
        pictures: Names of strips of pictures, with titles.
        prompts: The prompts of those pictures.
        curves: What is plotted.
        notes: What else a reader should know.
    """

    claim: Claim
    rule: str
    rows: list[Row]
    pictures: dict[str, str] = field(default_factory=dict)
    prompts: PromptSet = "held_out"
    curves: Curves = field(default_factory=dict)
    notes: str = ""


def decided(
    name: str,
    statement: str,
    *,
    paper: str,
    rule: str,
    holds: bool,
    pairs: int,
    seeds: int,
    rows: list[Row],
    **shown: object,
) -> Finding:
    """A finding whose verdict is known.

    Args:
        name: Of the claim.
        statement: In a sentence.
        paper: What the paper reports.
        rule: When it holds.
        holds: Whether it does.
        pairs: Prompt-and-noise pairs behind it, over all training seeds.
        seeds: Training seeds.
        rows: All figures, the one that decides first.
        shown: Further fields of `Finding`.
    """
    main = rows[0].figure
    claim = Claim(
        id=name, statement=statement, paper=paper, measured=main.value, low=main.low, high=main.high,
        n=pairs, train_seeds=seeds, holds=holds,
    )  # fmt: skip
    return Finding(claim=claim, rule=rule, rows=rows, **shown)  # type: ignore[arg-type]


def win_row(what: str, rate: Figure) -> Row:
    """A win rate as a line."""
    return Row(what=what, figure=rate, unit="%")
