"""What `unifl evaluate` and `unifl compare` call and print; imported by them when they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.markup import escape
from rich.table import Table

from unifl.assembly.evaluate import Evaluation
from unifl.assembly.figures import Request, Spec, measure
from unifl.cli.console import interrupted, out, progress_line
from unifl.errors import UserError
from unifl.evaluation import ModelResult, compare_models
from unifl.evaluation.report_inputs import decode_id
from unifl.metrics import Interval
from unifl.metrics.result import Comparison
from unifl.world.gold import load_gold


def show_figures(models: Sequence[str], request: Request, folder: Path) -> None:
    """Evaluate models against the first of them, and print every metric and comparison."""
    done = _measure(models, request, folder)
    out.print(_metric_table(done.models))
    _show_distances(done)
    _tell_files(folder)
    show_comparisons(done.comparisons)
    _show_ranks(done)


def compare_drawn(a: str, b: str, request: Request, folder: Path, metric: str) -> Comparison:
    """Draw and judge pictures of two models."""
    done = _measure([a, b], request, folder, against_first=False, metric=metric)
    _tell_files(folder)
    return done.comparisons[0]


def compare_stored(a: str, b: str, folder: Path, metric: str) -> Comparison:
    """Compare two models by the scores that an evaluation has left in a folder.

    Raises:
        UserError: No such folder, no scores of one of them or none of the metric, or other prompts, seeds or judges
            stand behind them.
    """
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder}; check the path, or evaluate the two first: unifl compare A B"
        )
    there = {decode_id(path.stem): path for path in sorted(folder.glob("scores/*.npz"))}
    for name in (a, b):
        if name not in there:
            raise UserError(f"{folder} has no scores of {name!r}; there are: {', '.join(there) or 'none'}")
    results = {name: ModelResult.load(there[name]) for name in (a, b)}
    _require_metric(metric, results)
    origin = results[a].origin
    judge = "unknown" if origin is None else origin.judge
    return compare_models(results, [(a, b)], judge=judge, metric=metric)[0]


def _require_metric(metric: str, results: Mapping[str, ModelResult]) -> None:
    for name, result in results.items():
        found = [key for key, values in result.scores.values.items() if np.isfinite(values).any()]
        if metric not in found:
            raise UserError(f"{name} has no {metric}; choose what decides by --metric: {', '.join(found)}")


def show_comparisons(rows: Sequence[Comparison]) -> None:
    """Print a table, and each row once more in words."""
    if not rows:
        return
    table = Table("a", "b", "judge", "metric", "win", "95 %", "tie", "lose", "prompts")
    for row in rows:
        shares = (f"{row.win:.3f}", f"{row.low:.3f} to {row.high:.3f}", f"{row.tie:.3f}", f"{row.lose:.3f}")
        table.add_row(*map(escape, (row.a, row.b, row.judge, row.metric)), *shares, str(row.n))
    out.print(table)
    for row in rows:
        interval = f"{row.low:.1%} to {row.high:.1%}, {row.n} prompts, by {row.metric}"
        said = f"{row.a} wins {row.win:.1%} against {row.b} ({interval})"
        out.print(said, highlight=False, markup=False, soft_wrap=True)


def _show_distances(done: Evaluation) -> None:
    """Distances with models in columns, and what of them is left out and why."""
    if not done.distances:
        return
    table = Table("distance", *done.distances, title_justify="left")
    for key in dict.fromkeys(key for one in done.distances.values() for key in one.numbers):
        found = [one.numbers.get(key) for one in done.distances.values()]
        table.add_row(key, *("" if one is None else escape(_distance_text(one)) for one in found))
    out.print(table)
    for name, distances in done.distances.items():
        for key, why in distances.left_out.items():
            _tell(f"{name}: no {key}: {why.replace(', or set few if you mean it', '')}")


def _distance_text(one: Interval) -> str:
    return f"{one.value:.4g}" + ("" if one.low == one.high else f"  [{one.low:.4g}, {one.high:.4g}]")


def _show_ranks(done: Evaluation) -> None:
    """Bradley-Terry strengths, or why there are none."""
    if done.unranked:
        _tell(f"no ranks: {done.unranked}")
    if done.ranks is None:
        return
    table = Table(
        "rank", "model", "strength", "95 %", "comparisons", title="Bradley-Terry", title_justify="left"
    )
    for place, (name, one) in enumerate(zip(done.ranks.names, done.ranks.strengths, strict=True), start=1):
        interval = f"{one.low:+.3f} to {one.high:+.3f}"
        table.add_row(str(place), escape(name), f"{one.value:+.3f}", interval, str(one.n))
    out.print(table)


def own_folder(models: Sequence[str]) -> Path:
    """The run's own folder if a run is the only model."""
    alone = Path(Spec.parse(models[0]).model) if len(models) == 1 else None
    return alone if alone is not None and (alone / "config.yaml").is_file() else Path("runs/evaluation")


def _measure(
    models: Sequence[str],
    request: Request,
    folder: Path,
    *,
    against_first: bool = True,
    metric: str | None = None,
) -> Evaluation:
    try:
        return measure(
            models,
            request,
            folder,
            gold=load_gold,
            against_first=against_first,
            metric=metric,
            progress=progress_line,
            tell=_tell,
        )
    except KeyboardInterrupt as stop:
        raise interrupted("the same command with --reuse goes on where it was") from stop


def _tell(line: str) -> None:
    out.print(line, highlight=False, markup=False, soft_wrap=True)


def _tell_files(folder: Path) -> None:
    _tell(f"wrote {folder / 'result.json'}; the page about it: unifl report {folder}")


def _metric_table(models: Mapping[str, ModelResult]) -> Table:
    """Models in columns, metrics in rows."""
    table = Table("metric", *models, title="95 % intervals over prompts", title_justify="left")
    for metric in dict.fromkeys(key for model in models.values() for key in model.metrics):
        found = [model.metrics.get(metric) for model in models.values()]
        cells = ["" if m is None else f"{m.value:.3f}  [{m.low:.3f}, {m.high:.3f}]" for m in found]
        table.add_row(metric, *map(escape, cells))
    return table
