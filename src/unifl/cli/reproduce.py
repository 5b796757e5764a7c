"""`unifl reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unifl.cli.console import interrupted, out, quiet_libraries, this_command
from unifl.errors import UserError


def reproduce(
    name: Annotated[str, typer.Argument(help="Which paper; there is: unifl.")],
    claims: Annotated[str, typer.Option(help="Letters of claims, as in `ade`; all by default.")] = "",
    folder: Annotated[Path, typer.Option("--out", "-o", help="Gets unifl.md, unifl.json and unifl/.")] = Path(
        "docs/results"
    ),
    runs: Annotated[Path, typer.Option(help="Gets the runs; may be deleted afterwards.")] = Path(
        "runs/reproduce/unifl"
    ),
    seeds: Annotated[int | None, typer.Option(help="Training seeds; 3 by default.")] = None,
    prompts: Annotated[
        int | None, typer.Option(help="Held-out prompts per training seed; 340 by default.")
    ] = None,
    shard: Annotated[
        str, typer.Option(help="k/n: a share of the work, for n processes side by side.")
    ] = "0/1",
) -> None:
    """Measure the claims of a paper on the embedded world.

    Trains every variant that the claims compare, with several seeds, and
    writes a page with figures, plots and pictures. Pieces that were
    measured before are kept, so the same command goes on where it was
    interrupted.

    For example:

        unifl reproduce unifl
        unifl reproduce unifl --claims ad
        unifl reproduce unifl --shard 0/2       and, in another shell, --shard 1/2
    """
    if name != "unifl":
        raise UserError(f"there is no reproduction of {name!r}; there is: unifl")
    quiet_libraries()
    from unifl.reproduce.run import Request, reproduce_unifl
    from unifl.reproduce.unifl_claims import CLAIMS
    from unifl.reproduce.unifl_trainings import NUM_PROMPTS, SEEDS
    from unifl.world.gold import load_gold

    request = Request(
        claims=tuple(claims) or tuple(CLAIMS),
        seeds=SEEDS if seeds is None else range(seeds),
        shard=_shard(shard),
        num_prompts=NUM_PROMPTS if prompts is None else prompts,
    )
    try:
        findings = reproduce_unifl(folder, runs, request, gold=load_gold, console=out)
    except KeyboardInterrupt as stop:
        raise interrupted(f"the same command goes on: {this_command()}") from stop
    for finding in findings or []:
        verdict = {True: "holds", False: "does not hold", None: "not decided"}[finding.claim.holds]
        out.print(f"({finding.claim.id}) {finding.claim.statement}: {verdict}", highlight=False)
    if findings is not None:
        out.print(f"the page is {folder / 'unifl.md'}", highlight=False, soft_wrap=True)


def _shard(text: str) -> tuple[int, int]:
    index, _, number = text.partition("/")
    if not (index.isdigit() and number.isdigit()):
        raise UserError(f"--shard {text} cannot be read; write 0/2 and 1/2 for two processes")
    return int(index), int(number)
