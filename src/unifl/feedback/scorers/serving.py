"""The other end of a `WorkerProcess`: builds a judge and answers until the line is closed.

This file is run by its path, so that a process has loaded nothing but what its judge asks for.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

Judging = Callable[[Sequence[Any], Sequence[str]], Sequence[float]]


def serve(descriptor: int) -> None:
    """Build a judge and answer until the line is closed.

    Args:
        descriptor: Of the socket to the owner.
    """
    os.dup2(2, 1)  # what libraries print is no output of the owner's
    line = Connection(descriptor)
    try:
        judge = _built(line)
        while judge is not None:
            number, pictures, prompts = line.recv()
            line.send((number, *_answer(judge, pictures, prompts)))
    except (EOFError, ConnectionError):
        return


def _built(line: Connection) -> Judging | None:
    build, settings = line.recv()
    module, _, name = build.partition(":")
    try:
        judge: Judging = getattr(importlib.import_module(module), name)(**settings)
    except Exception as error:
        line.send((0, *_refused(error)))
        return None
    line.send((0, "answer", []))
    return judge


def _answer(judge: Judging, pictures: Sequence[Any], prompts: Sequence[str]) -> tuple[str, Any]:
    try:
        return "answer", [float(score) for score in judge(pictures, prompts)]
    except Exception as error:
        return _refused(error)


def _refused(error: Exception) -> tuple[str, str]:
    from unifl.errors import UserError  # which loads the library

    if isinstance(error, UserError):
        return "user", str(error)
    return "error", f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    serve(int(sys.argv[1]))
