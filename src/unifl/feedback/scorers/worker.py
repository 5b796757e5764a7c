"""A judge in a process of its own: its memory, its libraries and its crashes stay out of training.

The process is another Python (`serving.py`) that is told which function builds the judge. It starts at the first
question, or again when it died or took too long, and ends when its owner closes it or is gone.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from unifl.errors import FeedbackFailed, UserError

_SERVING = Path(__file__).with_name("serving.py")
_LAST_WORDS = 5.0  # seconds to end by itself


class JudgeLost(FeedbackFailed):
    """The process ended, or had to be ended, before it answered."""


class WorkerProcess:
    """A judge that is built and asked in another process.

    Calls are answered one after another, from whatever thread they come. After a call that was lost the process is
    gone, and the next call starts a new one.

    Args:
        build: `package.module:function`, which returns a function of pictures (h, w, 3) in bytes and
            prompts that gives one number for each; it is called there.
        settings: Keyword arguments of that function; what pickle takes.
        timeout: Seconds that one call may take.
        patience: Seconds that building may take.
    """

    def __init__(
        self,
        build: str,
        settings: Mapping[str, Any],
        *,
        timeout: int | float = 600.0,
        patience: int | float = 3600.0,
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
            self._start()
            self._number += 1
            message = (self._number, list(pictures), list(prompts))
            found = self._exchange(message, self._number, self.timeout, "gave no answer")
        return list(found)

    def start(self) -> None:
        """Build the judge now rather than at the first call.

        Raises:
            JudgeLost: It cannot be built, or the process ended.
            UserError: As the judge raised it.
        """
        with self._lock:
            self._start()

    def close(self) -> None:
        """End the process; another call would start a new one."""
        with self._lock:
            self._end()

    @property
    def pid(self) -> int | None:
        """Of the process; None where none runs."""
        return None if self._running is None else self._running.process.pid

    def _start(self) -> None:
        if self._running is None:
            self._running = _Running()
            self._exchange((self.build, self.settings), 0, self.patience, "was not ready")

    def _exchange(self, message: Any, number: int, seconds: int | float, what: str) -> Any:
        """Send something, and receive the answer that has its number."""
        assert self._running is not None
        line = self._running.ours
        try:
            line.send(message)
            if not line.poll(seconds):
                self._end(at_once=True)
                raise JudgeLost(f"its process {what} within {seconds:g} s and was ended")
            got, kind, found = line.recv()
        except (EOFError, OSError) as error:
            raise self._lost() from error
        except BaseException:
            # an interrupt: half a message would be taken for the beginning of the next, and an answer that is still to
            # come for the next one's
            self._end(at_once=True)
            raise
        if got != number:
            self._end()
            raise JudgeLost(f"its process answered question {got} when it was asked {number}, and was ended")
        if kind == "answer":
            return found
        if number == 0:
            self._end()
        if kind == "user":
            raise UserError(found)
        raise JudgeLost(f"its process cannot be built: {found}") if number == 0 else RuntimeError(found)

    def _lost(self) -> JudgeLost:
        code = self._end()
        how = "out of memory, perhaps" if code == -9 else "its last words are above"
        return JudgeLost(f"its process ended by itself (code {code}; {how})")

    def _end(self, *, at_once: bool = False) -> int | None:
        running, self._running = self._running, None
        if running is not None and at_once:
            running.process.kill()
        return None if running is None else running.end()


class _Running:
    """One process and our end of the line to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                # -P: the folder of that file is no place to import from
                [sys.executable, "-P", str(_SERVING), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                start_new_session=True,  # Ctrl-C is its owner's to handle
            )
        self.ours = Connection(ours.detach())
        # also when nobody closes it
        self.end = weakref.finalize(self, _ended, self.process, self.ours)


def _ended(process: subprocess.Popen[bytes], line: Connection) -> int:
    line.close()
    try:
        return process.wait(_LAST_WORDS if process.poll() is None else 0)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
