"""`unifl bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unifl.cli.console import err, out
from unifl.errors import UserError


def bench(
    name: Annotated[str, typer.Argument(help="What to measure; there is: unifl.")] = "unifl",
    folder: Annotated[Path, typer.Option("--out", "-o", help="Where result.json goes.")] = Path("runs/bench"),
    pairs: Annotated[int, typer.Option(help="Timed pairs, interleaved; their median counts.")] = 30,
    batch_size: Annotated[int, typer.Option(help="Rows of a step.")] = 16,
) -> None:
    """Time a training step against its network evaluations run bare.

    Same batches, dtype, graph and backward; optimiser and moving average
    are listed apart. A ratio of 1 means that a step costs nothing beyond
    its networks.

    For example:

        unifl bench unifl
        unifl bench unifl --pairs 10 --out runs/quick
    """
    if name != "unifl":
        raise UserError(f"there is no benchmark {name!r}; there is: unifl")
    from unifl.assembly.bench import bench_table, bench_unifl

    record = bench_unifl(folder, pairs=pairs, batch_size=batch_size, progress=err.print)
    out.print(bench_table(record))
    out.print(f"wrote {folder / 'result.json'}", highlight=False, soft_wrap=True)
