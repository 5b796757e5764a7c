"""`unifl bench`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from unifl.cli.console import err, out
from unifl.errors import UserError

_NAMES = ("unifl", "rg-lcd")


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
            help="rg-lcd on a narrow model in the proportions of this family, sd15 or sd21, with random weights.",
            metavar="FAMILY",
        ),
    ] = None,
) -> None:
    """Time a training step against its network evaluations run bare.

    Same batches, dtype, graph and backward; optimiser and moving average
    are listed apart. A ratio of 1 means that a step costs nothing beyond
    its networks. rg-lcd also compares whole steps of latent consistency
    distillation with steps laid out as in the script of diffusers; with
    --shapes it does only that, on a model whose encoders compare with its
    UNet as those of a published one do.

    For example:

        unifl bench unifl
        unifl bench rg-lcd
        unifl bench rg-lcd --shapes sd15 --batch-size 4
        unifl bench unifl --pairs 10 --out runs/quick
    """
    if name not in _NAMES:
        raise UserError(f"there is no benchmark {name!r}; there are: {', '.join(_NAMES)}")
    if shapes is not None and name != "rg-lcd":
        raise UserError(f"--shapes is for rg-lcd, and not for {name}; leave it out")
    from unifl.assembly.bench import bench_unifl
    from unifl.assembly.bench_lcd import bench_rg_lcd
    from unifl.assembly.bench_record import bench_table, script_table
    from unifl.assembly.bench_shaped import shaped_parts

    if folder is None:
        folder = Path("runs") / "-".join(filter(None, ("bench", name.removeprefix("unifl"), shapes)))
    measure = bench_unifl if name == "unifl" else bench_rg_lcd
    if shapes is not None:
        measure = partial(bench_rg_lcd, source=shaped_parts(shapes), cases={})
    record = measure(folder, pairs=pairs, batch_size=batch_size, progress=err.print)
    if shapes is None:
        out.print(bench_table(record))
    if name == "rg-lcd":
        out.print(script_table(record))
    out.print(f"wrote {folder / 'result.json'}", highlight=False, soft_wrap=True)
