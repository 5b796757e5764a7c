"""`unifl report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unifl.cli.console import out


def report(
    run: Annotated[Path, typer.Argument(help="The folder of a run, of an evaluation or of the demo.")],
    page: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The file to write; report.html in the folder by default."),
    ] = None,
    rows: Annotated[int, typer.Option(help="Rows of pictures.")] = 16,
) -> None:
    """Write one self-contained HTML page about a run.

    Pictures of all models side by side, figures with intervals, win
    rates, training curves, rewards against the validation judge, settings
    and versions. The page loads nothing from anywhere.

    For example:

        unifl report runs/demo
        unifl report runs/stage1 --out stage1.html
    """
    from unifl.evaluation import write_report

    out.print(f"wrote {write_report(run, out=page, max_rows=rows)}", highlight=False, soft_wrap=True)
