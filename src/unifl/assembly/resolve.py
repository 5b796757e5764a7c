"""Names of feedback and judges in recipes become objects; `sources` does so for data.

    world:...              what the package ships, see `world_names`
    scorer:name            a scorer that people use, see `unifl.feedback.scorers`
    remote:http://h:port   a scorer on another machine, which `unifl serve-reward` serves
    package.module:name    an object, a class or a function of your own (the working folder is searched too)
    path                   a folder of reward weights, of a trained reward model, or of a latent proxy
    with `parts`           a combination of such, see `combined`

Everything is loaded when a run is put together, and not before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unifl.assembly import world_names
from unifl.assembly.combined import combined
from unifl.assembly.objects import is_dotted, made, make_object
from unifl.assembly.part import Part, as_part
from unifl.errors import UserError, nearest
from unifl.evaluation.judge import Judge
from unifl.feedback import (
    Critic,
    CriticConfig,
    Feedback,
    NetworkFeedback,
    as_feedback,
    load_proxy,
    open_critic,
)
from unifl.feedback.calibration import Calibrated
from unifl.feedback.combine import Affine, Ensemble, Target, WeightedSum
from unifl.feedback.latent_proxy_files import is_proxy
from unifl.feedback.networks import TRUNK_FILE, RewardNetwork, SharedTrunk, load_head, load_trunk
from unifl.feedback.one_of import OneAtRandom
from unifl.feedback.remote import RemoteReward
from unifl.feedback.reward_models import is_reward_model, load_reward_model
from unifl.feedback.scorers import SCORERS, open_scorer

WORLD = world_names.PREFIX
SCORER = "scorer:"
REMOTE = "remote:"


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
        given: `world:rewards/<axis>`; `scorer:<name>`, with `weights` and `base` as arguments; `remote:<url>`,
            with those of `RemoteReward`; `<folder>/<head>` for weights that `save_family` wrote, or the folder where
            that has one head; the folder of a reward model that `unifl reward train` wrote; the folder of a latent
            proxy, which stays as it is; a dotted path; or a combination of such.
        name: What the method calls it.
        device: Where its network goes.
        trunks: Trunks that others loaded, by folder; gets this one's.

    Raises:
        UserError: Nothing of that name, or something that cannot be called.
    """
    part = as_part(given)
    if part.parts:
        opened = {
            key: feedback(one, name=key, device=device, trunks=trunks) for key, one in part.parts.items()
        }
        found = combined(part, opened, name=name)
    elif part.path.startswith(WORLD):
        found = world_names.part(part.path, "rewards")
    elif part.path.startswith(SCORER):
        found = open_scorer(part.path.removeprefix(SCORER), **part.kwargs)
    elif part.path.startswith(REMOTE):
        found = _remote(part, name)
    elif is_dotted(part.path):
        found = as_feedback(
            made(part), name=name, needs_prompt=part.needs_prompt, differentiable=part.differentiable
        )
    elif is_proxy(part.path):
        found = load_proxy(part.path)
    elif is_reward_model(part.path):
        found = load_reward_model(part.path)
    else:
        found = _reward_of_folder(Path(part.path).expanduser(), name, {} if trunks is None else trunks)
    _move(found, device)
    return found


def is_file(path: str) -> bool:
    """Whether a name means files, not something of the world or of a module."""
    return not path.startswith((WORLD, SCORER, REMOTE)) and not is_dotted(path)


def named(
    name: str,
    *,
    weights: str | None = None,
    base: str | None = None,
    question: str | None = None,
    revision: str | None = None,
) -> Part:
    """A reward as a command line has it: scorers by their bare names, with where their files are."""
    files = {"weights": weights, "base": base, "question": question, "revision": revision}
    given = {key: value for key, value in files.items() if value is not None}
    return Part(path=f"{SCORER}{name}" if name in SCORERS else name, kwargs=given)


def _remote(part: Part, name: str) -> Feedback:
    try:
        return RemoteReward(part.path.removeprefix(REMOTE), **({"name": name} | part.kwargs))
    except TypeError as error:
        raise UserError(
            f"{part.path} cannot be opened with {part.kwargs}; its arguments are timeout, patience, token_file and "
            "fingerprint"
        ) from error


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
    part = as_part(given)
    if part.parts:
        raise UserError(f"critics.{name} has parts; only rewards are combined, so name each critic by itself")
    if part.path.startswith(WORLD):
        found = world_names.part(part.path, "critics")
    elif is_dotted(part.path):
        found = made(part)
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


# --- files and networks ---------------------------------------------------------------------------------


def _reward_of_folder(path: Path, name: str, trunks: dict[Path, SharedTrunk]) -> Feedback:
    folder, head = path.parent, path.name
    if (path / TRUNK_FILE).is_file():
        folder, head = path, _only_head(path)
    elif not (folder / TRUNK_FILE).is_file():
        place = "discriminator" if name == "discriminator" else f"rewards.{name}"
        raise UserError(
            f"no reward {str(path)!r}; set {place} to a folder that `save_family` wrote or <folder>/<head> of one (see "
            "docs/extending.md), to the folder of a latent proxy or of `unifl reward train`, to world:rewards/<axis>, "
            f"to scorer:<name> or to package.module:name{_nearest_reward(path)}"
        )
    if folder not in trunks:
        trunks[folder] = load_trunk(folder)
    return NetworkFeedback(load_head(RewardNetwork(trunks[folder]), folder, head), name=head)


def _nearest_reward(path: Path) -> str:
    """A question whether a scorer was meant, or what is beside it on the disk; empty where nothing is alike."""
    alone = len(path.parts) == 1
    guess = nearest(path.name, SCORERS if alone else [one.name for one in path.parent.glob("*/")])
    if guess is None:
        return ""
    return f". Did you mean {SCORER + guess if alone else path.with_name(guess)}?"


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
    if isinstance(part, WeightedSum | OneAtRandom):
        return [network for inner, _ in part.parts for network in _networks(inner)]
    if isinstance(part, Ensemble):
        return [network for inner in part.parts for network in _networks(inner)]
    if isinstance(part, Affine | Target | Calibrated):
        return _networks(part.feedback)
    network = part if isinstance(part, nn.Module) else getattr(part, "network", None)
    return [network] if isinstance(network, nn.Module) else []


def _move(part: Any, device: torch.device | str) -> None:
    for network in _networks(part):
        network.to(device)
