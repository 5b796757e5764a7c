"""`unifl reproduce`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from unifl.cli.console import interrupted, out, quiet_libraries, this_command
from unifl.errors import UserError

_PAPERS = {
    "unifl": "unifl.reproduce.unifl_claims",
    "rg-lcd": "unifl.reproduce.rg_lcd_claims",
    "ncp": "unifl.reproduce.ncp_claims",
    "audit": "unifl.reproduce.audit_claims",
}
"""Modules with a `PAPER`."""


def reproduce(
    name: Annotated[str, typer.Argument(help="Which: unifl, rg-lcd, ncp or audit.")],
    claims: Annotated[str, typer.Option(help="Letters of claims, as in `ade`; all by default.")] = "",
    folder: Annotated[
        Path, typer.Option("--out", "-o", help="Gets a page, a JSON file and a folder.")
    ] = Path("docs/results"),
    runs: Annotated[
        Path | None,
        typer.Option(help="Gets the runs, by default runs/reproduce/NAME; may be deleted afterwards."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Training seeds; 3 by default, 1 for audit.")] = None,
    prompts: Annotated[
        int | None, typer.Option(help="Held-out prompts per training seed; 340 by default for unifl.")
    ] = None,
    shard: Annotated[
        str, typer.Option(help="k/n: a share of the work, for n processes side by side.")
    ] = "0/1",
) -> None:
    """Measure the claims of a paper, or of the audit, on the embedded world.

    Trains every variant that the claims compare, with several seeds, and
    writes a page with figures, plots and pictures. Pieces that were
    measured before are kept, so the same command goes on where it was
    interrupted.

    For example:

        unifl reproduce unifl
        unifl reproduce unifl --claims ad
        unifl reproduce unifl --shard 0/2       and, in another shell, --shard 1/2
    """
    if name not in _PAPERS:
        raise UserError(f"there is no reproduction of {name!r}; there is: {', '.join(_PAPERS)}")
    quiet_libraries()
    from unifl.reproduce.run import Request
    from unifl.reproduce.run import reproduce as measure
    from unifl.world.gold import load_gold

    request = Request(
        claims=tuple(claims),
        seeds=None if seeds is None else range(seeds),
        shard=_shard(shard),
        num_prompts=prompts,
    )
    paper = import_module(_PAPERS[name]).PAPER
    runs = runs or Path("runs/reproduce") / name
    try:
        findings = measure(paper, folder, runs, request, gold=load_gold, console=out)
    except KeyboardInterrupt as stop:
        raise interrupted(f"the same command goes on: {this_command()}") from stop
    for finding in findings or []:
        verdict = {True: "holds", False: "does not hold", None: "not decided"}[finding.claim.holds]
        out.print(f"({finding.claim.id}) {finding.claim.statement}: {verdict}", highlight=False)
    if findings is not None:
        out.print(f"the page is {folder / f'{name}.md'}", highlight=False, soft_wrap=True)


def _shard(text: str) -> tuple[int, int]:
    index, _, number = text.partition("/")
    if not (index.isdigit() and number.isdigit()):
        raise UserError(f"--shard {text} cannot be read; write 0/2 and 1/2 for two processes")
    return int(index), int(number)
