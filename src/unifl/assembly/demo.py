"""`unifl demo`: the main job of the library, start to end, on a laptop.

Three recipes are trained (ReFL, UniFL stage 1, stage 2 from stage 1), six models are evaluated on held-out
prompts with paired noise, and a report is written.  The numbers of steps are fixed, not the time; whatever is
there already from an earlier call is used again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from unifl.assembly.evaluate import (
    Candidate,
    Evaluation,
    curated_pictures,
    evaluate_models,
    object_numbers,
)
from unifl.assembly.figures import EVALUATION_SEED, held_out_prompts
from unifl.assembly.open_model import open_model
from unifl.assembly.recipe import load_recipe
from unifl.assembly.run import run_recipe
from unifl.evaluation import Judge, write_report
from unifl.metrics.result import Comparison, Result

_PROMPTS, _SEEDS, _BATCH = 500, 2, 64
_PAIRS = (
    ("refl@20", "base@20"),
    ("stage1@20", "base@20"),
    ("stage1@20", "refl@20"),
    ("stage2@4", "base@4"),
    ("stage2@4", "base@20"),
    ("stage2@20", "base@20"),
)


@dataclass(frozen=True)
class Part:
    """One training run of the demo: its recipe and what the demo changes in it."""

    name: str
    recipe: str
    changes: tuple[str, ...] = ()


def parts(folder: Path) -> list[Part]:
    """The runs in the order in which they need each other."""
    return [
        Part("refl", "refl"),
        Part("stage1", "unifl_stage1"),
        Part("stage2", "unifl_stage2", (f"model.lora={folder / 'stage1'}",)),
    ]


def run_demo(
    folder: Path,
    *,
    gold: Callable[[], Judge],
    console: Console,
    num_prompts: int = _PROMPTS,
    changes: Sequence[str] = (),
) -> Result:
    """Train, evaluate, compare, report.

    Args:
        folder: Gets `refl/`, `stage1/`, `stage2/`, `result.json` and `report.html`.
        gold: Loads the judge of final figures; called after training has ended.
        console: Where progress is shown.
        num_prompts: Held-out prompts, each drawn with two seeds.
        changes: Overrides for all recipes, for a quicker look.
    """
    began = time.perf_counter()
    for part in parts(folder):
        console.rule(part.name)
        recipe = load_recipe(part.recipe, [f"output_dir={folder / part.name}", *part.changes, *changes])
        run_recipe(recipe, console=console)
    console.rule("evaluation")
    done = _evaluate(folder, gold(), num_prompts, console)
    report = write_report(folder)
    _tell(done.comparisons, console)
    console.print(f"{(time.perf_counter() - began) / 60:.1f} minutes; the report is {report}")
    return done.result


def candidates(folder: Path) -> dict[str, Candidate]:
    """The six models, each as it should be sampled: the base with its best setting on record."""
    # as in training; it takes a fifth less time than float32
    opened = partial(open_model, mixed_precision="bf16")
    named = {
        "base@4": opened("world:pipeline", num_steps=4),
        "base@20": opened("world:pipeline", num_steps=20),
        "refl@20": opened(folder / "refl"),
        "stage1@20": opened(folder / "stage1"),
        "stage2@4": opened(folder / "stage2"),
        "stage2@20": opened(folder / "stage2", num_steps=20),
    }
    return {
        name: Candidate(generator=m.generator, sampling=m.sampling, batch_size=_BATCH)
        for name, m in named.items()
    }


def _evaluate(folder: Path, judge: Judge, num_prompts: int, console: Console) -> Evaluation:
    prompts = held_out_prompts(num_prompts)
    columns = (
        TextColumn("{task.description:10}"),
        BarColumn(),
        TextColumn("{task.completed}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, int] = {}

        def progress(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done)  # type: ignore[arg-type]

        return evaluate_models(
            candidates(folder),
            prompts,
            judge,
            judge_name="gold",
            folder=folder,
            pairs=_PAIRS,
            object_counts=object_numbers(prompts),
            references={"curated": curated_pictures(_SEEDS * num_prompts, seed=EVALUATION_SEED)},
            seeds=range(_SEEDS),
            diversity_prompts=num_prompts,
            diversity_seeds=_SEEDS,  # the pictures that are drawn anyway
            reuse=True,
            progress=progress,
        )


def _tell(comparisons: Sequence[Comparison], console: Console) -> None:
    for row in comparisons:
        console.print(f"{row.a:>10} beats {row.b:<8} {row.win:.1%}  [{row.low:.1%}, {row.high:.1%}]")
