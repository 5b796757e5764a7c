"""Whether a training loop is running in this process.

Some judges exist only to give final figures. If a training loop could see them, the loop (or the person
tuning it) would fit them, and the figures would mean nothing. The loop therefore announces itself here, at
the bottom of the package, and such judges ask here before they answer.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
# A plain count, not a context variable: a judge called from another thread (a callback, a web server) must
# see it too.
_active = 0


class GoldGuardError(RuntimeError):
    """A judge reserved for final figures was called where something could be fitted to it."""


@contextmanager
def training_active() -> Iterator[None]:
    """Mark the enclosed code as training. Nests; a generator that yields inside it stays marked while suspended."""
    global _active
    with _lock:
        _active += 1
    try:
        yield
    finally:
        with _lock:
            _active -= 1


def is_training_active() -> bool:
    """True while any ``training_active()`` block of this process is open."""
    return _active > 0
