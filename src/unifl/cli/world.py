"""`unifl world`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from unifl.cli.console import interrupted, out, progress_line, quiet_libraries, this_command

world = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="The embedded world: a small diffusion model, its scenes and its judges.",
)


@world.command()
def build(
    folder: Annotated[Path, typer.Argument(help="Where everything that is made on the way is kept.")],
    stages: Annotated[
        list[str] | None, typer.Option("--stage", help="Only this stage; may be repeated.")
    ] = None,
) -> None:
    """Train everything that the package ships, from nothing.

    Autoencoder, denoiser, three judges, critics, rewards and baselines, with
    fixed seeds: up to 4 hours on 2 cores. Stages that are done are not
    repeated, and one that was interrupted goes on; the last one, `install`,
    copies the result into the package.

    For example:

        unifl world build runs/world
        unifl world build runs/world --stage critics --stage rewards
    """
    from unifl.world.build import build_world

    try:
        build_world(folder, stages=stages)
    except KeyboardInterrupt as stop:
        raise interrupted(f"the same command goes on: {this_command()}") from stop


@world.command()
def show(
    picture: Annotated[Path, typer.Argument(help="The PNG to write.")] = Path("world.png"),
    what: Annotated[
        Literal["scenes", "qualities", "styles"],
        typer.Option(help="Random scenes; what each quality means; one scene in every style."),
    ] = "scenes",
    number: Annotated[int, typer.Option("--number", "-n", help="Scenes.")] = 24,
    seed: Annotated[int, typer.Option(help="Which scenes.")] = 0,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Scenes of the side that is never trained on.")
    ] = False,
) -> None:
    """Draw sample scenes with their captions and qualities.

    For example:

        unifl world show
        unifl world show qualities.png --what qualities
        unifl world show held_out.png --held-out --number 12 --seed 3
    """
    from unifl.world.show import show_qualities, show_scenes, show_styles

    if what == "scenes":
        image = show_scenes(number=number, seed=seed, held_out=held_out)
    else:
        image = show_qualities() if what == "qualities" else show_styles()
    picture.parent.mkdir(parents=True, exist_ok=True)
    image.save(picture)
    out.print(f"wrote {picture}", highlight=False, soft_wrap=True)


@world.command()
def preferences(
    folder: Annotated[Path, typer.Argument(help="Gets the pictures and what people said of them.")],
    prompts: Annotated[int, typer.Option(help="Training prompts.")] = 600,
    pictures: Annotated[int, typer.Option(help="Pictures of each; people compare every two.")] = 4,
    guidance: Annotated[float, typer.Option(help="Of drawing; the less, the more pictures differ.")] = 2.0,
    seed: Annotated[int, typer.Option(help="Of prompts, pictures and people.")] = 71,
) -> None:
    """Make preference data: the packaged model draws, scripted people compare.

    Everybody sees what the annotator judge says with an error of their own, so
    that people contradict each other. Three minutes on 2 cores; an interrupted
    run goes on. `dpo` and `ncp_dpo` train on the result.

    metadata.jsonl has the comparisons, in the columns of Pick-a-Pic;
    likes.jsonl pictures that won or lost more often than not; scored.jsonl the
    share of its comparisons that each picture won.

    For example:

        unifl world preferences runs/preferences
        unifl preferences report runs/preferences
        unifl world preferences few --prompts 100 --guidance 1
    """
    quiet_libraries()
    from unifl.world.preference_drawing import draw_preferences

    try:
        new = draw_preferences(
            folder,
            prompts=prompts,
            pictures=pictures,
            guidance=guidance,
            seed=seed,
            progress=lambda done, total: progress_line("drawing", done, total),
        )
    except KeyboardInterrupt as stop:
        raise interrupted(f"the same command goes on: {this_command()}") from stop
    out.print(f"{'wrote' if new else 'nothing to do for'} {folder}", highlight=False, soft_wrap=True)
