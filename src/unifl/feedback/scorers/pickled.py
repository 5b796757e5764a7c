"""The tensors of a module that was saved whole, without running anything of it.

`torch.save(model)` writes a pickle that names classes and functions of its authors. Here each of them becomes an inert
record: only tensors are rebuilt, by torch's own reader of weights, and nothing that a file names is imported or called.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unifl.errors import UserError


class _Record:
    """Stands for whatever a pickle names; keeps its attributes."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        parts = state if isinstance(state, tuple) else (state,)
        for part in parts:
            if isinstance(part, dict):
                self.__dict__.update(part)


def read_module(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers of a pickled module by the names that its `state_dict` would give them.

    Args:
        path: A file that `torch.save(model, path)` wrote.

    Raises:
        UserError: Something else.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        stands_in: list[Any] = [(_Record, name) for name in names]
        with torch.serialization.safe_globals(stands_in):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a saved module ({error}); download it again") from error
    state = dict(_tensors(found, ""))
    if not state:
        raise UserError(f"{path} holds no module with weights; give the file that was published")
    return state


def _tensors(module: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    attributes = getattr(module, "__dict__", {})
    for table in ("_parameters", "_buffers"):
        for name, tensor in (attributes.get(table) or {}).items():
            if isinstance(tensor, Tensor):
                yield prefix + name, tensor.detach()
    for name, child in (attributes.get("_modules") or {}).items():
        yield from _tensors(child, f"{prefix}{name}.")
