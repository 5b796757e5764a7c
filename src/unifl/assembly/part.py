"""A thing of the user's own in a recipe: a dotted path with arguments, or rewards that are combined."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class Part:
    """Feedback or a critic of your own, with its arguments; a bare string is the same as `path` alone."""

    path: str
    """`package.module:name` of an object, a class or a function; with `parts`, how they are combined: weighted_sum,
    ensemble, one_at_random, or, of one alone, towards, normalised, clipped or calibrated."""
    parts: dict[str, str | Part] = field(default_factory=dict)
    """Rewards by name, to be combined."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the class or, where there are any, of the function, which then has to return the feedback; or of
    the combination."""
    needs_prompt: bool = True
    """Whether a plain function is called with (images, prompts) or with the images alone."""
    differentiable: bool = True
    """Whether gradients pass through a plain function."""

    def leaves(self) -> Iterator[Part]:
        """What is combined in the end; itself where nothing is."""
        if not self.parts:
            yield self
        for one in self.parts.values():
            yield from as_part(one).leaves()


def as_part(given: str | Part) -> Part:
    """A bare string is a path without arguments."""
    return given if isinstance(given, Part) else Part(path=given)
