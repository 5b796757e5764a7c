"""A latent proxy as a folder: its shape, its weights and, with a CLIP, the text model's config and tokenizer."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from unifl.disk import write_atomically
from unifl.errors import UserError
from unifl.feedback.latent_proxy import LatentProxy, LatentProxyConfig, make_proxy
from unifl.feedback.latent_towers import ClipText

CONFIG = "config.json"
WEIGHTS = "proxy.safetensors"
TEXT = "text"
"""Folder of the text model's config and tokenizer; its weights are with the others, as they may have trained."""

_KIND = "latent_proxy"


def save_proxy(proxy: LatentProxy, folder: str | Path) -> Path:
    """Write a proxy into a folder, which is made; returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shape: dict[str, Any] = {"kind": _KIND, **dataclasses.asdict(proxy.config)}
    if isinstance(proxy.text, ClipText):
        model = proxy.text.model
        model.config.save_pretrained(folder / TEXT)
        proxy.text.tokenizer.save_pretrained(folder / TEXT)
        shape["text_class"] = type(model).__name__
    weights = {name: value.detach().cpu().contiguous() for name, value in proxy.state_dict().items()}
    write_atomically(folder / WEIGHTS, save(weights))
    write_atomically(folder / CONFIG, (json.dumps(shape, indent=2) + "\n").encode())
    return folder


def is_proxy(folder: str | Path) -> bool:
    """Whether a latent proxy was saved in a folder."""
    return (Path(folder).expanduser() / WEIGHTS).is_file()


def load_proxy(folder: str | Path, *, device: torch.device | str = "cpu") -> LatentProxy:
    """Read what `save_proxy` wrote, frozen; `unlock` decides what trains.

    Raises:
        UserError: Nothing there, something else, or files that are damaged or do not fit each other.
    """
    folder = Path(folder).expanduser()
    config, text_class = _read_config(folder)
    try:
        weights = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot read {folder / WEIGHTS} ({error}); copy the folder again, or pre-train another proxy"
        ) from error
    text_encoder, tokenizer = _read_text(folder, text_class) if config.text == "clip" else (None, None)
    proxy = make_proxy(config, text_encoder=text_encoder, tokenizer=tokenizer)
    own = {name: tuple(value.shape) for name, value in proxy.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    wrong = sorted(name for name in own.keys() | found.keys() if own.get(name) != found.get(name))
    if wrong:
        raise UserError(
            f"{folder / WEIGHTS} does not fit {CONFIG} beside it, first at {wrong[0]!r}; take both from one proxy"
        )
    proxy.load_state_dict({name: value.float() for name, value in weights.items()})
    return proxy.to(device).requires_grad_(False)


def _read_config(folder: Path) -> tuple[LatentProxyConfig, str]:
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(
            f"there is no latent proxy in {folder} (no {CONFIG}); pre-train one or check the path"
        )
    try:
        shape = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}); copy the folder again") from error
    if not isinstance(shape, dict) or shape.pop("kind", None) != _KIND:
        raise UserError(f"{path} describes no latent proxy; give a folder that `save_proxy` wrote")
    text_class = str(shape.pop("text_class", ""))
    try:
        return LatentProxyConfig(**shape), text_class
    except TypeError as error:
        raise UserError(
            f"{path} is of another version ({error}); pre-train the proxy again with this one"
        ) from error


def _read_text(folder: Path, text_class: str) -> tuple[Any, Any]:
    """The text model with random weights, and its tokenizer."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    classes = {cls.__name__: cls for cls in (CLIPTextModel, CLIPTextModelWithProjection)}
    if text_class not in classes:
        raise UserError(f"{folder / CONFIG} names no CLIP text model; copy the folder again")
    try:
        config = CLIPTextConfig.from_pretrained(folder / TEXT)
        tokenizer = CLIPTokenizer.from_pretrained(folder / TEXT)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read the text model in {folder / TEXT} ({str(error).splitlines()[0]}); copy the folder again"
        ) from error
    with torch.random.fork_rng(devices=[]):
        return classes[text_class](config), tokenizer
