"""A whole reproduction: what is missing is trained and judged, then all claims are decided and a page is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from unifl.errors import UserError, nearest
from unifl.evaluation import Judge
from unifl.metrics.result import Result, update_result
from unifl.reproduce.claims import Finding
from unifl.reproduce.figures import Table
from unifl.reproduce.measure import Workplace, measure
from unifl.reproduce.page import write_page
from unifl.reproduce.paper import Paper
from unifl.reproduce.parts import Piece, Training, by_name
from unifl.reproduce.prepare import prepare


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to reproduce.

    Attributes:
        claims: Letters of claims; none stands for all.
        seeds: Training seeds; None is the paper's.
        shard: (k, n): every n-th piece of work from the k-th on, for n processes side by side. The page is written when
            all pieces are there.
        num_prompts: Held-out prompts per training seed; None is the paper's.
        changes: Overrides for all recipes, for a quicker look.
    """

    claims: Sequence[str] = ()
    seeds: Sequence[int] | None = None
    shard: tuple[int, int] = (0, 1)
    num_prompts: int | None = None
    changes: Sequence[str] = ()

    def __post_init__(self) -> None:
        index, number = self.shard
        if not 0 <= index < number:
            raise UserError(f"shard {index}/{number} makes no sense; write 0/2 and 1/2 for two processes")


def reproduce(
    paper: Paper, folder: Path, runs: Path, request: Request, *, gold: Callable[[], Judge], console: Console
) -> list[Finding] | None:
    """Measure what is missing, and write a page, a JSON file and a folder, all by the name of the paper.

    Pieces that were measured before are not measured again unless something that they depend on has changed.

    Args:
        paper: Which.
        folder: For results.
        runs: For runs.
        request: What.
        gold: Loads the judge of final figures.
        console: Where progress is shown.

    Returns:
        The findings, those of other claims included whose pieces are all there; None where pieces of other shards are
        still missing.

    Raises:
        UserError: A claim that the paper does not make.
    """
    claims = _claims(paper, request.claims)
    seeds = paper.seeds if request.seeds is None else request.seeds
    all_trainings = by_name(paper.trainings())
    place = Workplace(
        runs=runs,
        results=folder / paper.name,
        judge=gold(),
        trainings=dict(all_trainings),
        num_prompts=request.num_prompts or paper.num_prompts,
        readings=paper.readings,
        keeps_features=paper.keeps_features,
        changes=tuple(request.changes),
    )
    wanted = [
        (all_trainings[name], seed)
        for seed in seeds
        for name in all_trainings
        if any(name in paper.needed[claim] for claim in claims) and seed in all_trainings[name].seeds(seeds)
    ]
    pieces = _measure_missing(place, _of_shard(wanted, place, request.shard), console)
    for training, seed in wanted:
        found = pieces.get((training.name, seed)) or place.known(training, seed)
        if found is None:
            console.print(
                "pieces of other shards are still missing; the page is written by whoever ends last"
            )
            return None
        pieces[training.name, seed] = found
    pieces |= _measured_before(place, seeds)
    table = Table(pieces)
    findings = [
        decide(table, place.prepared)
        for claim, decide in paper.claims.items()
        if all(
            (name, seed) in pieces
            for name in paper.needed[claim]
            for seed in all_trainings[name].seeds(seeds)
        )
    ]
    update_result(folder / f"{paper.name}.json", Result(claims=[finding.claim for finding in findings]))
    write_page(folder / f"{paper.name}.md", paper.title, findings, pieces, all_trainings)
    return findings


def _claims(paper: Paper, asked: Sequence[str]) -> Sequence[str]:
    """What was asked for, or everything."""
    for claim in asked:
        if claim not in paper.claims:
            guess = nearest(claim, paper.claims)
            hint = f"did you mean {guess!r}?" if guess else f"there is {', '.join(paper.claims)}"
            raise UserError(f"there is no claim {claim!r}; {hint}")
    return asked or tuple(paper.claims)


def _measured_before(place: Workplace, seeds: Sequence[int]) -> dict[tuple[str, int], Piece]:
    """All pieces that are there, whatever was asked for: the page keeps the claims of earlier calls."""
    found = {
        (name, seed): place.known(training, seed)
        for name, training in place.trainings.items()
        for seed in training.seeds(seeds)
    }
    return {key: piece for key, piece in found.items() if piece is not None}


def _of_shard(
    wanted: Sequence[tuple[Training, int]], place: Workplace, shard: tuple[int, int]
) -> list[tuple[Training, int]]:
    """The pieces of one shard: what shares a run folder stays together."""
    index, number = shard
    order = list(place.trainings)

    def home(training: Training, seed: int) -> int:
        while (other := training.start or training.run) is not None:
            training = place.trainings[other]
        return order.index(training.name) + seed

    return [(training, seed) for training, seed in wanted if home(training, seed) % number == index]


def _measure_missing(
    place: Workplace, todo: Sequence[tuple[Training, int]], console: Console
) -> dict[tuple[str, int], Piece]:
    found: dict[tuple[str, int], Piece] = {}
    columns = (
        TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("pieces", total=len(todo))
        for training, seed in todo:
            bar.update(task, description=f"{training.name}, seed {seed}")
            piece = place.known(training, seed)
            if piece is None:
                for name in training.needs:
                    prepare(name, place.prepared, place.runs)
                piece = measure(place, training, seed)
                console.print(
                    f"{training.name}, seed {seed}: "
                    + ", ".join(f"{what} {took:.0f} s" for what, took in piece.seconds.items())
                )
            found[training.name, seed] = piece
            bar.advance(task)
    return found
