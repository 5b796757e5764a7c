"""A reward model as a folder that opens again as a Feedback.

reward.json             what it is: its shape, and what was found when it was trained
weights.safetensors     everything but what `base` or `latents` hold
base/                   a model of transformers, with tokenizer and image processor, as it was trained
latents/                towers on latents (`save_proxy`)
fingerprints.json       SHA-256 of each of these files
README.md               a card: what it was trained on, how good it is, what to know
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from unifl.config import load, plain
from unifl.disk import file_sha256, write_atomically
from unifl.errors import UserError
from unifl.feedback.latent_proxy_files import load_proxy, save_proxy
from unifl.feedback.reward_models.backbones import LatentBackbone, SmallBackbone, TwoTowerBackbone
from unifl.feedback.reward_models.card import write_card
from unifl.feedback.reward_models.config import RewardModelConfig
from unifl.feedback.reward_models.model import Backbone, RewardModel, TrainedReward, around_base, make_head
from unifl.feedback.scorers.looking import settings_of

REWARD, WEIGHTS, PRINTS = "reward.json", "weights.safetensors", "fingerprints.json"
_BASE, _LATENTS = "base", "latents"
_KIND = "reward_model"


def save_reward_model(
    model: RewardModel, folder: str | Path, *, name: str, found: Mapping[str, Any] | None = None
) -> Path:
    """Write a reward model into a folder, which is made; `reward.json` comes last.

    Args:
        model: The network.
        folder: Where.
        name: What it is called.
        found: What is known of it, as JSON: on what it was trained, its accuracy.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    backbone, kept = model.backbone, "backbone."
    if isinstance(backbone, LatentBackbone):
        save_proxy(backbone.proxy, folder / _LATENTS)
    elif isinstance(backbone, SmallBackbone):
        kept = "(none)"
    else:
        _save_base(backbone, folder / _BASE)
    state = model.state_dict()
    weights = {key: state[key].detach().cpu().contiguous() for key in state if not key.startswith(kept)}
    write_atomically(folder / WEIGHTS, save(weights))
    told = {"kind": _KIND, "name": name, "config": plain(model.config), "found": dict(found or {})}
    write_card(folder, told)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and _counts(path.relative_to(folder)))
    prints = {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
    write_atomically(folder / PRINTS, (json.dumps(prints, indent=1) + "\n").encode())
    write_atomically(folder / REWARD, (json.dumps(told, indent=1) + "\n").encode())
    return folder


def is_reward_model(folder: str | Path) -> bool:
    """Whether a reward model was saved in a folder."""
    return (Path(folder).expanduser() / REWARD).is_file()


def load_reward_model(folder: str | Path, *, device: torch.device | str = "cpu") -> TrainedReward:
    """Read what `save_reward_model` wrote, frozen.

    Raises:
        UserError: Nothing there, something else, or files that are damaged or were changed.
    """
    folder = Path(folder).expanduser()
    told = _read(folder / REWARD)
    if told.get("kind") != _KIND:
        raise UserError(
            f"{folder / REWARD} describes no reward model; give a folder that `unifl reward train` wrote"
        )
    _check_prints(folder)
    config = load(told["config"], RewardModelConfig)
    with torch.random.fork_rng(devices=[]):
        backbone = _opened(config, folder)
        model = RewardModel(config, backbone, make_head(config, backbone))
    try:
        weights = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {folder / WEIGHTS} ({error}); copy the folder again") from error
    own = model.state_dict()
    expected = (
        own if config.backbone == "small" else {k: v for k, v in own.items() if not k.startswith("backbone.")}
    )
    wrong = sorted(
        key
        for key in expected.keys() | weights.keys()
        if key not in expected or key not in weights or expected[key].shape != weights[key].shape
    )
    if wrong:
        raise UserError(
            f"{folder / WEIGHTS} does not fit {REWARD} beside it, first at {wrong[0]!r}; take both from one model"
        )
    model.load_state_dict(weights, strict=False)
    return TrainedReward(model.to(device), name=str(told["name"]), found=told["found"])


def _opened(config: RewardModelConfig, folder: Path) -> Backbone:
    if config.backbone == "small":
        return SmallBackbone()
    if config.backbone == "latent":
        return LatentBackbone(load_proxy(folder / _LATENTS), timed=config.timed)
    return around_base(config, str(folder / _BASE))


def _save_base(backbone: Any, folder: Path) -> None:
    towers = backbone.towers if isinstance(backbone, TwoTowerBackbone) else backbone
    model: Any = towers.model
    model.save_pretrained(folder)
    towers.tokenizer.save_pretrained(folder)
    settings = json.dumps(settings_of(towers.looking), indent=1) + "\n"
    write_atomically(folder / "preprocessor_config.json", settings.encode())


def _counts(path: Path) -> bool:
    return path.parts[0] in (WEIGHTS, _BASE, _LATENTS)


def _check_prints(folder: Path) -> None:
    for name, expected in _read(folder / PRINTS).items():
        path = folder / name
        if not path.is_file() or file_sha256(path) != expected:
            raise UserError(
                f"{path} is not the file that was saved with this reward model; copy the whole folder again"
            )


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"there is no {path}; give a folder that `unifl reward train` wrote") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); copy the folder again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} describes no reward model; give a folder that `unifl reward train` wrote")
    return found
