"""`unifl bench`."""

from __future__ import annotations

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
) -> None:
    """Time a training step against its network evaluations run bare.

    Same batches, dtype, graph and backward; optimiser and moving average
    are listed apart. A ratio of 1 means that a step costs nothing beyond
    its networks. rg-lcd also compares whole steps of latent consistency
    distillation with steps laid out as in the script of diffusers.

    For example:

        unifl bench unifl
        unifl bench rg-lcd
        unifl bench unifl --pairs 10 --out runs/quick
    """
    if name not in _NAMES:
        raise UserError(f"there is no benchmark {name!r}; there are: {', '.join(_NAMES)}")
    from unifl.assembly.bench import bench_unifl
    from unifl.assembly.bench_lcd import bench_rg_lcd
    from unifl.assembly.bench_record import bench_table, script_table

    folder = folder or Path("runs/bench" if name == "unifl" else f"runs/bench-{name}")
    measure = bench_unifl if name == "unifl" else bench_rg_lcd
    record = measure(folder, pairs=pairs, batch_size=batch_size, progress=err.print)
    out.print(bench_table(record))
    if name == "rg-lcd":
        out.print(script_table(record))
    out.print(f"wrote {folder / 'result.json'}", highlight=False, soft_wrap=True)
