"""`unifl arena`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from unifl.cli.arena_results import show_results
from unifl.cli.arena_serving import open_and_serve, require_web, say
from unifl.cli.console import interrupted, progress_line, quiet_libraries, this_command
from unifl.errors import UserError

arena = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="People: a web page on which they compare pictures two at a time.",
)

Folder = Annotated[Path, typer.Argument(help="Folder of the arena.")]
Annotators = Annotated[
    list[str] | None,
    typer.Option("--annotator", help="Name of somebody who judges; may be repeated.", metavar="NAME"),
]
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")]
Port = Annotated[int, typer.Option(help="0 takes one that is free.", min=0, max=65535)]
Question = Annotated[str, typer.Option(help="Stands above the pictures.")]
Axes = Annotated[
    list[str] | None,
    typer.Option("--axis", help="Ask about this, one key each; may be repeated.", metavar="NAME"),
]
Overlap = Annotated[int, typer.Option(help="Annotators of each pair.")]
Seed = Annotated[int, typer.Option(help="Of the order, the sides, and noise where pictures are drawn.")]


@arena.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Folder of the arena.")] = Path("runs/arena_demo"),
    host: Host = "127.0.0.1",
    port: Port = 8000,
) -> None:
    """Draw pictures with the packaged model, and start the arena on them.

    Three ways of sampling it, twelve prompts, half a minute. The same
    command opens it again.

    For example:

        unifl arena demo
        unifl arena demo runs/try --port 8001
    """
    from unifl.web.arena.database import DATABASE

    require_web()
    if not (folder / DATABASE).is_file():
        quiet_libraries()
        from unifl.assembly.arena import draw_demo
        from unifl.web.arena import ArenaSettings
        from unifl.web.arena.make import make_arena, named_folders

        try:
            folders = draw_demo(folder / "drawn", progress=progress_line)
        except KeyboardInterrupt as stop:
            raise interrupted(f"the same command goes on: {this_command()}") from stop
        named = [f"{name}={path}" for name, path in folders.items()]
        make_arena(folder, named_folders(named), ArenaSettings())
    open_and_serve(folder, None, host, port)


@arena.command()
def make(
    folder: Folder,
    pictures: Annotated[
        list[str] | None,
        typer.Option(
            help="Pictures with metadata.jsonl, as FOLDER or NAME=FOLDER; may be repeated.", metavar="FOLDER"
        ),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="A model or run that draws, as MODEL or NAME=MODEL; may be repeated.",
            metavar="MODEL",
        ),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="For --model: a file, or a suite as published.")
    ] = None,
    count: Annotated[
        int | None,
        typer.Option("--count", "-n", help="For --model: pictures per prompt; 1 by default.", min=1),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="For --model: evaluations per picture.")] = None,
    between: Annotated[
        Literal["models", "samples"],
        typer.Option(help="Compare models on one prompt and seed, or any two pictures of a prompt."),
    ] = "models",
    limit: Annotated[int | None, typer.Option(help="At most so many pairs.", min=1)] = None,
    question: Question = "Which picture is better?",
    axes: Axes = None,
    overlap: Overlap = 1,
    gold: Annotated[
        str | None,
        typer.Option(help="Preference data whose answers are known: who answers them right, looks."),
    ] = None,
    gold_every: Annotated[
        int | None,
        typer.Option(help="With --gold: every so many pairs is such a one; 10 by default.", min=2),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Make an arena from pictures that are there, or that models draw now.

    Annotators see no names: not of models, and not of files. Pictures are
    checked and copied into the arena's folder.

    For example:

        unifl arena make runs/arena --pictures before --pictures after --overlap 2
        unifl arena make runs/arena --model base=world:pipeline --model runs/refl --prompts prompts.txt
        unifl arena make runs/axes --pictures samples --between samples --axis quality --axis "follows the text"
        unifl arena make runs/arena --pictures a --pictures b --gold checks.jsonl --gold-every 8
    """
    from unifl.web.arena import ArenaSettings
    from unifl.web.arena.gather import require_whole
    from unifl.web.arena.make import make_arena, named_folders, read_known, require_none

    require_none(folder)
    if not pictures and not models:
        raise UserError("there are no pictures; name folders by --pictures, or models by --model")
    for_models = {"--prompts": prompts, "--count": count, "--steps": steps}
    _require_use(for_models, "models that draw", "--model", models)
    _require_use({"--gold-every": gold_every}, "pairs whose answer is known", "--gold", gold)
    if models and not pictures and len(models) == 1 and (between == "models" or not count or count == 1):
        raise UserError(
            "one model has nothing to be compared with; name another by --model or --pictures, or compare its own "
            "pictures by --between samples --count 2"
        )
    settings = ArenaSettings(
        question=question,
        axes=tuple(axes or ("overall",)),
        overlap=overlap,
        gold_every=(gold_every or 10) if gold is not None else 0,
        seed=seed,
    )
    found = named_folders(pictures or ())
    judged = None if gold is None else read_known(gold, settings.axes)
    if models:
        require_whole(found, progress=partial(progress_line, "pictures"))
        quiet_libraries()
        from unifl.assembly.arena import draw_models

        try:
            drawn = draw_models(
                models,
                prompts,
                folder / "drawn",
                count=count or 1,
                seed=seed,
                num_steps=steps,
                progress=progress_line,
            )
        except KeyboardInterrupt as stop:
            raise interrupted(f"the same command goes on: {this_command()}") from stop
        found += named_folders(drawn)
    pairs, known = make_arena(
        folder,
        found,
        settings,
        between=between,
        limit=limit,
        gold=judged,
        progress=partial(progress_line, "pictures"),
    )
    told = f" and {known} whose answer is known" if known else ""
    say(f"{pairs} pairs of {len(found)} pictures{told}; each pair goes to {overlap}: {folder}")


@arena.command("import")
def import_(
    folder: Folder,
    data: Annotated[str, typer.Argument(help="Preference data, as `unifl preferences` reads them.")],
    overlap: Annotated[int, typer.Option(help="Annotators of each pair, those in the data included.")] = 1,
    question: Question = "Which picture is better?",
) -> None:
    """Make an arena of pairs that were judged elsewhere, with their votes.

    The results are there at once. With an overlap above what the data have,
    people judge the pairs again, and the agreement tells how sure the
    labels are.

    For example:

        unifl arena import runs/again votes.jsonl --overlap 2
        unifl arena import runs/checked pickapic_sample.parquet
    """
    from unifl.web.arena.make import import_arena, require_none

    require_none(folder)
    found = import_arena(folder, data, overlap=overlap, question=question)
    say(f"{len(found.votes)} votes on {len(found.pairs)} pairs: {folder}")
    if found.repeated:
        say(
            f"{found.repeated} more rows left out: an arena keeps one vote of each person about a pair, the last one. "
            "Rows without a user_id count as one person's."
        )
    if found.unlabelled:
        say(f"{found.unlabelled} rows left out: they say nothing of two different pictures.")


@arena.command()
def results(
    folder: Folder,
    axis: Annotated[str | None, typer.Option(help="Which axis; all of them by default.")] = None,
) -> None:
    """Say who wins, how sure that is, and how far annotators agree.

    While the arena is open, too.

    For example:

        unifl arena results runs/arena
    """
    from unifl.web.arena import Arena

    opened = Arena(folder, look_only=True)
    for one in opened.settings.axes if axis is None else (axis,):
        show_results(opened, one)
    opened.close()


@arena.command()
def export(
    folder: Folder,
    output: Annotated[Path, typer.Argument(help="The .jsonl or .parquet file to write.", metavar="OUT")],
    axis: Annotated[str | None, typer.Option(help="Which axis; the first by default.")] = None,
) -> None:
    """Write the votes as preference data, in the columns of Pick-a-Pic.

    A .jsonl file names pictures where they are; a .parquet file holds them,
    as Pick-a-Pic does, and goes anywhere. Known pairs are left out.
    Preference and reward training read either as it is, and so does
    `unifl preferences report`. While the arena is open, too.

    For example:

        unifl arena export runs/arena votes.jsonl
        unifl arena export runs/arena votes.parquet
    """
    from unifl.data.preferences.write import check_output
    from unifl.web.arena import Arena
    from unifl.web.arena.export import export_votes

    check_output(output)
    opened = Arena(folder, look_only=True)
    number = export_votes(opened, output, axis=axis)
    opened.close()
    say(f"{number} votes in {output}")


@arena.command()
def serve(
    folder: Folder,
    annotators: Annotators = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    url: Annotated[
        str | None, typer.Option(help="What links begin with: the name by which others reach the arena.")
    ] = None,
    root_path: Annotated[str, typer.Option(help="Path below which the proxy shows it, as /arena.")] = "",
    proxy: Annotated[
        str | None,
        typer.Option(help="Address or network of the proxy, whose X-Forwarded headers are then believed."),
    ] = None,
    new_admin_link: Annotated[
        bool, typer.Option("--new-admin-link", help="Make another link of the admin page.")
    ] = False,
) -> None:
    """Let people judge.

    Prints the link of the admin page and those of annotators who are new.
    Each is shown once: the arena keeps no more than what is needed to
    recognise it. On the admin page annotators are added, and get another
    link where theirs is lost.

    For example:

        unifl arena serve runs/arena --annotator ann --annotator bob
        unifl arena serve runs/arena --host 0.0.0.0 --url http://lab.local:8000
        unifl arena serve runs/arena --proxy 127.0.0.1 --root-path /arena --url https://example.org/arena
    """
    require_web()
    open_and_serve(
        folder,
        annotators,
        host,
        port,
        url=url,
        root_path=root_path,
        proxy=proxy,
        new_admin_link=new_admin_link,
    )


def _require_use(options: Mapping[str, object], use: str, option: str, given: object) -> None:
    """Refuse options that would change nothing, because another one is not there."""
    idle = [name for name, value in options.items() if value is not None]
    if idle and not given:
        raise UserError(f"{', '.join(idle)}: only for {use}; give {option} as well, or leave it out")
