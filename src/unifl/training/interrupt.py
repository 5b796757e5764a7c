"""Ctrl-C and termination, held back to the end of a training step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """While open, SIGINT and SIGTERM during a step wait for its end; a second one does not wait.

    Between steps (in the caller's code) they act at once, as no state is half made there. In a thread other
    than the main one Python delivers no signals, and nothing is changed.

    Attributes:
        requested: Number of the signal that waits, or None.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._waiting = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within the block, a first signal only sets `requested`."""
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False

    def stop(self, number: int) -> None:
        """Raise what the signal stands for: KeyboardInterrupt, or SystemExit with the usual code."""
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._waiting and self.requested is None:
            self.requested = number
            return
        self.stop(number)
