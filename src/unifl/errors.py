"""Errors in the words of the person who can fix them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what was asked for: the message says what is wrong and what to change.

    The command line prints the message alone, without a traceback. It is a `ValueError`, so that Python code
    may treat it like any other wrong argument.
    """


class TrainingStopped(RuntimeError):
    """A run that cannot go on, for example because a loss became NaN.

    The message names the step, the term and the last good checkpoint.
    """


class FeedbackFailed(TrainingStopped):
    """A judge that gave no usable answer, however often it was asked: another process, a service, a function.

    Where a training step raises it before anything has moved, the loop writes the state after the last complete step
    before the error leaves.
    """


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The entry of `choices` that was most likely meant by `word`.

    Upper and lower case, as well as `-` and `_`, are treated as equal.

    Args:
        word: What somebody wrote.
        choices: What would have been valid; the first of equally good ones wins.

    Returns:
        An entry of `choices` as it was spelled there, or None when nothing is similar (ratio below 0.5).
    """
    spelled = {_folded(choice): choice for choice in reversed(list(choices))}
    found = difflib.get_close_matches(_folded(word), list(reversed(spelled)), n=1, cutoff=0.5)
    return spelled[found[0]] if found else None


def _folded(word: str) -> str:
    return word.lower().replace("-", "_")
