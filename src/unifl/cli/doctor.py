"""`unifl doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from unifl.cli.console import out


def doctor(
    folder: Annotated[str, typer.Option(help="Where runs will be written.")] = ".",
) -> None:
    """Look for what tends to go wrong, and say how to fix it.

    Versions, devices, a torchvision without working operators, threads
    that compete for cores, hub access, room on the disk, the weights of
    the embedded world. Ends with exit code 1 if something has to be fixed.

    For example:

        unifl doctor
        unifl doctor --folder /data/runs
    """
    from rich.markup import escape
    from rich.table import Table

    from unifl.cli.checks import all_checks

    checks = all_checks(folder)
    colors = {"ok": "green", "note": "yellow", "fix": "bold red"}
    table = Table("", "what", "found", "what to do", show_lines=False)
    for check in checks:
        mark = f"[{colors[check.state]}]{check.state}[/]"
        table.add_row(mark, check.what, escape(check.found), escape(check.advice))
    out.print(table)
    if any(check.state == "fix" for check in checks):
        raise typer.Exit(1)
    out.print("everything that training needs is in place")
