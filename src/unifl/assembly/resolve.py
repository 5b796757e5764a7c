"""Names in recipes become objects.

    world:...              what the package ships, see `world_names`
    package.module:name    an object, a class or a function of your own (the working folder is searched too)
    path                   a file of prompts, a folder of annotated pictures, a folder of reward weights

Everything is loaded when a run is put together, and not before.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unifl.assembly import world_names
from unifl.assembly.recipe import CocoConfig, Part
from unifl.data import AnnotatedImages, CocoImages, load_prompts
from unifl.errors import UserError, nearest
from unifl.evaluation.judge import Judge
from unifl.feedback import Critic, CriticConfig, Feedback, NetworkFeedback, as_feedback, open_critic
from unifl.feedback.combine import Affine, WeightedSum
from unifl.feedback.networks import TRUNK_FILE, RewardNetwork, SharedTrunk, load_head, load_trunk
from unifl.feedback.pretrained import label_names
from unifl.methods.base import Source

WORLD = world_names.PREFIX
_DOTTED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


# --- feedback and judges ---------------------------------------------------------------------------------


def rewards(given: Mapping[str, str | Part], *, device: torch.device | str = "cpu") -> dict[str, Feedback]:
    """Rewards by name; those of one folder share its trunk, which then sees a picture once for all of them.

    Raises:
        UserError: See `feedback`.
    """
    trunks: dict[Path, SharedTrunk] = {}
    return {name: feedback(part, name=name, device=device, trunks=trunks) for name, part in given.items()}


def feedback(
    given: str | Part,
    *,
    name: str,
    device: torch.device | str = "cpu",
    trunks: dict[Path, SharedTrunk] | None = None,
) -> Feedback:
    """A reward.

    Args:
        given: `world:rewards/<axis>`; `<folder>/<head>` for weights that `save_family` wrote, or the folder where that
            has one head; or a dotted path.
        name: What the method calls it.
        device: Where its network goes.
        trunks: Trunks that others loaded, by folder; gets this one's.

    Raises:
        UserError: Nothing of that name, or something that cannot be called.
    """
    part = given if isinstance(given, Part) else Part(path=given)
    if part.path.startswith(WORLD):
        found: Feedback = world_names.part(part.path, "rewards")
    elif is_dotted(part.path):
        found = as_feedback(
            _made(part), name=name, needs_prompt=part.needs_prompt, differentiable=part.differentiable
        )
    else:
        found = _reward_of_folder(Path(part.path).expanduser(), name, {} if trunks is None else trunks)
    _move(found, device)
    return found


def is_file(path: str) -> bool:
    """Whether a name means files, not something of the world or of a module."""
    return not path.startswith(WORLD) and not is_dotted(path)


def critic(given: str | Part | CriticConfig, *, name: str, device: torch.device | str = "cpu") -> Critic:
    """A critic: `world:critics/<name>`, a dotted path, or the settings of one around a checkpoint.

    Raises:
        UserError: Nothing of that name, an object that is no critic, or a checkpoint that does not fit.
    """
    if not isinstance(given, str | Part):
        try:
            opened = open_critic(given, name=name)
        except UserError as error:
            raise UserError(f"critics.{name}: {error}") from error
        _move(opened, device)
        return opened
    part = given if isinstance(given, Part) else Part(path=given)
    if part.path.startswith(WORLD):
        found = world_names.part(part.path, "critics")
    elif is_dotted(part.path):
        found = _made(part)
    else:
        raise UserError(
            f"critics.{name} is {part.path!r}; write world:critics/<name>, package.module:name, or "
            "`kind` with the settings of a checkpoint"
        )
    if not isinstance(found, Critic):
        raise UserError(
            f"critics.{name}: {part.path} is no critic; it needs `name`, `needs`, `pseudo(batch)` and a call with "
            "(images, batch)"
        )
    _move(found, device)
    return found


def judge(name: str, *, gold: Callable[[], Judge] | None = None) -> Judge:
    """A judge: `world:judges/validation`, a dotted path, or `world:judges/gold` where `gold` was handed in.

    Args:
        name: See above.
        gold: Loads the gold judge. Only code that gives final figures has it.
    """
    if name.startswith(WORLD):
        kind = name.removeprefix(WORLD).removeprefix("judges/")
        world_names.known(kind, ["validation", "gold"] if gold else ["validation"], "judge")
        world_names.require_judge(kind)
        return gold() if gold is not None and kind == "gold" else world_names.validation_judge()
    found = make_object(name) if is_dotted(name) else None
    if not isinstance(found, Judge):
        raise UserError(
            f"{name!r} is no judge; write world:judges/validation or package.module:name of an object with "
            "`features(images)` and a call with (images, prompts)"
        )
    return found


# --- data ------------------------------------------------------------------------------------------------


def source(given: str | CocoConfig, *, name: str, resolution: int | None = None) -> Source:
    """Data: `world:prompts|scenes|curated|validation`, a file of prompts, a folder of pictures, a dotted path, COCO.

    Folders are checked row by row here, so that a bad file shows before anything long starts.

    Args:
        given: See above.
        name: What the recipe calls it.
        resolution: Pixels that pictures are brought to.

    Raises:
        UserError: Nothing of that name, an empty file, an unreadable picture, a mask of the wrong size.
    """
    if isinstance(given, CocoConfig):
        return _coco(given, name, resolution)
    if given.startswith(WORLD):
        return world_names.source(given)
    if is_dotted(given):
        found = make_object(given)
        if not isinstance(found, Source):
            raise UserError(f"data.{name}: {given} has no length or no rows; return a list or a data set")
        return found
    path = Path(given).expanduser()
    if path.is_dir():
        pictures = AnnotatedImages(path, resolution=resolution)
        pictures.validate()
        return pictures
    if not path.exists() and not path.suffix:
        raise UserError(f"data.{name}: there is no file or folder {given}; check the path")
    return load_prompts(path)


def _coco(given: CocoConfig, name: str, resolution: int | None) -> CocoImages:
    try:
        names = given.categories if given.labels_of is None else label_names(given.labels_of)
        pictures = CocoImages(
            given.images,
            given.captions,
            instances=given.instances,
            stuff=given.stuff,
            categories=names,
            resolution=resolution,
        )
        pictures.validate()
    except UserError as error:
        raise UserError(f"data.{name}: {error}") from error
    return pictures


def prompts_of(found: Source, name: str) -> list[str]:
    """The first column of a source, for drawing: its prompts.

    Raises:
        UserError: Rows that are no prompts.
    """
    rows = [found[row] for row in range(len(found))]
    if not all(isinstance(row, str) for row in rows):
        raise UserError(
            f"{name} holds {type(rows[0]).__name__} rows where prompts are needed; name a file of prompts"
        )
    return rows


# --- your own --------------------------------------------------------------------------------------------


def is_dotted(name: str) -> bool:
    """Whether a name is written as a dotted path, package.module:name."""
    return _DOTTED.fullmatch(name) is not None


def make_object(path: str) -> Any:
    """The object behind a dotted path; a class is called without arguments.

    Raises:
        UserError: It cannot be imported.
    """
    return _made(Part(path=path))


def _made(part: Part) -> Any:
    """The object behind a dotted path; classes, and functions with arguments, are called."""
    module_name, _, attribute = part.path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(
            0, os.getcwd()
        )  # a console script does not search the working folder, `python -m` does
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"cannot import {module_name!r} for {part.path!r}: {error}; check the name"
        ) from error
    if attribute not in vars(module):
        guess = nearest(attribute, vars(module))
        hint = f"; did you mean {guess!r}?" if guess else ""
        raise UserError(f"{module_name} has no {attribute!r}{hint}")
    found = getattr(module, attribute)
    if not isinstance(found, type) and not part.kwargs:
        return found
    try:
        return found(**part.kwargs)
    except TypeError as error:
        raise UserError(f"{part.path} cannot be called with {part.kwargs}: {error}") from error


def _reward_of_folder(path: Path, name: str, trunks: dict[Path, SharedTrunk]) -> Feedback:
    folder, head = path.parent, path.name
    if (path / TRUNK_FILE).is_file():
        folder, head = path, _only_head(path)
    elif len(path.parts) == 1 or not folder.is_dir():
        place = "discriminator" if name == "discriminator" else f"rewards.{name}"
        raise UserError(
            f"no reward {str(path)!r}; set {place} to a folder that `save_family` wrote or <folder>/<head> of one (see "
            "docs/extending.md), to world:rewards/<axis>, or to package.module:name"
        )
    if folder not in trunks:
        trunks[folder] = load_trunk(folder)
    return NetworkFeedback(load_head(RewardNetwork(trunks[folder]), folder, head), name=head)


def _only_head(folder: Path) -> str:
    heads = sorted(file.stem for file in folder.glob("*.safetensors") if file.name != TRUNK_FILE)
    if len(heads) != 1:
        raise UserError(
            f"{folder} holds the heads {', '.join(heads) or '(none)'}; name one as {folder}/<head>"
        )
    return heads[0]


def networks_of(parts: Mapping[str, Any]) -> list[nn.Module]:
    """The networks of feedback or critics; of a combination, those of its parts."""
    return list(dict.fromkeys(network for part in parts.values() for network in _networks(part)))


def _networks(part: Any) -> list[nn.Module]:
    if isinstance(part, WeightedSum):
        return [network for inner, _ in part.parts for network in _networks(inner)]
    if isinstance(part, Affine):
        return _networks(part.feedback)
    network = part if isinstance(part, nn.Module) else getattr(part, "network", None)
    return [network] if isinstance(network, nn.Module) else []


def _move(part: Any, device: torch.device | str) -> None:
    for network in _networks(part):
        network.to(device)
