"""What an audit chooses from: the checkpoints of a run, its finished model, and the model that it started from."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from unifl.assembly.open_model import open_model
from unifl.assembly.recipe import Recipe, load_recipe
from unifl.disk import files_sha256
from unifl.errors import UserError
from unifl.models import Generator
from unifl.models.save import LORA_FILE
from unifl.training.checkpoint import SETTINGS, checkpoints, damage
from unifl.training.run import MODEL

_WEIGHTS = ".safetensors"


@dataclass(frozen=True)
class Candidate:
    """A model that a run has left.

    Attributes:
        name: Of its folder.
        step: Training steps behind it.
        folder: For `open_model`.
        sha256: Of its weights.
    """

    name: str
    step: int
    folder: Path
    sha256: str


def run_recipe_of(run: Path) -> Recipe:
    """The recipe of a run.

    Raises:
        UserError: The folder is not there, or is not that of a run.
    """
    if not run.is_dir():
        raise UserError(f"there is no folder {run}; give the folder of a run")
    if not (run / SETTINGS).is_file():
        raise UserError(
            f"{run} is not the folder of a run: it has no {SETTINGS}; give what `output_dir` of a recipe names"
        )
    return load_recipe(run / SETTINGS)


def candidates(run: Path) -> list[Candidate]:
    """Checkpoints by step, and `model` where it is none of them; damaged ones are left out with a warning.

    Raises:
        UserError: There is none.
    """
    found = []
    for step, folder in checkpoints(run):
        reason = damage(folder)
        if reason is None:
            found.append(Candidate(folder.name, step, folder, _sha256(folder / MODEL)))
        else:
            warnings.warn(f"leaving out the damaged checkpoint {folder}: {reason}", stacklevel=2)
    final = run / MODEL
    if final.is_dir() and _sha256(final) not in {one.sha256 for one in found}:
        last = max((one.step for one in found), default=0)
        found.append(
            Candidate(
                MODEL, max(load_recipe(run / SETTINGS).training.max_train_steps, last), final, _sha256(final)
            )
        )
    if not found:
        raise UserError(
            f"the run {run} has no checkpoint to audit; train it with training.checkpointing_steps=... and "
            "training.checkpoints_total_limit=null, which keeps them all"
        )
    return found


def open_start(recipe: Recipe, *, device: str) -> Generator:
    """The model that a run started from, drawn in the run's own precision.

    Raises:
        UserError: It is not there (any more).
    """
    model = recipe.model
    name = model.student or model.pretrained_model_name_or_path
    try:
        return open_model(
            name,
            lora=model.lora,
            device=device,
            dtype=getattr(torch, model.dtype),
            mixed_precision=recipe.training.mixed_precision,
            resolution=model.resolution,
            variant=model.variant,
            revision=model.revision,
            config=model.config,
        ).generator
    except UserError as error:
        raise UserError(
            f"the model that the run started from cannot be opened: {error}. Where the run names it by a path that is "
            "not absolute, call this from the folder that the run was started in"
        ) from error


def _sha256(folder: Path) -> str:
    """Of the weights in a folder, by name; of a LoRA in one of its forms, beside which a whole pipeline may lie."""
    lora = folder / LORA_FILE
    return files_sha256(folder, [lora] if lora.is_file() else folder.rglob(f"*{_WEIGHTS}"))
