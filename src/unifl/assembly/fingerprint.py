"""What lies behind a name: whether a scorer or a judge is the one that it was before."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unifl.assembly.objects import is_dotted
from unifl.assembly.part import Part, as_part
from unifl.assembly.resolve import SCORER, networks_of
from unifl.disk import content_sha256
from unifl.evaluation.dpg import QuestionGraph
from unifl.feedback.scorers import SCORERS


def fingerprint(thing: Any, asked: str | Part) -> str:
    """The first 32 hexadecimal digits of a SHA-256 over what makes scores what they are.

    That is the kind of the thing and what it declares, every weight of its networks and how they are shown pictures;
    of a scorer that people use, which one it is; of something of the user's own, the file in which it is written, its
    arguments, and the files that those name; of a combination, how it is made and the names and arguments of its
    parts. What such a file imports or reads from elsewhere is not seen. Where a thing has a text `fingerprint`, as
    those have whose weights lie in another process or on another machine, it is believed. Of a list of questions those
    count, and who answers them.

    Weights are read from the networks and not from files: whatever was loaded is what counts, wherever it came from.

    Args:
        thing: A scorer, a judge, a detector, ... as it is used.
        asked: The name under which it was asked for, with its arguments.
    """
    said = getattr(thing, "fingerprint", None)
    if isinstance(said, str):
        return said
    if isinstance(thing, QuestionGraph):
        asks = f"{fingerprint(thing.answers, asked)} {thing.questions!r}"
        return hashlib.sha256(asks.encode()).hexdigest()[:32]
    part = as_part(asked)
    found = hashlib.sha256()
    kind = type(thing)
    needs, space, range = (getattr(thing, name, None) for name in ("needs", "space", "range"))
    declared = (kind.__module__, kind.__qualname__, space, sorted(needs or ()), range)
    found.update(repr(declared).encode())
    networks = _networks(thing)
    for network in networks:
        found.update(repr([_shown(module) for module in network.modules()]).encode())
        for name, tensor in sorted(network.state_dict().items()):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            # as bytes, because numpy has no bfloat16
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    found.update(_written(part, networks))
    return found.hexdigest()[:32]


def _written(part: Part, networks: list[nn.Module]) -> bytes:
    """What counts of a name and its arguments beside weights."""
    if part.parts:
        inner = [as_part(one) for one in part.parts.values()]
        said = [(one.path, _seen(one.kwargs)) for one in (part, *inner)]
        return repr(said).encode() + b"".join(_written(one, networks) for one in inner)
    name = part.path.removeprefix(SCORER)
    if name not in SCORERS and is_dotted(part.path):
        module, _, attribute = part.path.partition(":")
        file = getattr(sys.modules.get(module), "__file__", None)
        source = Path(file).read_bytes() if file else b""
        return attribute.encode() + source + repr(_seen(part.kwargs)).encode()
    return name.encode() if name in SCORERS or not networks else b""


def _networks(thing: Any) -> list[nn.Module]:
    """Its own, those of its attributes, or those of the object of the user's that it calls."""
    inner = (getattr(one, "__dict__", {}) for one in (thing, getattr(thing, "function", None)))
    return networks_of({"itself": thing}) or [network for held in inner for network in networks_of(held)]


def _shown(module: nn.Module) -> tuple[Any, Any]:
    """How pictures are scaled for it, where it says so."""
    return getattr(module, "looking", None), getattr(module, "preprocessing", None)


def _seen(arguments: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Arguments with what lies in the files and folders that they name."""
    return [(key, content_sha256(value) or value) for key, value in sorted(arguments.items())]
