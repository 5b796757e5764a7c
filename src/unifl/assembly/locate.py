"""Where a model is: a name, a folder, an earlier run, or the LoRA of one together with the model it belongs to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from unifl.assembly import world_names
from unifl.assembly.recipe import MethodConfig, ModelConfig, Recipe, SamplingConfig, load_recipe
from unifl.errors import UserError
from unifl.models.save import LORA_FILE
from unifl.models.user_files import USER_FILE
from unifl.training.checkpoint import SETTINGS, checkpoints, latest_checkpoint
from unifl.training.run import MODEL

_MAX_CHAIN = 8


@dataclass(frozen=True)
class Located:
    """A model that can be loaded.

    Attributes:
        source: A diffusers folder, a hub name or a .safetensors file.
        lora: A LoRA on top of it.
        users: A user adapter on top of that.
        name: A short name for tables and file names.
        sampling: How the run that made it says it is sampled; None where no run is known.
        model: The settings it was loaded with there (resolution, variant, ...); None where no run is known.
        is_world: Whether it is the packaged pipeline, whose best settings are on record.
        method: Settings of the method that trained it; None where no run is known.
    """

    source: str
    lora: str | None = None
    users: str | None = None
    name: str = "model"
    sampling: SamplingConfig | None = None
    model: ModelConfig | None = None
    is_world: bool = False
    method: MethodConfig | None = None


def locate_model(name: str | Path, *, lora: str | Path | None = None) -> Located:
    """Find what a model argument means.

    Args:
        name: `world:pipeline`, a hub name, a .safetensors file, a diffusers folder, the folder of a run, one of its
            checkpoints, or the `model` folder of either.
        lora: A LoRA on top, in any of the ways in which LoRA can be given (`locate_lora`).

    Raises:
        UserError: A folder that holds none of these, or two LoRA at once.
    """
    found = _locate(str(name), 0)
    if lora is None:
        return found
    if found.lora is not None:
        raise UserError(
            f"{name} is a LoRA already ({found.lora}), and another one was given; save the first as a pipeline "
            "(save_pipeline: true) and start from that"
        )
    return replace(found, lora=locate_lora(lora), name=_short(str(lora)))


def locate_lora(name: str | Path) -> str:
    """The file or folder of a LoRA, which may be given as the folder of the run that trained it.

    Raises:
        UserError: A run that trained all weights, or has no model yet.
    """
    folder = Path(name).expanduser()
    if not (folder / SETTINGS).is_file():
        return str(name)
    model = _model_folder(folder)
    if (model / USER_FILE).is_file():
        raise UserError(f"{name} trained a user adapter, which is no LoRA; give it as the model itself")
    if not (model / LORA_FILE).is_file():
        raise UserError(
            f"{name} trained all weights, so it has no LoRA; start from it by model.pretrained_model_name_or_path"
        )
    return str(model)


def _locate(name: str, depth: int) -> Located:
    if name.startswith(world_names.PREFIX):
        return Located(world_names.pipeline(name), name="base", is_world=True)
    folder = Path(name).expanduser()
    if not folder.is_dir() or (folder / "model_index.json").is_file():
        return Located(name, name=_short(name))
    if (folder / SETTINGS).is_file():
        recipe = load_recipe(folder / SETTINGS)
        return _of_run(_model_folder(folder), recipe, _short(name), depth)
    for file, what in ((LORA_FILE, "a LoRA"), (USER_FILE, "a user adapter")):
        if (folder / file).is_file():
            settings = folder.parent / SETTINGS
            if settings.is_file():
                return _of_run(folder, load_recipe(settings), _short(str(folder.parent)), depth)
            hint = "give the model, and this by --lora" if file == LORA_FILE else "give the folder of its run"
            raise UserError(f"{name} holds {what} without its model; {hint}")
    return Located(name, name=_short(name))  # loading it explains what is missing there


def _of_run(model: Path, recipe: Recipe, name: str, depth: int) -> Located:
    if (model / "model_index.json").is_file():
        return Located(str(model), None, None, name, recipe.sampling, recipe.model, method=recipe.method)
    if depth >= _MAX_CHAIN:
        raise UserError(f"{model} belongs to a run that starts from itself; give its model by hand")
    # what training started from; a LoRA that it started from is part of the LoRA that it saved
    start = _locate(recipe.model.pretrained_model_name_or_path, depth + 1)
    if (model / USER_FILE).is_file():
        lora = start.lora if recipe.model.lora is None else locate_lora(recipe.model.lora)
        return Located(
            start.source, lora, str(model), name, recipe.sampling, recipe.model, method=recipe.method
        )
    if start.lora is not None:
        start = replace(start, lora=None)
    return Located(start.source, str(model), None, name, recipe.sampling, recipe.model, method=recipe.method)


def _model_folder(folder: Path) -> Path:
    """The user-facing model of a run or a checkpoint; of an unfinished run, that of its newest checkpoint."""
    if (folder / MODEL).is_dir():
        return folder / MODEL
    newest = latest_checkpoint(folder) if checkpoints(folder) else None
    if newest is None or not (newest / MODEL).is_dir():
        raise UserError(f"the run {folder} has written no model yet; train it further first")
    return newest / MODEL


def _short(name: str) -> str:
    path = Path(name)
    stem = path.stem if path.suffix == ".safetensors" else path.name
    return stem if stem != MODEL else path.parent.name
