"""`unifl demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unifl.cli.console import interrupted, out, quiet_libraries, this_command


def demo(
    folder: Annotated[Path, typer.Option("--out", "-o", help="Folder of the demo.")] = Path("runs/demo"),
) -> None:
    """Train ReFL and both stages of UniFL on a laptop, and compare them.

    Uses the small diffusion model that comes with the package: no download,
    no GPU, about ten minutes on two cores. Writes result.json and
    report.html. A second call starts from what is there.

    For example:

        unifl demo
        unifl demo --out runs/another
    """
    quiet_libraries()
    from unifl.assembly.demo import run_demo
    from unifl.world.gold import load_gold

    try:
        run_demo(folder, gold=load_gold, console=out)
    except KeyboardInterrupt as stop:
        raise interrupted(f"the same command goes on: {this_command()}") from stop
