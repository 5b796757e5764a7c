"""A judge in a process of its own: its memory, its libraries and its crashes stay out of training.

The process is another Python that is told which function builds the judge. It starts at the first question, or again
when it died or took too long, and ends when its owner closes it or is gone.
"""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from unifl.errors import UserError

Judging = Callable[[Sequence[np.ndarray], Sequence[str]], Sequence[float]]
"""Pictures (h, w, 3) in bytes, and one prompt for each; one number for each comes back."""

_LAST_WORDS = 5.0  # seconds to end by itself


class JudgeLost(RuntimeError):
    """The process ended, or had to be ended, before it answered."""


class WorkerProcess:
    """A judge that is built and asked in another process.

    Calls are answered one after another, from whatever thread they come. After a call that was lost the process is
    gone, and the next call starts a new one.

    Args:
        build: `package.module:function`, which returns a `Judging`; it is called there.
        settings: Keyword arguments of that function; what pickle takes.
        timeout: Seconds that one call may take.
        patience: Seconds that building may take.
    """

    def __init__(
        self,
        build: str,
        settings: Mapping[str, Any],
        *,
        timeout: float = 600.0,
        patience: float = 3600.0,
    ) -> None:
        self.build, self.settings = build, dict(settings)
        self.timeout, self.patience = timeout, patience
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._number = 0

    def __call__(self, pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> list[float]:
        """Scores, one per picture.

        Raises:
            JudgeLost: The process ended, or had to be ended.
            UserError: As the judge raised it.
            RuntimeError: The judge raised something else; it goes on running.
        """
        with self._lock:
            if self._running is None:
                self._running = _Running(self.build, self.settings)
                self._receive(0, self.patience, "was not ready")
            self._number += 1
            self._send((self._number, list(pictures), list(prompts)))
            found = self._receive(self._number, self.timeout, "gave no answer")
        return list(found)

    def close(self) -> None:
        """End the process; another call would start a new one."""
        with self._lock:
            self._end()

    @property
    def pid(self) -> int | None:
        """Of the process; None where none runs."""
        return None if self._running is None else self._running.process.pid

    def _send(self, message: Any) -> None:
        assert self._running is not None
        try:
            self._running.ours.send(message)
        except OSError as error:
            raise self._lost() from error

    def _receive(self, number: int, seconds: float, what: str) -> Any:
        assert self._running is not None
        try:
            if not self._running.ours.poll(seconds):
                self._end()
                raise JudgeLost(f"its process {what} within {seconds:g} s and was ended")
            got, kind, found = self._running.ours.recv()
        except (EOFError, ConnectionError) as error:
            raise self._lost() from error
        except (
            BaseException
        ):  # an interrupt: an answer that is still to come would be taken for the next one's
            self._end()
            raise
        if got != number:
            self._end()
            raise JudgeLost(f"its process answered question {got} when it was asked {number}, and was ended")
        if kind == "answer":
            return found
        if number == 0:
            self._end()
        raise UserError(found) if kind == "user" else RuntimeError(found)

    def _lost(self) -> JudgeLost:
        code = self._end()
        how = "out of memory, perhaps" if code == -9 else "its last words are above"
        return JudgeLost(f"its process ended by itself (code {code}; {how})")

    def _end(self) -> int | None:
        running, self._running = self._running, None
        return None if running is None else running.end()


class _Running:
    """One process and our end of the line to it."""

    def __init__(self, build: str, settings: Mapping[str, Any]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import serve; serve({theirs.fileno()})"],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                start_new_session=True,  # Ctrl-C is its owner's to handle
            )
        self.ours = Connection(ours.detach())
        self.ours.send((build, dict(settings)))
        # also when nobody closes it
        self.end = weakref.finalize(self, _ended, self.process, self.ours)


def _ended(process: subprocess.Popen[bytes], line: Connection) -> int:
    line.close()
    try:
        return process.wait(_LAST_WORDS if process.poll() is None else 0)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


# --- in the other process -------------------------------------------------------------------------------


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


def _answer(judge: Judging, pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> tuple[str, Any]:
    try:
        return "answer", [float(score) for score in judge(pictures, prompts)]
    except Exception as error:
        return _refused(error)


def _refused(error: Exception) -> tuple[str, str]:
    if isinstance(error, UserError):
        return "user", str(error)
    return "error", f"{type(error).__name__}: {error}"
