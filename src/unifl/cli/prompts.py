"""`unifl prompts`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from unifl.cli.console import err, interrupted, out, quiet_libraries, this_command

if TYPE_CHECKING:
    from rich.table import Table

    from unifl.assembly.prompts import SelectionRequest
    from unifl.data.selection import Selection

prompts = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Prompts to train on: choose those that say something and differ from each other.",
)


@prompts.callback()
def group() -> None:
    """Keep `select` a command of its own: an app of one command would swallow its name."""


@prompts.command()
def select(
    source: Annotated[
        Path,
        typer.Argument(help="Prompts: .txt, a table with `prompt`, or a suite as published.", metavar="IN"),
    ],
    output: Annotated[Path, typer.Argument(help="The .txt or .jsonl file to write.", metavar="OUT")],
    encoder: Annotated[
        str,
        typer.Option(
            help="What embeds prompts: a CLIP model or a sentence encoder by hub name or folder, a diffusers folder, "
            "world:pipeline, or a .npy file with one row per prompt of IN."
        ),
    ],
    parser: Annotated[
        str, typer.Option(help="rules, spacy, spacy:MODEL, or package.module:name of your own.")
    ] = "rules",
    min_relations: Annotated[int, typer.Option(help="Relations that an entity of a prompt must have.")] = 1,
    rule: Annotated[
        Literal["at_least", "more_than"], typer.Option(help="Keep prompts with at least so many, or more.")
    ] = "at_least",
    similarity: Annotated[float, typer.Option(help="Largest cosine of two prompts that are kept.")] = 0.8,
    number: Annotated[
        int | None, typer.Option("--number", "-n", help="Draw so many of what is left; all by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order of the greedy pass, and of the draw.")] = 0,
    mode: Annotated[
        Literal["auto", "exact", "approximate"],
        typer.Option(help="auto is exact up to 200,000 prompts; approximate needs faiss."),
    ] = "auto",
    report: Annotated[
        Path | None, typer.Option(help="The JSON report; OUT.report.json by default. A .png goes beside it.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Where embeddings are kept; OUT.embeddings by default.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts that the encoder reads at once.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Select prompts as UniFL does: informative ones, without near-duplicates.

    1. Prompts that repeat another one are dropped.
    2. Relation filter: a prompt stays if one of its entities has enough
       attributes, actions and relations to others.
    3. Compression: in random order, a prompt stays unless one that stayed
       before is more similar than --similarity.
    4. --number of those that are left are drawn at random.

    ANS, the average similarity of a prompt to its nearest neighbour, is
    reported for as many random prompts and for the selected ones: it should
    fall. Embeddings are kept in a folder, so that an interrupted run goes
    on, and another filter or similarity needs no new ones.

    For example:

        unifl prompts select all.txt selected.txt --encoder openai/clip-vit-large-patch14 -n 100000
        unifl prompts select all.jsonl selected.jsonl --encoder path/to/sd15 --parser spacy
        unifl prompts select all.txt strict.txt --encoder world:pipeline --rule more_than --similarity 0.7
        unifl prompts select all.txt selected.txt --encoder embeddings.npy --mode approximate
    """
    quiet_libraries()
    from unifl.assembly.prompts import SelectionRequest
    from unifl.data.selection import SelectionConfig

    config = SelectionConfig(
        min_relations=min_relations,
        threshold_rule=rule,
        similarity=similarity,
        number=number,
        seed=seed,
        mode=mode,
    )
    request = SelectionRequest(
        source=source,
        output=output,
        encoder=encoder,
        config=config,
        parser=parser,
        report=report,
        cache=cache,
        batch_size=batch_size,
        device=device,
    )
    _show(_select_with_bars(request), request)


def _select_with_bars(request: SelectionRequest) -> Selection:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from unifl.assembly.prompts import select_to_file

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal) as bars:
        tasks = {}

        def progress(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step)
            bars.update(tasks[step], completed=done, total=total)

        try:
            return select_to_file(request, progress=progress)
        except KeyboardInterrupt as stop:
            raise interrupted(f"embeddings are kept; the same command goes on: {this_command()}") from stop


def _show(chosen: Selection, request: SelectionRequest) -> None:
    from unifl.assembly.prompts import peak_memory

    out.print(_table(chosen))
    before, after, all_read = (chosen.similarity[name] for name in ("random", "selected", "read"))
    lines = [
        f"ANS {before.ans:.3f} of as many random prompts, {after.ans:.3f} of the selected ones "
        f"({all_read.ans:.3f} of all {all_read.total} different prompts)"
    ]
    if chosen.check is not None:
        lines.append(
            f"{chosen.check.above} of {chosen.check.checked} kept prompts had a kept neighbour above "
            f"{request.config.similarity:g}; one of each such pair was dropped"
        )
    if request.config.number is not None and chosen.counts.selected < request.config.number:
        lines.append(
            f"only {chosen.counts.selected} are left of the {request.config.number} asked for; raise --similarity, "
            "lower --min-relations, or read more prompts"
        )
    peak = peak_memory()
    if peak is not None:
        lines.append(f"peak memory {peak / 2**30:.2f} GiB")
    picture = request.report_path.with_suffix(".png")
    lines.append(f"wrote {request.output}, {request.report_path} and {picture}")
    for line in lines:
        out.print(line, highlight=False, soft_wrap=True, markup=False)


def _table(chosen: Selection) -> Table:
    from rich.table import Table

    counts, seconds = chosen.counts, chosen.seconds
    rows = [
        ("read", counts.read, None),
        ("duplicated, dropped", counts.duplicated, None),
        ("kept by the relation filter", counts.after_filter, "relations"),
        ("embedded", counts.read - counts.duplicated, "embeddings"),
        (f"kept by compression ({chosen.mode})", counts.after_compression, "compression"),
        ("written", counts.selected, None),
    ]
    table = Table("step", "prompts", "seconds")
    for name, number, step in rows:
        table.add_row(name, str(number), f"{seconds[step]:.1f}" if step else "")
    return table
