"""From a recipe to a trained and evaluated model: names become objects, objects become a run.

from unifl.assembly import load_recipe, run_recipe
result = run_recipe(load_recipe("refl", ["training.max_train_steps=10"]))

The layers below know nothing of recipes; this one knows all of them, the embedded world included.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unifl.assembly.build import assemble as assemble
    from unifl.assembly.evaluate import Candidate as Candidate
    from unifl.assembly.evaluate import evaluate_models as evaluate_models
    from unifl.assembly.forecast import plan_recipe as plan_recipe
    from unifl.assembly.locate import locate_model as locate_model
    from unifl.assembly.open_model import open_model as open_model
    from unifl.assembly.recipe import Recipe as Recipe
    from unifl.assembly.recipe import load_recipe as load_recipe
    from unifl.assembly.run import run_recipe as run_recipe

# imported on first use: the command line must answer before torch is loaded
_HOME = {
    "Candidate": "evaluate",
    "Recipe": "recipe",
    "assemble": "build",
    "evaluate_models": "evaluate",
    "load_recipe": "recipe",
    "locate_model": "locate",
    "open_model": "open_model",
    "plan_recipe": "forecast",
    "run_recipe": "run",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
