"""Objects of the user's own, named by a dotted path: package.module:name."""

from __future__ import annotations

import os
import re
import sys
from importlib import import_module
from typing import Any

from unifl.assembly.part import Part
from unifl.errors import UserError, nearest

_DOTTED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_dotted(name: str) -> bool:
    """Whether a name is written as a dotted path, package.module:name."""
    return _DOTTED.fullmatch(name) is not None


def make_object(path: str) -> Any:
    """The object behind a dotted path; a class is called without arguments.

    Raises:
        UserError: It cannot be imported.
    """
    return made(Part(path=path))


def made(part: Part) -> Any:
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
