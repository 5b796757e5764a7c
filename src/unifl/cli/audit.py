"""`unifl audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unifl.cli.arguments import ScorerBase, ScorerQuestion, ScorerRevision, ScorerWeights
from unifl.cli.console import interrupted, out, picture_bar, quiet_libraries, this_command
from unifl.cli.score import labelled, scorer_parts


def audit(
    run: Annotated[Path, typer.Argument(help="The folder of a run.")],
    judges: Annotated[
        list[str] | None,
        typer.Option(
            "--judge",
            help="What did not train: pickscore (`unifl scorers`), a folder, module:name, world:judges/validation; may "
            "be repeated, and written LABEL=NAME. By default what the recipe's monitor and validation name.",
        ),
    ] = None,
    weights: ScorerWeights = None,
    base: ScorerBase = None,
    question: ScorerQuestion = None,
    revision: ScorerRevision = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="A file of prompts, or a suite as published; those of the recipe's validation by default."
        ),
    ] = None,
    num_prompts: Annotated[int, typer.Option(help="The first so many prompts.", min=1)] = 64,
    seeds: Annotated[int, typer.Option(help="Pictures per prompt.", min=1)] = 2,
    folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where files go; `audit` in the run by default.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures at once.", min=1)] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    r"""Was the reward of a run followed too far, and which checkpoint is the one to keep?

    Every checkpoint draws the same prompts from the same noise as the model
    that training started from. The rewards that trained are set against
    judges that did not, and both against how far the model has drifted. A
    fixed rule gives the verdict. What has been drawn is kept, so an
    interrupted call goes on where it was, and after further training only
    new checkpoints are drawn.

    For example:

        unifl audit runs/refl
        unifl audit runs/mine --judge pickscore --judge liked=rewards/liked --prompts prompts.txt
        unifl audit runs/mine --judge hps=hpsv2.1 --weights hps=HPS_v2.1_compressed.pt \
              --base hps=CLIP-ViT-H-14 --prompts prompts.txt
        unifl train refl training.checkpointing_steps=5 training.checkpoints_total_limit=null
    """
    quiet_libraries()
    from unifl.assembly.audit import FOLDER, AuditRequest, audit_run
    from unifl.evaluation.audit_page import PAGE

    request = AuditRequest(
        judges=scorer_parts(
            labelled(judges), weights=weights, base=base, question=question, revision=revision
        ),
        prompts=prompts,
        num_prompts=num_prompts,
        samples=seeds,
        batch_size=batch_size,
        device=device,
        folder=folder,
    )
    try:
        with picture_bar() as bar:
            found = audit_run(run, request, progress=bar)
    except KeyboardInterrupt:
        raise interrupted(
            f"checkpoints that were drawn whole are kept; go on with: {this_command()}"
        ) from None
    out.print(f"{found.outcome.verdict}: {found.outcome.reason}", highlight=False, soft_wrap=True)
    page = (folder or run / FOLDER) / PAGE
    out.print(f"the page is {page}", highlight=False, soft_wrap=True)
