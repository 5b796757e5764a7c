"""Encoding before a run: by one process for all, with a bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from accelerate import PartialState
from tqdm.auto import tqdm


@contextmanager
def encoding_first(name: str) -> Iterator[Callable[[int, int], None]]:
    """The main process enters, and the others when it has left.

    Args:
        name: What is encoded.

    Yields:
        To be called with (done, in all); it moves a bar.
    """
    state = PartialState()
    with state.main_process_first(), tqdm(disable=not state.is_main_process) as bar:
        bar.set_description(f"encoding {name}")

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress
