"""What `unifl arena results` prints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.markup import escape

from unifl.cli.arena_serving import say
from unifl.cli.console import out

if TYPE_CHECKING:
    from unifl.web.arena import Arena


def show_results(opened: Arena, axis: str) -> None:
    """Print the figures of one axis.

    Raises:
        UserError: An axis that is not asked for.
    """
    from unifl.web.arena.overview import overview

    found = overview(opened, axis)
    say(f"{found['results'].votes} of {found['wanted']} votes on {axis}")
    agreement = found["results"].agreement
    say(
        "agreement: no pair has two votes"
        if agreement is None
        else f"agreement: {agreement:.3f} (Krippendorff's alpha)"
    )
    if not found["ranks"]:
        say(f"no ranks: {found['results'].unranked}")
    _table(("model", "Elo", "95 % interval"), ((*bar.label, bar.text, bar.note) for bar in found["ranks"]))
    _table(
        ("model", "against", "wins", "95 % interval"),
        ((*bar.label, bar.text, bar.note) for bar in found["wins"]),
    )
    _table(
        ("annotator", "judged", "known pairs right"),
        (
            (one.name, f"{one.judged}", "" if one.right is None else f"{one.right:.0%} of {one.known}")
            for one in found["people"]
        ),
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    from rich.table import Table

    table = Table(*head)
    for row in rows:
        table.add_row(*map(escape, row))  # people and models are called what they are called
    if table.rows:
        out.print(table)
