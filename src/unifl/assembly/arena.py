"""Pictures for an arena that models draw when it is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from unifl.assembly import world_names
from unifl.assembly.drawing import Drawing
from unifl.assembly.generate import draw
from unifl.assembly.locate import locate_model
from unifl.assembly.open_model import open_model
from unifl.data import load_prompts
from unifl.errors import UserError

DEMO_PROMPTS, _DEMO_SEED = 12, 97
_DEMO = {"20 steps": (20, None), "4 steps": (4, None), "20 steps, unguided": (20, 1.0)}
"""Ways to sample the packaged model that people can tell apart: evaluations per picture, and guidance."""


def draw_models(
    models: Sequence[str],
    prompts: Path | None,
    folder: Path,
    *,
    count: int,
    seed: int,
    num_steps: int | None,
    progress: Callable[[str, int, int], None],
) -> list[str]:
    """Draw the pictures of several models.

    Args:
        models: Each as MODEL or NAME=MODEL, see `open_model`.
        prompts: A file of prompts.
        folder: Gets a folder for each.
        count: Pictures of each prompt.
        seed: The first.
        num_steps: See `open_model`.
        progress: Called with (name, pictures done, pictures).

    Returns:
        NAME=FOLDER for each.

    Raises:
        UserError: No prompts, two models of one name, or a model that cannot be opened.
    """
    if prompts is None:
        raise UserError("models need prompts to draw; name a file of them by --prompts")
    texts, found = load_prompts(prompts), []
    named = _named(models)
    # what is wrong with the last is told before the first has drawn for hours
    for model in [*named.values()][1:]:
        open_model(model, num_steps=num_steps)
    for label, model in named.items():
        opened = open_model(model, num_steps=num_steps)
        drawing = Drawing(model=opened, prompts=texts, seed=seed, count=count)
        found.append(f"{label}={_draw_apart(drawing, folder, partial(progress, label))}")
    return found


def _named(models: Sequence[str]) -> dict[str, str]:
    """Models by what they are called."""
    found: dict[str, str] = {}
    for text in models:
        name, equals, model = text.partition("=")
        label, model = (
            (name, model) if equals and not Path(text).exists() else (locate_model(text).name, text)
        )
        if label in found:
            raise UserError(
                f"{found[label]} and {model} are both called {label!r}; give them names, as in --model before=MODEL"
            )
        found[label] = model
    return found


def _draw_apart(drawing: Drawing, folder: Path, progress: Callable[[int, int], None] | None) -> Path:
    """Draw what is not there yet, in a folder of its own: what was asked for otherwise is left alone."""
    place = folder / drawing.digest
    draw(drawing, place, progress=progress)
    return place


def draw_demo(folder: Path, *, progress: Callable[[str, int, int], None] | None = None) -> dict[str, Path]:
    """Pictures of the embedded world, sampled in three ways: a folder by name. Some seconds.

    Args:
        folder: Gets a folder for each.
        progress: Called with (name, pictures done, pictures).
    """
    from unifl.world.scenes import sample_prompts

    prompts = sample_prompts(DEMO_PROMPTS, seed=_DEMO_SEED, held_out=False)
    found = {}
    for name, (steps, guidance) in _DEMO.items():
        opened = open_model(f"{world_names.PREFIX}pipeline", num_steps=steps, guidance=guidance)
        shown = None if progress is None else partial(progress, name)
        found[name] = _draw_apart(Drawing(model=opened, prompts=prompts), folder, shown)
    return found
