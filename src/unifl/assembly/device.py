"""Where things are computed."""

from __future__ import annotations

import torch

from unifl.errors import UserError


def chosen_device(name: str) -> str:
    """A device by its name; "auto" is a GPU if there is one.

    Raises:
        UserError: There is none of that name here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError) as error:  # a torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise UserError(f"there is no device {name!r} here ({reason}); choose auto, or cpu") from error
    return name
