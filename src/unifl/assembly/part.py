"""A thing of the user's own in a recipe: a dotted path with arguments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class Part:
    """Feedback or a critic of your own, with its arguments; a bare string is the same as `path` alone."""

    path: str
    """`package.module:name` of an object, a class or a function."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the class or, where there are any, of the function, which then has to return the feedback."""
    needs_prompt: bool = True
    """Whether a plain function is called with (images, prompts) or with the images alone."""
    differentiable: bool = True
    """Whether gradients pass through a plain function."""
