"""`unifl preferences`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from unifl.cli.console import out, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from unifl.data.preferences import JudgedIndex, JudgedReport, PreferenceIndex, PreferenceReport, Step

preferences = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Pairs that people judged: look at what is in them, and choose those to learn from.",
)

Data = Annotated[
    str,
    typer.Argument(
        help="A folder, a .jsonl, .json or .parquet file, or hub:NAME of a data set of Hugging Face.",
        metavar="DATA",
    ),
]
Form = Annotated[
    Literal["auto", "pick_a_pic", "hpd", "chosen_rejected", "likes", "store"],
    typer.Option(help="What the columns are; auto looks at them."),
]
Split = Annotated[str | None, typer.Option(help="Which part of a folder or of a hub data set.")]
Score = Annotated[str | None, typer.Option(help="For a sample store: which score makes pairs.")]
Pairing = Annotated[
    Literal["all", "extremes"],
    typer.Option(help="For a sample store: every two samples of a prompt, or its best and its worst."),
]
MinGap = Annotated[float, typer.Option(help="For a sample store: smallest difference of scores of a pair.")]


@preferences.command()
def report(
    data: Data,
    form: Form = "auto",
    split: Split = None,
    score: Score = None,
    pairing: Pairing = "all",
    min_gap: MinGap = 0.0,
    output: Annotated[
        Path | None, typer.Option("--json", help="Write the numbers into this file, too.")
    ] = None,
) -> None:
    """Say what is in preference data, without reading a picture.

    Rows, prompts and pictures; ties, missing labels and duplicates;
    contradictions: two pictures that were judged both ways, and pictures
    that win in one row and lose in another; absolute winners, which never
    lose or draw, and how much of the data they keep; how clear preferences
    are.

    For example:

        unifl preferences report pickapic_v2/data --split train
        unifl preferences report hub:yuvalkirstain/pickapic_v2 --split validation
        unifl preferences report samples/ --score color --pairing extremes
    """
    from unifl.data.preferences import PreferenceIndex, report_judged, report_pairs

    index = _read(data, form, split, None, score, pairing, min_gap)
    if isinstance(index, PreferenceIndex):
        found: PreferenceReport | JudgedReport = report_pairs(index)
    else:
        found = report_judged(index)
    if output is not None:
        write_json(found, output)
    for table in _tables(found):
        out.print(table)
    if output is not None:
        out.print(f"wrote {output}", highlight=False, soft_wrap=True, markup=False)


@preferences.command("filter")
def filter_(
    data: Data,
    output: Annotated[Path, typer.Argument(help="The .jsonl or .parquet file to write.", metavar="OUT")],
    absolute_winners: Annotated[
        bool,
        typer.Option(
            "--absolute-winners", help="Keep pairs whose winner never loses or draws for its prompt."
        ),
    ] = False,
    min_wins: Annotated[
        int, typer.Option(help="With --absolute-winners: and that wins more than so often.")
    ] = 0,
    min_strength: Annotated[
        float, typer.Option(help="Keep pairs of at least this strength, in [0, 1].")
    ] = 0.0,
    latest_losers: Annotated[
        bool, typer.Option("--latest-losers", help="Keep the latest pair of every winner.")
    ] = False,
    ties: Annotated[
        Literal["drop", "keep"], typer.Option(help="What becomes of pairs that nobody won.")
    ] = "drop",
    collapse_duplicates: Annotated[
        bool, typer.Option("--collapse-duplicates", help="Keep one of rows that say exactly the same.")
    ] = False,
    form: Form = "auto",
    split: Split = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder that names of pictures start from; that of the data by default."),
    ] = None,
    score: Score = None,
    pairing: Pairing = "all",
    min_gap: MinGap = 0.0,
) -> None:
    """Write the pairs that are worth learning from into a small file.

    In this order: duplicates, absolute winners, strength, latest losers,
    ties. The file refers to pictures where they are, and stands wherever
    preference data can: it has the columns prompt, chosen and rejected.

    For example:

        unifl preferences filter pickapic_v2/data kept.parquet --split train --absolute-winners --latest-losers
        unifl preferences filter pairs.jsonl clear.jsonl --min-strength 0.5 --collapse-duplicates
    """
    from unifl.data.preferences import Filters, PreferenceIndex, select, write_pairs
    from unifl.data.preferences.write import check_output
    from unifl.errors import UserError

    filters = Filters(
        absolute_winners=absolute_winners,
        min_wins=min_wins,
        min_strength=min_strength,
        latest_losers=latest_losers,
    )
    check_output(output)
    if output.resolve() == Path(data).resolve():
        raise UserError(f"{output} is also what is read; write to another file")
    index = _read(data, form, split, images, score, pairing, min_gap)
    if not isinstance(index, PreferenceIndex):
        raise UserError(f"{data} holds pictures that were judged one by one; filters are for pairs")
    kept, steps = select(index, filters, ties=ties, allow_duplicates=not collapse_duplicates)
    write_pairs(kept, output)
    out.print(_steps(index, steps))
    out.print(f"wrote {output}", highlight=False, soft_wrap=True, markup=False)


def _read(
    data: str,
    form: Literal["auto", "pick_a_pic", "hpd", "chosen_rejected", "likes", "store"],
    split: str | None,
    images: Path | None,
    score: str | None,
    pairing: Literal["all", "extremes"],
    min_gap: float,
) -> PreferenceIndex | JudgedIndex:
    from unifl.data.preferences import read_preferences

    return read_preferences(
        data, form=form, split=split, images=images, score=score, pairing=pairing, min_gap=min_gap
    )


def _steps(index: PreferenceIndex, steps: list[Step]) -> Table:
    from rich.table import Table

    table = Table("step", "pairs")
    table.add_row("in the data", f"{index.left_out.read}")
    for step in steps:
        table.add_row(step.name, f"{step.kept}")
    return table


def _tables(found: PreferenceReport | JudgedReport) -> list[Table]:
    from rich.table import Table

    from unifl.data.preferences import JudgedReport

    table = Table("what", "number", "of labelled")
    if isinstance(found, JudgedReport):
        return [_judged(found, table)]
    rows: list[tuple[str, int | None, bool]] = [
        ("comparisons", found.rows, False),
        ("without a label", found.missing, False),
        ("of a picture with itself", found.identical, False),
        ("of scores that are too close", found.too_close or None, False),
        ("labelled", found.labelled, True),
        ("ties", found.ties, True),
        ("exact duplicates", found.duplicates, True),
        ("prompts", found.prompts, False),
        ("pictures", found.pictures, False),
        ("users", found.users or None, False),
    ]
    rows += [(f"about {axis}", number, True) for axis, number in found.axes.items()]
    if found.contradictions is not None and found.winners is not None:
        rows += [
            ("two pictures judged both ways", found.contradictions.pairs, False),
            ("pictures that win and lose", found.contradictions.pictures, False),
            ("comparisons with such a picture", found.contradictions.rows, True),
            ("absolute winners", found.winners.pictures, False),
            ("comparisons that they win", found.winners.rows, True),
            ("absolute winners of more than one", found.winners.more_than_one, False),
            ("comparisons that these win", found.winners.rows_more_than_one, True),
        ]
    else:
        table.caption = "pictures have neither names nor uids: nobody can say which rows show the same one"
    for name, number, with_share in rows:
        if number is not None:
            share = f"{number / max(found.labelled, 1):.1%}" if with_share else ""
            table.add_row(name, str(number), share)
    strengths = Table("strength", "pairs")
    for number, count in enumerate(found.strengths):
        if count:
            strengths.add_row(f"{number / 10:.1f} to {(number + 1) / 10:.1f}", str(count))
    return [table, strengths]


def _judged(found: JudgedReport, table: Table) -> Table:
    labelled = found.rows - found.missing
    for name, number in (
        ("rows", found.rows),
        ("without a label", found.missing),
        ("prompts", found.prompts),
        ("pictures", found.pictures),
        ("liked and disliked", found.contradictions),
    ):
        if number is not None:
            table.add_row(name, str(number), "")
    for name, number in (("liked", found.liked), ("disliked", found.disliked)):
        if number is not None:
            table.add_row(name, str(number), f"{number / max(labelled, 1):.1%}")
    table.caption = f"scores from {found.lowest:g} to {found.highest:g}, {found.mean:.3g} on average"
    return table
