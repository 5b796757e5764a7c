"""`unifl train`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from unifl.cli.arguments import Overrides, RecipeArgument
from unifl.cli.console import interrupted, out, quiet_libraries, this_command


def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    resume: Annotated[
        str | None,
        typer.Option(
            help="Go on although settings have changed: latest, or a checkpoint.", metavar="CHECKPOINT"
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No plan and no progress bar.")] = False,
) -> None:
    r"""Train a model as a recipe says.

    First comes a plan: network evaluations per step, copies of the
    backbone, memory. A run that was interrupted goes on by the same
    command. What comes out is in OUTPUT_DIR/model: LoRA files (diffusers
    and kohya format) or a diffusers pipeline, with a model card.

    For example:

        unifl train refl                                   one that comes along
        unifl train refl --dry-run                         what would it cost?
        unifl train my.yaml training.learning_rate=1e-5    change any value
        unifl train unifl_stage2 model.lora=runs/stage1    from an earlier run
        unifl train refl model.pretrained_model_name_or_path=path/to/sd15 \
              data.prompts=prompts.txt rewards.global=my_rewards:sharpness \
              validation=null
        accelerate launch --module unifl.cli train my.yaml      several processes

    Recipes that come along: unifl_stage1, unifl_stage2, pefl_structure,
    pefl_style, pefl_layout, aesthetic, adversarial, refl, finetune; for Stable
    Diffusion 1.5 and SDXL sd15_unifl_stage1_lora and more (docs/recipes.md).
    """
    quiet_libraries()
    from unifl.assembly.recipe import load_recipe
    from unifl.assembly.run import run_recipe

    settings = load_recipe(recipe, overrides or ())
    try:
        result = run_recipe(
            settings, dry_run=dry_run, resume=resume, progress=not quiet, console=None if quiet else out
        )
    except KeyboardInterrupt as stop:
        raise interrupted(_advice(Path(settings.output_dir))) from stop
    if not dry_run and not quiet and os.environ.get("RANK", "0") == "0":  # once, of several processes
        out.print(
            f"try it:  unifl generate {result.folder} PROMPT\n"
            f"judge it:  unifl evaluate {result.folder}\n"
            f"look at the run:  unifl report {result.folder}",
            highlight=False,
        )


def _advice(folder: Path) -> str:
    from unifl.training.checkpoint import checkpoints

    found = checkpoints(folder)
    if not found:
        return f"no checkpoint had been written, so the same command starts anew: {this_command()}"
    return f"the same command goes on from step {found[-1][0]}: {this_command()}"
