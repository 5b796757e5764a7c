"""`unifl bench`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from unifl.cli.console import err, out
from unifl.errors import UserError

_NAMES = ("unifl", "rg-lcd", "preference")
_SHAPED = ("rg-lcd", "preference")


def bench(
    name: Annotated[str, typer.Argument(help=f"What to measure; there are: {', '.join(_NAMES)}.")] = "unifl",
    folder: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Where result.json goes; runs/bench, or runs/bench-NAME."),
    ] = None,
    pairs: Annotated[int, typer.Option(help="Timed pairs, interleaved; their median counts.")] = 30,
    batch_size: Annotated[int, typer.Option(help="Rows of a step.")] = 16,
    shapes: Annotated[
        str | None,
        typer.Option(
            help="rg-lcd or preference on a narrow model in the proportions of this family, sd15 or sd21.",
            metavar="FAMILY",
        ),
    ] = None,
) -> None:
    """Time a training step against its network evaluations run bare.

    Same batches, dtype, graph and backward; optimiser and moving average
    are listed apart. A ratio of 1 means that a step costs nothing beyond
    its networks. rg-lcd and preference also compare whole steps with steps
    laid out as in the scripts of diffusers; --shapes takes a model with
    random weights whose encoders compare with its UNet as those of a
    published one do (and rg-lcd then does only that).

    For example:

        unifl bench unifl
        unifl bench rg-lcd
        unifl bench rg-lcd --shapes sd15 --batch-size 4
        unifl bench preference
        unifl bench unifl --pairs 10 --out runs/quick
    """
    if name not in _NAMES:
        raise UserError(f"there is no benchmark {name!r}; there are: {', '.join(_NAMES)}")
    if shapes is not None and name not in _SHAPED:
        raise UserError(f"--shapes is for {' and '.join(_SHAPED)}, and not for {name}; leave it out")
    from unifl.assembly.bench import bench_unifl
    from unifl.assembly.bench_lcd import bench_rg_lcd
    from unifl.assembly.bench_preference import bench_preference
    from unifl.assembly.bench_record import bench_table, script_table
    from unifl.assembly.bench_shaped import shaped_parts

    if folder is None:
        folder = Path("runs") / "-".join(filter(None, ("bench", name.removeprefix("unifl"), shapes)))
    works: dict[str, Callable[..., dict[str, Any]]] = {
        "unifl": bench_unifl,
        "rg-lcd": bench_rg_lcd,
        "preference": bench_preference,
    }
    measure = works[name]
    if shapes is not None:
        alone: dict[str, Any] = {"cases": {}} if name == "rg-lcd" else {}
        measure = partial(measure, source=shaped_parts(shapes), **alone)
    record = measure(folder, pairs=pairs, batch_size=batch_size, progress=err.print)
    for table in (bench_table(record), script_table(record)):
        if table.row_count:
            out.print(table)
    out.print(f"wrote {folder / 'result.json'}", highlight=False, soft_wrap=True)
