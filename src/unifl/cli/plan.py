"""`unifl plan`."""

from __future__ import annotations

from typing import Annotated

import typer

from unifl.cli.arguments import Overrides, RecipeArgument
from unifl.cli.console import out, quiet_libraries


def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    shapes: Annotated[
        str | None,
        typer.Option(
            help="Plan for a model of this family, sd15, sd21 or sdxl, in place of the recipe's.",
            metavar="FAMILY",
        ),
    ] = None,
    processes: Annotated[int, typer.Option(help="Number of processes of the run.")] = 1,
) -> None:
    """Show what a run would cost, on a machine that could not run it.

    Memory by part and network evaluations per step, from the configs of
    the model: no weights, no data and no GPU are needed. Where they are
    at hand, `unifl train RECIPE --dry-run` measures. Mixed precision
    keeps norms in float32 on a GPU: model.device=cuda plans for one.

    For example:

        unifl plan sdxl_unifl_stage1_lora model.device=cuda
        unifl plan sdxl_unifl_stage1_lora model.resolution=768
        unifl plan my.yaml --shapes sdxl training.train_batch_size=2
    """
    quiet_libraries()
    from unifl.assembly.forecast import plan_recipe

    plan_recipe(recipe, overrides or (), shapes=shapes, processes=processes).show(out)
