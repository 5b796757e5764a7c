"""Where hinge levels come from when a recipe gives none: the world, a JSON file, or preferred pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from unifl.assembly import world_names
from unifl.assembly.recipe import Recipe
from unifl.data import PreferencePairs
from unifl.errors import UserError
from unifl.feedback import Feedback, calibrate_level, preferred_batches
from unifl.methods.unifl_config import UniFLConfig


def with_levels(
    recipe: Recipe,
    rewards: Mapping[str, Feedback],
    *,
    device: torch.device | str = "cpu",
    resolution: int | None = None,
) -> Recipe:
    """The recipe with the hinge levels of aesthetic feedback as numbers.

    Args:
        recipe: May leave levels open.
        rewards: Score the preferred pictures, where levels come from a folder of pairs.
        device: Where they do so.
        resolution: Pixels that those pictures are brought to: the size that the model draws, since a reward scores
            another size otherwise. None takes them as they are.

    Raises:
        UserError: Nothing to take a level from.
    """
    method = recipe.method
    if not isinstance(method, UniFLConfig) or method.aesthetic is None or recipe.levels is None:
        return recipe
    term = method.aesthetic
    unsettled = [axis for axis, level in term.levels.items() if math.isnan(level)]
    if not unsettled:
        return recipe
    chosen = {axis: rewards[axis] for axis in unsettled if axis in rewards}
    found = _levels(recipe.levels, chosen, device, resolution)
    for axis in unsettled:
        if axis not in found:
            raise UserError(
                f"{recipe.levels} gives no level for {axis!r}; it has {', '.join(found) or 'none'}"
            )
    settled = replace(term, levels={**term.levels, **{axis: found[axis] for axis in unsettled}})
    return replace(recipe, method=replace(method, aesthetic=settled))


def require_levels(name: str) -> None:
    """See that hinge levels can be read, before a model is loaded for them.

    Raises:
        UserError: There is nothing of that name.
    """
    if not name.startswith(world_names.PREFIX) and not Path(name).expanduser().exists():
        raise _no_levels(name, "there is no such file or folder")


def _no_levels(name: str, why: object) -> UserError:
    return UserError(
        f"no hinge levels at {name} ({why}); write world:levels, a JSON file {{axis: level}}, or a folder of "
        "preference pairs"
    )


def _levels(
    name: str, rewards: Mapping[str, Feedback], device: torch.device | str, resolution: int | None
) -> dict[str, float]:
    if name.startswith(world_names.PREFIX):
        return world_names.levels(name)
    path = Path(name).expanduser()
    if path.is_dir():
        pairs = PreferencePairs.from_folder(path, resolution=resolution)
        found = {}
        for axis, reward in rewards.items():
            chosen = pairs.of_axis(axis) if pairs.axes else pairs
            found[axis] = calibrate_level(reward, preferred_batches(chosen, device=device))
        return found
    try:
        return {
            str(axis): float(level) for axis, level in json.loads(path.read_text(encoding="utf-8")).items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _no_levels(name, error) from error
