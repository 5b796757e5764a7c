"""Nested state (optimisers, schedulers, running statistics) in one safetensors file, without pickle.

Tensors go into the file as such; the nesting and everything else go into its header as JSON. Keys of any scalar
type and tuples survive, numbers come back exactly, and equal state gives equal bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unifl.errors import UserError


def save_state(state: Any, path: Path) -> None:
    """Write nested state.

    Args:
        state: Dictionaries, lists and tuples of tensors, numbers, strings, booleans and None.
        path: File to write.

    Raises:
        TypeError: It holds something else.
    """
    tensors: dict[str, Tensor] = {}
    tree = _encode(state, tensors, "state")
    save_file(tensors, path, metadata={"tree": json.dumps(tree)})


def load_state(path: Path, device: torch.device | str = "cpu") -> Any:
    """Read what `save_state` wrote, with tensors on a device.

    Raises:
        UserError: The file is missing or not of this kind.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            tree = json.loads((file.metadata() or {})["tree"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise UserError(f"cannot read the state file {path}: {error}; use another checkpoint") from error
    return _decode(tree, tensors)


def sort_header(path: Path) -> None:
    """Put the metadata of a safetensors file into the order of its keys, in place.

    The format's writer emits them in an order that changes from one process to the next, so that files of equal
    content differ. The length of the header stays, as the same text is only put into another order.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        if "__metadata__" not in header:
            return
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def state_bytes(state: Any) -> int:
    """Bytes of all tensors in nested state."""
    if isinstance(state, Tensor):
        return state.nbytes
    if isinstance(state, dict):
        return sum(state_bytes(item) for item in state.values())
    if isinstance(state, list | tuple):
        return sum(state_bytes(item) for item in state)
    return 0


def _encode(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    if isinstance(value, Tensor):
        while name in tensors:  # the keys "a.b" and "a" -> "b" would share a name
            name += "'"
        # cloned: safetensors refuses tensors that share memory, and 8-bit optimisers share their tables
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _encode(item, tensors, f"{name}.{key}")] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        items = [_encode(item, tensors, f"{name}.{index}") for index, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"{name} is a {type(value).__name__}; state holds tensors, numbers, strings and their nests"
    )


def _decode(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _decode(item, tensors) for key, item in content}
    items = [_decode(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items
