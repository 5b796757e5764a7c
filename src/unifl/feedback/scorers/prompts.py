"""What any scorer asks of prompts before it spends time on them."""

from __future__ import annotations

from collections.abc import Sequence

from unifl.errors import UserError

LONGEST = 20_000
"""Characters. The longest prompts of public suites have about 2,000, and no scorer reads more than a few pages."""


def require_prompts(prompts: Sequence[str], pictures: int) -> None:
    """Refuse prompts that no scorer can use.

    Args:
        prompts: One per picture.
        pictures: How many there are.

    Raises:
        UserError: Another number than there are pictures, or one that would keep a tokenizer busy for minutes.
    """
    if len(prompts) != pictures:
        raise UserError(
            f"there are {pictures} pictures and {len(prompts)} prompts; give one for each picture"
        )
    for number, prompt in enumerate(prompts):
        if len(prompt) > LONGEST:
            raise UserError(
                f"prompt {number} has {len(prompt):,} characters ({prompt[:40]!r}...), and scorers take at most "
                f"{LONGEST:,}; shorten it, or look at the file that it comes from"
            )
